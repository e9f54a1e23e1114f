"""One command for a machine with a GPU or a TPU: every measurement that is open, side by side with its
alternative.

    python benchmarks/accelerator.py [--part tests training decoding kernels determinism compiler-options]
        [--seconds 520] [--out benchmarks/results] [--tiny]

Needs neojax's imports alone; alternatives that are not installed are skipped, and every part says what it
skipped. A part ends within its seconds. What is measured is written as it comes to OUT/accelerator_CHIP.json,
with chip, versions and date, and to OUT/accelerator_CHIP.md, whose lines can be copied into
results/README.md; parts that ran before are kept. --tiny runs everything at tiny shapes on any machine, in
one process, to see that it runs: its numbers mean nothing.
"""

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]
import jobs  # noqa: E402
from jobs import Job, Row  # noqa: E402
from parts import chip_row, decoding, determinism, kernels, options, tests, training  # noqa: E402
from side_by_side import RESULTS, circumstances  # noqa: E402

PARTS: Mapping[str, ModuleType] = {
    "tests": tests,
    "training": training,
    "decoding": decoding,
    "kernels": kernels,
    "determinism": determinism,
    "compiler-options": options,
}
ENVIRONMENT = {
    "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92",  # a job has the device to itself; JAX would take three quarters
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",  # as `neojax train` starts
}


@dataclass(frozen=True)
class Open:
    """A row of results/README.md that waits for an accelerator: what is wanted, and how it is read from a
    part's rows."""

    where: str
    what: str
    part: str
    wanted: str
    found: Callable[[list[Row]], str]


def best(pattern: str, key: str, form: str) -> Callable[[list[Row]], str]:
    """The largest `key` of the rows whose `what` matches, with that row's name."""

    def find(rows: list[Row]) -> str:
        fit = [row for row in rows if key in row and re.fullmatch(pattern, row["what"])]
        if not fit:
            return "open"
        row = max(fit, key=lambda row: row[key])
        return f"{form.format(row[key])} ({row['what']})"

    return find


def every(key: str, unit: str) -> Callable[[list[Row]], str]:
    """How many of the rows that hold `key`, or should, say yes there, and the names of those that do not."""

    def find(rows: list[Row]) -> str:
        fit = [row for row in rows if key in row or "error" in row]
        bad = "; ".join(row["what"] for row in fit if not row.get(key))
        count = sum(bool(row.get(key)) for row in fit)
        return (f"{count} of {len(fit)} {unit}" + (f", not {bad}" if bad else "")) if fit else "open"

    return find


def listed(pattern: str, key: str, form: str) -> Callable[[list[Row]], str]:
    """`key` of all rows whose `what` matches."""

    def find(rows: list[Row]) -> str:
        fit = [row for row in rows if key in row and re.fullmatch(pattern, row["what"])]
        return "; ".join(f"{row['what']}: {form.format(row[key])}" for row in fit) or "open"

    return find


TRAINED = "bfloat16, sequence 2048"
OPEN = (
    Open(f"1.3B, {TRAINED}", "training MFU, visible keys over the data sheet's peak", "training", "55 %",
         best("1.3B, neojax.*", "mfu", "{:.1%}")),
    Open(f"1.3B, {TRAINED}", "against PyTorch GPT-Neo with torch.compile", "training", "1.5",
         best(".* against 1.3B, transformers, torch.compile", "ratio", "{:.2f}")),
    Open(f"1.3B, {TRAINED}", "against a PyTorch model of the same shapes with SDPA and FlexAttention", "training", "1.1",  # noqa: E501
         best(".* against 1.3B, PyTorch, fused.*", "ratio", "{:.2f}")),
    Open(f"125M, {TRAINED}", "training MFU", "training", "45 %",
         best("125M, neojax.*", "mfu", "{:.1%}")),
    Open("1.3B, bfloat16", "decoding, batch 1: share of the bandwidth's bound", "decoding", "70 %",
         best("1.3B, neojax, batch 1", "share_of_bandwidth", "{:.0%}")),
    Open("1.3B, bfloat16", "decoding, batch 1: against `generate`", "decoding", "5",
         best("1.3B, neojax, batch 1 against .*", "ratio", "{:.2f}")),
    Open("the device's attention kernel", "values and gradients equal the reference's to 2 % in bfloat16", "kernels", "all",  # noqa: E501
         every("agrees", "cases agree")),
    Open("the device's attention kernel", "time, forward and backward, of XLA's kernel over its own", "kernels", "",  # noqa: E501
         listed(".* against xla", "ratio", "{:.2f}")),
    Open("tests marked for the device", "kernels, offload to the host, decoding", "tests", "none fails",
         lambda rows: "; ".join(f"{row['what']}: {show(row)}" for row in rows) or "open"),
    Open("125M, bfloat16", "two runs equal bit for bit with `train.deterministic`, also between processes", "determinism",  # noqa: E501
         "yes", listed("train.deterministic.*", "equal_between_processes", "{}")),
    Open("125M, bfloat16", "speed without each compiler option of the table, as a share of that with all", "compiler-options",  # noqa: E501
         "at most 1", listed("without .*, against the table", "ratio", "{:.3f}")),
)  # fmt: skip

