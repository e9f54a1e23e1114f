"""A pod rehearsed on one machine: several processes with fake devices and real collectives, killed, stopped
and resumed.

    python benchmarks/rehearsal.py [layouts kills times checkpoints] [--kills 20] [--rounds 3]

layouts      every layout of meshconfigs/README.md with `neojax launch --processes 4 --cpu-devices 2`, against
             one process with 8 devices: the largest difference of losses and parameters after 50 steps, with
             dropout and microbatches, and once with masked tokens
kills        SIGKILL of one of two processes, a third of them at moments drawn from the time to the first
             step, the rest behind a step, each going on from the one before: how long the other takes to end,
             and whether losses, as first logged and as resumed, are bit for bit those of a run let alone
times        launch to first step for 1, 2 and 4 processes with 8 devices among them, and SIGTERM to a
             finished checkpoint
checkpoints  a run that goes from 4 processes to one and back, against one that stays with 4

Text is a sequence of ids made here; its learnable part is a step of 5, 6 or 7 from one id to the next.
"""

import argparse
import contextlib
import json
import math
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from side_by_side import RESULTS, circumstances

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
DEVICES, STEPS, VOCAB = 8, 50, 256
# Starts are many, and the machine is small: compiled fast rather than well, and kept where it was compiled
# before.
QUICK = {
    "XLA_FLAGS": "--xla_backend_optimization_level=0",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
}
HANG = 60.0  # seconds within which all processes have to end once one is gone
FSDP = {"shape": "data:8", "layout": "batch:data", "param_layout": "embd:data"}
DROPOUT = {"dropout": 0.1, "embedding": {"dropout": 0.1}}
SHRUNK: dict[str, Any] = {
    "n_layer": 2, "n_embd": 32, "n_ctx": 32, "n_vocab": VOCAB, "init": {"std": 0.02}, **DROPOUT,
    "attention": {"heads": 4, "types": ["global", "local"], "window": 8, "dropout": 0.1},
}  # fmt: skip
EXPERTS: dict[str, Any] = {"experts": {"number": 8, "layers": [1], "capacity_factor": 1.25}}
DEMO: dict[str, Any] = {
    "n_layer": 4, "n_embd": 128, "n_ctx": 256, "n_vocab": 1024, "init": {"std": 0.02},
    "attention": {"heads": 8, "types": ["global", "local"], "window": 64},
}  # fmt: skip
TRAIN = {
    "batch_size": 16, "microbatch": 8, "steps": STEPS, "learning_rate": 4e-3, "warmup_steps": 10, "log_every": 1,  # noqa: E501
    "tensorboard": False,
}  # fmt: skip
Row = dict[str, Any]


