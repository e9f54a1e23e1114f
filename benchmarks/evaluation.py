"""Evaluation beside lm-evaluation-harness with its own Hugging Face model: numbers, and time.

    python benchmarks/evaluation.py numbers HF_DIR DATA   # tasks on the same files and weights, in one table
    python benchmarks/evaluation.py speed                 # log-likelihoods at the shapes of GPT-Neo 125M

DATA holds files under the names of `FILES`; those that are not there are left out. Needs the
extras eval and hf.
"""

import argparse
import contextlib
import json
import os
import random
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "DISABLE_MULTIPROC": "1"}

import jax
import lm_eval
from lm_eval.tasks import TaskManager

import neojax
from neojax.data import tokenizer as tokenizers
from neojax.evaluate import local_tasks, wikitext
from neojax.evaluate.harness import BOOTSTRAP
from neojax.evaluate.held_out import Reading, documents
from neojax.evaluate.likelihood import Tally, measure
from neojax.evaluate.tasks import TASKS

try:  # as a program, the folder of this file comes first on the path
    import side_by_side
except ImportError:
    from benchmarks import side_by_side

FILES = {"sst2": "sst2.dev.txt", "rte": "RTE.val.jsonl", "boolq": "BoolQ.val.jsonl", "mrpc": "mrpc-small.tsv"}
THEIRS = {
    "sst2": "glue/sst2/default.yaml",
    "rte": "super_glue/rte/default.yaml",
    "boolq": "super_glue/boolq/default.yaml",
    "mrpc": "glue/mrpc/default.yaml",
    "blimp": "blimp/_template_yaml",
    "wikitext": "wikitext/wikitext.yaml",
}
WIKITEXT = "wikitext-2-raw.test.txt"


_Row = Mapping[str, Any]


def rows_of(name: str, file: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file as Hugging Face's data sets have them."""
    task = TASKS[name]
    for record in local_tasks.read(name, file):
        row = {}
        for column, names in task.columns.items():
            row[column] = next(record.values[own] for own in names if own in record.values)
        if "label" in row:
            row["label"] = local_tasks.question(task, record.values).gold
        yield row


def write_task(folder: Path, name: str, kind: str, rows: list[dict[str, Any]]) -> None:
    """A task of the harness, as it is installed, on other rows."""
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    split = "test" if kind == "wikitext" else "validation"
    keys = {
        "include": str(Path(lm_eval.__file__).parent / "tasks" / THEIRS[kind]),
        "task": f"their_{name}",
        "tag": None,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {split: str(file)}, "cache_dir": str(folder / "cache")},
        "training_split": None,
        "validation_split": None if kind == "wikitext" else "validation",
    }
    (folder / f"{name}.yaml").write_text(json.dumps(keys))


def their_numbers(folder: Path, name: str, lm: Any, num_fewshot: int, limit: int) -> dict[str, float]:
    """Metric -> value of the harness."""
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    results = lm_eval.simple_evaluate(
        lm,
        tasks=[f"their_{name}"],
        num_fewshot=num_fewshot,
        limit=limit or None,
        task_manager=manager,
        bootstrap_iters=BOOTSTRAP,
        log_samples=False,
    )["results"][f"their_{name}"]
    return {key.partition(",")[0]: value for key, value in results.items() if key.endswith(",none")}