FORMS = {
    "tokens_per_second": "{:,.1f} tokens/s",
    "batch": "batch {}",
    "mfu": "MFU {:.1%}",
    "share_of_bandwidth": "{:.0%} of the bandwidth",
    "seconds": "{:.3g} s",
    "model_flops_per_second": "{:.3g} FLOP/s",
    "relative_error": "error {:.2g}",
    "agrees": "agrees: {}",
    "ratio": "{:.3f} times",
    "is": "{}",
    "passed": "{} passed",
    "failed": "{} failed",
    "not_run": "{} not run",
    "equal_within_a_process": "equal within a process: {}",
    "equal_between_processes": "between processes: {}",
    "times_the_default": "{:.2f} times the default's time",
    "peak_bytes": "at most {:,} bytes",
    "skipped": "skipped: {}",
    "error": "ERROR: {}",
}


def show(row: Row) -> str:
    """A row's figures in one line."""
    return ", ".join(form.format(row[key]) for key, form in FORMS.items() if key in row)


class Record:
    """What was measured on one chip, on disk after every row; parts of earlier calls are kept."""

    def __init__(self, folder: Path, chip: Row, tiny: bool):
        slug = "tiny" if tiny else re.sub(r"\W+", "_", chip["kind"]).strip("_").lower()
        self.path = folder / f"accelerator_{slug}.json"
        self.parts: dict[str, Any] = {}
        self.chip = {name: value for name, value in chip.items() if name != "what"}
        if self.path.exists():
            self.parts = json.loads(self.path.read_text(encoding="utf-8"))["parts"]
        folder.mkdir(parents=True, exist_ok=True)

    def begin(self, part: str) -> list[Row]:
        """The list of a part's rows, empty, in place of what an earlier call measured."""
        self.parts[part] = {**circumstances(), "chip": self.chip, "rows": []}
        return self.parts[part]["rows"]

    def write(self) -> None:
        """The JSON and the markdown, each by one rename."""
        for path, text in ((self.path, self.json()), (self.path.with_suffix(".md"), self.markdown())):
            scratch = path.with_name(path.name + ".tmp")
            scratch.write_text(text, encoding="utf-8")
            scratch.replace(path)

    def json(self) -> str:
        return json.dumps({"parts": self.parts}, indent=1) + "\n"

    def markdown(self) -> str:
        """The open rows with what was found, then every row."""
        lines = [f"# {self.chip['kind']}", "", "| where | what | how | wanted | found |", "|-|-|-|-|-|"]
        lines += open_lines({name: part["rows"] for name, part in self.parts.items()})
        for name, part in self.parts.items():
            versions = ", ".join(f"{package} {version}" for package, version in part["versions"].items())
            lines += [
                "",
                f"## {name}, {part['date']}, {part['chip']['kind']}",
                "",
                versions,
                "",
                "| what | found |",
                "|-|-|",
            ]
            lines += [f"| {row['what']} | {show(row)} |" for row in part["rows"]]
        return "\n".join(lines) + "\n"


def open_lines(rows: Mapping[str, list[Row]]) -> list[str]:
    """The open rows of results/README.md, with what the parts found."""
    how = "`python benchmarks/accelerator.py --part {}`"
    return [
        f"| {row.where} | {row.what} | {how.format(row.part)} | {row.wanted} | "
        f"{row.found(rows.get(row.part, []))} |"
        for row in OPEN
    ]


def measure(names: Iterable[str], record: Record, chip: Row, seconds: float, tiny: bool) -> None:
    """Runs parts, showing and writing every row as it comes."""
    for name in names:
        part, start = PARTS[name], time.time()
        rows = record.begin(name)
        print(f"\n{name}", flush=True)

        def keep(row: Row, rows: list[Row] = rows) -> None:
            rows.append(row)
            record.write()
            print(f"  {row['what']}: {show(row)}", flush=True)

        try:
            for row in jobs.run(part.jobs(chip, tiny), start + seconds, in_process=tiny):
                keep(row)
        finally:  # after Ctrl-C too: what is there can be compared
            for row in part.conclude(list(rows)):
                keep(row)
            record.parts[name]["seconds"] = time.time() - start
            record.write()
        print(f"  ({record.parts[name]['seconds']:.0f} s)", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", nargs="+", default=list(PARTS), choices=PARTS, help="what to measure (all)")
    parser.add_argument(
        "--seconds", type=float, default=520, help="for each part; it ends within 20 s of them"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON and the markdown")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, to see that everything runs")
    arguments = parser.parse_args()
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # A TPU belongs to one process: only those that measure start JAX on it.
    (chip,) = jobs.run([Job("chip", chip_row)], time.time() + 120)
    if "kind" not in chip:
        print(f"error: JAX finds no device here: {show(chip)}", file=sys.stderr)
        return 2
    print(f"{chip['count']} x {chip['kind']} ({chip['platform']})")
    if chip["platform"] == "cpu" and not arguments.tiny:
        print(
            "error: JAX finds no GPU or TPU here; install its plug-in (pip install -e '.[cuda]' or "
            "'.[tpu]'), or try the command with --tiny",
            file=sys.stderr,
        )
        return 2
    record = Record(arguments.out, chip, arguments.tiny)
    status = 0
    try:
        measure(arguments.part, record, chip, arguments.seconds, arguments.tiny)
    except KeyboardInterrupt:
        print("\ninterrupted: what was measured is kept", file=sys.stderr)
        status = 130
    left_out = [
        f"  {name}, {row['what']}: {show(row)}"
        for name in arguments.part
        for row in record.parts.get(name, {"rows": []})["rows"]
        if "skipped" in row or "error" in row
    ]
    print("\nNot measured:", *(left_out or ["nothing was left out"]), sep="\n")
    print("\nFor results/README.md:\n")
    print("\n".join(open_lines({name: part["rows"] for name, part in record.parts.items()})))
    print(f"\nwritten to {record.path} and {record.path.with_suffix('.md').name}")
    return status


if __name__ == "__main__":
    sys.exit(main())