def write_store(folder: Path) -> None:
    """A training store of ids below `VOCAB`."""
    import numpy as np

    from neojax.data.store import StoreWriter

    steps = np.random.default_rng(0).integers(5, 8, 400_000)
    with StoreWriter(folder / "train", VOCAB) as writer:
        writer.add(np.cumsum(steps) % VOCAB, np.full(len(steps) // 1000, 1000, np.int32))


def write_config(folder: Path, name: str, model: Row, mesh: Row, **train: Any) -> Path:
    """A run's configuration on the store of `folder`; JSON is YAML."""
    path = folder / f"{name}.yml"
    content = {
        "model": model,
        "mesh": mesh,
        "data": {"train": str(folder / "train")},
        "train": {**TRAIN, **train},
    }
    path.write_text(json.dumps(content))
    return path


def layouts() -> dict[str, Row]:
    """The mesh of every row of the table in meshconfigs/README.md, on eight devices."""
    text = (ROOT / "meshconfigs" / "README.md").read_text(encoding="utf-8")
    table = text.split("| for | layout | param_layout |\n", 1)[1].split("\n\n", 1)[0]
    found = {}
    for title, layout, stored in re.findall(r"^\| ([^|]+) \| `([^`]+)` \| (?:`([^`]+)` )?\|$", table, re.M):
        axes = list(dict.fromkeys(re.findall(r"[:+](\w+)", f"{layout}, {stored}")))
        sizes = [DEVICES] if len(axes) == 1 else [DEVICES // 2, 2]
        shape = ", ".join(f"{axis}:{size}" for axis, size in zip(axes, sizes, strict=True))
        found[title] = {"shape": shape, "layout": layout, "param_layout": stored}
    assert len(found) == table.count("| `batch:"), found
    return found


def environment(quick: bool = True) -> dict[str, str]:
    """Ours, without what would tell JAX of other devices or processes; see `QUICK`."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    return {**own, "PYTHONPATH": str(ROOT), **(QUICK if quick else {})}


def launch(
    config: Path, run: Path, processes: int, *keys: str, devices: int = DEVICES, quick: bool = True
) -> subprocess.Popen:
    """Starts a run as a user does: `neojax launch`, or `neojax train` for one process."""
    command = ["train", str(config), f"train.run_dir={run}", *keys]
    if processes > 1:
        first = ["launch", f"--processes={processes}", f"--cpu-devices={devices // processes}", "--"]
        command = [*first, *command]
    else:
        command.append(f"mesh.cpu_devices={devices}")
    return subprocess.Popen(
        [sys.executable, "-m", "neojax", *command],
        env=environment(quick),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def trained(config: Path, run: Path, processes: int, *keys: str, **options: Any) -> list[float]:
    """The losses of a run that goes on to its end."""
    process = launch(config, run, processes, *keys, **options)
    _, error = process.communicate()
    if process.returncode:
        raise SystemExit(f"{run.name} ended with status {process.returncode}:\n{error[-3000:]}")
    return losses(run)


def losses(run: Path) -> list[float]:
    """The losses that a run has logged so far, of all steps from 1 on."""
    from neojax.training.metrics import read_metrics

    rows = read_metrics(run) if (run / "metrics.jsonl").exists() else []
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1)), run
    return [row["loss"] for row in rows]


def parameters(run: Path) -> dict[str, Any]:
    """The arrays of the newest checkpoint, read by one process on one device."""
    import numpy as np

    import neojax

    return {name: np.asarray(value) for name, value in neojax.load(run).params().items()}


def apart(ours: list[float], theirs: list[float]) -> float:
    """The largest difference of two runs' losses."""
    return max(abs(a - b) for a, b in zip(ours, theirs, strict=True))


def layouts_part(folder: Path, options: argparse.Namespace) -> Iterator[Row]:
    """Four processes against one, for every layout."""
    import numpy as np

    cases: list[tuple[str, Row, Row, Row]] = [
        (title, {**SHRUNK, **(EXPERTS if "experts" in mesh["layout"] else {})}, mesh, {})
        for title, mesh in layouts().items()
    ]
    masked = {"mlm_mask_id": VOCAB - 1, "mlm_random_token_prob": 0.1}
    cases.append(("FSDP, masked tokens", {**SHRUNK, "causal": False}, FSDP, masked))
    for i, (title, model, mesh, train) in enumerate(cases):
        config = write_config(folder, f"layout{i}", model, mesh, **train)
        runs = {count: folder / f"layout{i}-{count}" for count in (1, 4)}
        found = {count: trained(config, run, count) for count, run in runs.items()}
        one, four = (parameters(run) for run in runs.values())
        differences = {name: float(np.abs(one[name] - four[name]).max()) for name in one}
        worst = max(differences, key=differences.__getitem__)
        yield {
            "what": title,
            **mesh,
            "losses": [found[1][0], found[1][-1]],
            "loss_difference": apart(found[1], found[4]),
            "loss_difference_of_first_step": abs(found[1][0] - found[4][0]),
            "parameter_difference": differences[worst],
            "parameter": worst,
            "parameter_rms_difference": math.sqrt(
                sum(float(((one[n] - four[n]) ** 2).sum()) for n in one) / sum(p.size for p in one.values())
            ),
            "parameter_rms": math.sqrt(
                sum(float((p**2).sum()) for p in one.values()) / sum(p.size for p in one.values())
            ),
        }


def kills_part(folder: Path, options: argparse.Namespace) -> Iterator[Row]:
    """One of two processes killed, again and again; a run that gets to its end is followed by another."""
    mesh = {"shape": "data:2, model:2", "layout": "batch:data, heads:model, mlp:model, vocab:model"}
    config = write_config(
        folder, "kills", SHRUNK, {**mesh, "param_layout": "embd:data"}, steps=options.kill_steps,
        checkpoint_every=5,
    )  # fmt: skip
    start = time.monotonic()
    job = launch(config, folder / "whole", 2, devices=4)
    first = wait_for(lambda: bool(losses(folder / "whole")), job) - start
    _, error = job.communicate()
    assert job.returncode == 0, error
    whole, training = losses(folder / "whole"), time.monotonic() - start - first
    yield {"what": "let alone", "steps": len(whole), "to_first_step": first, "from_there": training}
    draw = random.Random(0)
    done, number, equal = 0, 0, True
    while done < options.kills:
        run = folder / f"killed{number}"
        victim, starts = draw.randrange(2), done % 3 == 0
        moment = draw.uniform(0, first if starts else training / 2)
        if row := killed(config, run, victim, starts, moment):
            found = losses(run)
            row |= {"logged": len(found), "equal": found == whole[: len(found)]}
            done += 1
            yield {"what": f"kill {done}", "run": number, **row}
        else:
            equal &= losses(run) == whole
            number += 1
    if (folder / f"killed{number}").exists():
        equal &= trained(config, folder / f"killed{number}", 2, devices=4) == whole
        number += 1
    yield {"what": "runs killed and resumed to their end", "runs": number, "bit_for_bit": equal}


def killed(config: Path, run: Path, victim: int, starts: bool, moment: float) -> Row | None:
    """Kills one of two launched processes `moment` seconds after the start or (not `starts`) the first step
    that it logs: what became of the other. None where both were done."""
    metrics = run / "metrics.jsonl"
    before = metrics.stat().st_ino if metrics.exists() else None
    job = launch(config, run, 2, devices=4)

    def trains() -> bool:
        """Whether a step was logged behind those that the resumed run kept, which it writes to a new file."""
        is_new = metrics.exists() and metrics.stat().st_ino != before
        return job.poll() is not None or (is_new and len(losses(run)) > newest(run))

    if not starts:
        wait_for(trains)
    try:
        job.wait(moment)
    except subprocess.TimeoutExpired:
        children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
        if len(children) < 2:  # launch itself has hardly begun
            job.kill()
            job.communicate()
            return killed(config, run, victim, starts, moment + 5)
        begun = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(children[victim]), signal.SIGKILL)
        _, error = job.communicate()
        seconds = time.monotonic() - begun
    else:
        _, error = job.communicate()
    if job.returncode == 0:
        return None
    # The other's status where launch sees both end at once.
    assert job.returncode in (75, 128 + signal.SIGKILL), error
    lines = [line.removeprefix("[1] ") for line in error.splitlines() if "error: " in line]
    return {
        "victim": victim,
        "seconds_after": {"the start" if starts else "a step": moment},
        "seconds_to_end": seconds,
        "within_a_minute": seconds < HANG,
        "lines": lines,
    }


def times_part(folder: Path, options: argparse.Namespace) -> Iterator[Row]:
    """The demo's model: launch to the first logged step, then SIGTERM to a whole checkpoint and to the end of
    all."""
    mesh = {"shape": "data:4, model:2", "layout": "batch:data, heads:model, mlp:model, vocab:model"}
    config = write_config(
        folder, "times", DEMO, {**mesh, "param_layout": "embd:data"}, batch_size=8, microbatch=0, steps=100_000,  # noqa: E501
        checkpoint_every=100_000,
    )  # fmt: skip
    names = ("start_to_first_step", "sigterm_to_checkpoint", "sigterm_to_end")
    found: dict[int, list[tuple[float, float, float]]] = {1: [], 2: [], 4: []}
    for turn in range(options.rounds):
        for count in list(found)[:: 1 if turn % 2 else -1]:
            found[count].append(stopped(config, folder / f"times{turn}-{count}", count))
    for count, values in found.items():
        rounds = dict(zip(names, zip(*values)))
        medians = {f"{name}_seconds": statistics.median(rounds[name]) for name in names}
        yield {"what": f"{count} processes of {DEVICES // count} devices", **medians, "rounds": rounds}


def newest(run: Path) -> int:
    """The step of the last checkpoint that was saved, 0 where none was."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads((run / "newest.json").read_text())["step"] or 0
    return 0


def stopped(config: Path, run: Path, processes: int) -> tuple[float, float, float]:
    """Seconds from the launch to the first step, and from SIGTERM to the checkpoint and to the end."""
    start = time.monotonic()
    process = launch(config, run, processes, quick=False)
    try:
        first = wait_for(lambda: bool(losses(run)), process) - start
        wait_for(lambda: len(losses(run)) > 10, process)
        start = time.monotonic()
        process.send_signal(signal.SIGTERM)
        checkpoint = wait_for(lambda: newest(run) > 0) - start
        _, error = process.communicate(timeout=3 * HANG)
        assert process.returncode == 0, error
        return first, checkpoint, time.monotonic() - start
    finally:
        process.terminate()


def wait_for(is_there: Callable[[], bool], process: subprocess.Popen | None = None) -> float:
    """The time when `is_there` first says so; looks 50 times a second."""
    deadline = time.monotonic() + 10 * HANG
    while not is_there():
        assert time.monotonic() < deadline, "waited for ten minutes"
        assert process is None or process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    return time.monotonic()


def checkpoints_part(folder: Path, options: argparse.Namespace) -> Iterator[Row]:
    """A third of the steps each: four processes, one, four again."""
    thirds = (15, 30, 45)
    config = write_config(folder, "handed", SHRUNK, FSDP, steps=thirds[-1], decay_steps=thirds[-1])
    stays = trained(config, folder / "stays", 4)
    on_one_device = ("mesh.shape=data:1", "mesh.param_layout=")
    for what, keys, devices in (
        ("one process, the same mesh", (), DEVICES),
        ("one process with one device", on_one_device, 1),
    ):
        run = folder / f"handed-{devices}"
        trained(config, run, 4, f"train.steps={thirds[0]}")
        trained(config, run, 1, f"train.steps={thirds[1]}", *keys, devices=devices)
        moved = trained(config, run, 4)
        spans = zip((0, *thirds), thirds)
        there, middle, back = (apart(stays[a:b], moved[a:b]) for a, b in spans)
        yield {
            "what": f"4 processes, then {what}, then 4",
            "steps": thirds,
            "loss_difference": {"before": there, "in one process": middle, "back in 4": back},
        }


PARTS = {"layouts": layouts_part, "kills": kills_part, "times": times_part, "checkpoints": checkpoints_part}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"default: all of {', '.join(PARTS)}")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--kill-steps", type=int, default=40, help="length of the runs that are killed")
    parser.add_argument("--rounds", type=int, default=3, help="of times")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    os.environ["JAX_PLATFORMS"] = "cpu"  # of this process, which reads checkpoints
    path = RESULTS / "rehearsal.json"
    for part in options.parts or PARTS:
        rows = []
        with tempfile.TemporaryDirectory() as folder:
            write_store(Path(folder))
            QUICK["JAX_COMPILATION_CACHE_DIR"] = f"{folder}/cache"
            for row in PARTS[part](Path(folder), options):
                print(json.dumps(row), flush=True)
                rows.append({**row, "load_average": os.getloadavg()[0]})
                kept = json.loads(path.read_text()) if path.exists() else {}
                kept[part] = {**circumstances(), "rows": rows}
                path.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