def numbers(args: argparse.Namespace) -> None:
    """Prints a row of Markdown for each metric, and keeps all."""
    from lm_eval.models.huggingface import HFLM

    model = neojax.load(args.model, dtype="float32")
    lm = HFLM(pretrained=args.model, device="cpu", dtype="float32", batch_size=args.batch)
    print("| task | questions | metric | neojax | harness | relative difference | processor s |")
    print("|-|-|-|-|-|-|-|")
    kept: list[dict[str, Any]] = []

    def row(
        name: str, count: int, ours: Mapping[str, Any], theirs: Mapping[str, Any], spent: list[float]
    ) -> None:
        for metric in theirs:
            if metric.endswith("_stderr") or metric not in ours:
                continue
            own, other = ours[metric], theirs[metric]
            off = abs(own - other) / (abs(other) or 1.0)
            kept.append(
                {"task": name, "questions": count, "metric": metric, "neojax": own, "harness": other,
                 "stderr": [ours.get(f"{metric}_stderr"), theirs.get(f"{metric}_stderr")], "seconds": spent}
            )  # fmt: skip
            told = f"{spent[0]:.0f}; {spent[1]:.0f}"
            print(
                f"| {name} | {count} | {metric} | {own:.6f} | {other:.6f} | {off:.1e} | {told} |", flush=True
            )

    def both(ours: Callable[[], _Row], theirs: Callable[[], _Row]) -> tuple[_Row, _Row, list[float]]:
        times = [time.process_time()]
        found = []
        for work in (ours, theirs):
            found.append(work())
            times.append(time.process_time())
        return found[0], found[1], [times[1] - times[0], times[2] - times[1]]

    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as at_end:
        # Whole files take long: what is done is kept where the rest is not waited for.
        at_end.callback(
            lambda: side_by_side.save("evaluation_numbers", {"load": os.getloadavg(), "rows": kept})
        )
        folder, data = Path(temporary), Path(args.data)
        there = {**FILES, "wikitext": WIKITEXT, "blimp": "blimp.zip"}
        wanted = args.only.split(",") if args.only else list(there)
        files = {name: data / there[name] for name in wanted if (data / there[name]).is_file()}
        whole = {name: files.pop(name) for name in ("wikitext", "blimp") if name in files}
        for name, file in files.items():
            write_task(folder, name, name, list(rows_of(name, file)))
            local = local_tasks.Local(name, str(file))
            for shots in (0,) if name in args.zero_shot.split(",") else (0, args.num_fewshot):
                mine, other, spent = both(
                    lambda local=local, shots=shots: local_tasks.evaluate(
                        model, local, num_fewshot=shots, limit=args.limit or None
                    )[-1],
                    lambda name=name, shots=shots: their_numbers(folder, name, lm, shots, args.limit),
                )
                row(f"{name}, {shots} examples", mine["questions"], mine, other, spent)
        if file := whole.get("wikitext"):
            text = file.read_text(encoding="utf-8")
            write_task(folder, "wikitext", "wikitext", [{"page": page} for page in wikitext.pages(text)])

            def pages() -> _Row:
                tally = Tally()
                for found in measure(model, documents(model, str(file), Reading(wikitext=True))):
                    tally.add(found)
                return tally.row("wikitext")

            mine, other, spent = both(pages, lambda: their_numbers(folder, "wikitext", lm, 0, 0))
            row("WikiText-2, pages", mine["documents"], mine, other, spent)
        if file := whole.get("blimp"):
            archive = local_tasks.Local("blimp", str(file))
            with local_tasks.sets(archive) as found:
                rows = [
                    each
                    for file in found.values()
                    for each in list(rows_of("blimp", file))[: args.limit or None]
                ]
            write_task(folder, "blimp", "blimp", rows)
            mine, other, spent = both(
                lambda: local_tasks.evaluate(model, archive, limit=args.limit or None)[-1],
                lambda: their_numbers(folder, "blimp", lm, 0, 0),
            )
            row("blimp, all sets", mine["questions"], mine, other, spent)


def requests_of(count: int, shares: bool = True) -> list[tuple[str, str]]:
    """Contexts of 8 to 400 words, each with two to four answers of one to twelve words, or with one."""
    draw = random.Random(0)
    words = [
        f"{a}{b}" for a in ("pre", "con", "un", "re", "over") for b in ("tain", "form", "ly", "do", "view")
    ]
    pairs: list[tuple[str, str]] = []
    while len(pairs) < count:
        context = " ".join(draw.choices(words, k=int(2 ** draw.uniform(3, 8.6))))
        for _ in range(draw.choice((2, 2, 4)) if shares else 1):
            pairs.append((context, " " + " ".join(draw.choices(words, k=draw.choice((1, 1, 4, 12))))))
    return pairs[:count]


def _answering(name: str, lm: Any, options: Mapping[str, Any]) -> Callable[[], int]:
    from lm_eval.api.instance import Instance

    pairs = requests_of(options["requests"], options["shares"])
    asked = [Instance("loglikelihood", {}, pair, i, ("t", i, 1)) for i, pair in enumerate(pairs)]

    def once() -> int:
        found = lm.loglikelihood(asked, disable_tqdm=True)
        told = {"found": found, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}
        (Path(options["folder"]) / f"{name}.told").write_text(json.dumps(told))
        return len(pairs)

    return once


def ours(options: Mapping[str, Any]) -> Callable[[], int]:
    from neojax.evaluate.lm_eval import NeojaxLM

    return _answering("neojax", NeojaxLM(pretrained=options["folder"], dtype="float32"), options)


def theirs(options: Mapping[str, Any]) -> Callable[[], int]:
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(pretrained=options["folder"], device="cpu", dtype="float32", batch_size=options["batch"])
    return _answering("harness", lm, options)


def speed(args: argparse.Namespace) -> None:
    """Requests per second of both, taking turns, by the clock and by the processor; and memory."""
    import transformers

    results: dict[str, Any] = {"load_average_before": os.getloadavg(), "batch_of_harness": args.batch}
    with tempfile.TemporaryDirectory() as folder:
        config = transformers.GPTNeoConfig(
            hidden_size=768,
            num_layers=args.layers,
            num_heads=12,
            attention_types=[[["global", "local"], args.layers // 2]],
            bos_token_id=50256,
            eos_token_id=50256,
        )
        transformers.GPTNeoForCausalLM(config).save_pretrained(folder)
        tokenizer = tokenizers.load(args.tokenizer)
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
        ).save_pretrained(folder)
        for title, shares, count in (
            ("two to four answers to a context", True, args.requests),
            ("one answer to a context", False, args.requests // 2),
        ):
            options = {"folder": folder, "requests": count, "shares": shares, "batch": args.batch}
            rates = side_by_side.measure_both({"neojax": ours, "harness": theirs}, options, args.rounds)
            told = {name: json.loads((Path(folder) / f"{name}.told").read_text()) for name in rates}
            results[title] = compared(title, count, rates, told)
    results["load_average_after"] = os.getloadavg()
    results["bytes_beside_weights"] = memory()
    print(f"load {results['load_average_before'][0]:.1f} to {results['load_average_after'][0]:.1f}")
    side_by_side.save("evaluation", results)


def compared(title: str, count: int, rates: Mapping[str, Any], told: Mapping[str, Any]) -> dict[str, Any]:
    """What one set of requests came to, printed too."""
    print(f"\n{title}: {count} requests")
    found: dict[str, Any] = {"requests": count}
    for number, clock in enumerate(("by the clock", "by the processor")):
        own = {name: [round_[number] for round_ in every] for name, every in rates.items()}
        median = {name: side_by_side.statistics.median(every) for name, every in own.items()}
        ratio = median["neojax"] / median["harness"]
        told_rates = ", ".join(f"{name} {rate:.3f}" for name, rate in median.items())
        print(f"  {clock:18} {told_rates} requests/s: {ratio:.2f}x", flush=True)
        found[clock] = {"requests_per_second": own, "ratio": ratio}
    nats = [[each for each, _ in told[name]["found"]] for name in ("neojax", "harness")]
    greedy = [[is_greedy for _, is_greedy in told[name]["found"]] for name in ("neojax", "harness")]
    found["largest_relative_difference"] = max(abs(a - b) / abs(b) for a, b in zip(*nats))
    found["greedy_equal"] = greedy[0] == greedy[1]
    found["peak_kib"] = {name: told[name]["peak"] for name in told}
    print(
        f"  largest relative difference {found['largest_relative_difference']:.1e}, greedy equal: "
        f"{found['greedy_equal']}; peak GiB "
        + ", ".join(f"{name} {peak / 2**20:.1f}" for name, peak in found["peak_kib"].items())
    )
    return found


def memory() -> dict[int, dict[str, int]]:
    """Vocabulary -> bytes that a batch [8, 512] takes beside weights and results, all positions scored, and
    bytes of its logits and log-probabilities, which the harness's model holds."""
    from neojax.config import from_dict
    from neojax.data.batch import Batch
    from neojax.evaluate import score
    from neojax.models import Transformer

    rows = jax.ShapeDtypeStruct((8, 512), "int32")
    found = {}
    for n_vocab in (50257, 4 * 50257, 16 * 50257):
        sizes = {"n_layer": 2, "n_embd": 768, "n_head": 12, "n_ctx": 512, "n_vocab": n_vocab}
        model = Transformer(from_dict({"model": sizes}).model)
        model = model.bind(model.stored())
        with model.layout.in_force():
            compiled = score._scores.lower(*model.halves(), Batch(rows, rows)).compile()
        own = compiled.memory_analysis().temp_size_in_bytes
        found[n_vocab] = {"neojax": own, "logits": 2 * 4 * 8 * 512 * n_vocab}
        print(f"  vocabulary {n_vocab}: {own / 2**20:.0f} MiB; logits {found[n_vocab]['logits'] / 2**20:.0f}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parts = parser.add_subparsers(required=True)
    of_numbers, of_speed = parts.add_parser("numbers"), parts.add_parser("speed")
    of_numbers.add_argument("model")
    of_numbers.add_argument("data")
    of_numbers.add_argument("--num-fewshot", type=int, default=2)
    of_numbers.add_argument("--limit", type=int, default=0, help="rows of each file; 0: all")
    of_numbers.add_argument(
        "--only", default="", metavar="A,B", help="these files (default: all that are there)"
    )
    of_numbers.add_argument(
        "--zero-shot", default="boolq", metavar="A,B", help="files asked without examples alone (%(default)s)"
    )
    of_numbers.set_defaults(run=numbers)
    of_speed.add_argument("tokenizer", help="GPT-2's tokenizer.json")
    of_speed.add_argument("--layers", type=int, default=12)
    of_speed.add_argument("--requests", type=int, default=48)
    of_speed.add_argument("--rounds", type=int, default=3)
    of_speed.set_defaults(run=speed)
    for part in (of_numbers, of_speed):
        part.add_argument("--batch", type=int, default=16, help="rows of a batch of the harness's model")
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
