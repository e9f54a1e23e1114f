"""A thousand steps in short form: what a run holds and leaves does not grow with its length."""

import gc
import os
from collections.abc import Callable
from pathlib import Path

import jax
import pytest

from neojax.runs.checkpoint import Checkpoints
from neojax.training.loop import train
from neojax.training.metrics import read_metrics

STEPS = 1000
# Bytes of resident memory in 400 steps and 8 saves: 3 to 6 MB, less and less, are the allocator's; 30 kB a
# step are not.
LEAK = 12 << 20


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def entries(folder: str) -> int:
    return len(os.listdir(folder))


HELD: dict[str, Callable[[], int]] = {
    "bytes": resident,
    "threads": lambda: entries("/proc/self/task"),
    "files": lambda: entries("/proc/self/fd"),
    "arrays": lambda: len(jax.live_arrays()),
    # Of TensorStore's some 50 lists stay behind after every save: it makes them of JSON and keeps a
    # reference.
    "objects": lambda: sum(type(found) is not list for found in gc.get_objects()),
}


def size(run: Path) -> dict[str, int]:
    """Files and bytes of a run directory, by what lies at its top."""
    found: dict[str, int] = {}
    for file in run.rglob("*"):
        if file.is_file():
            top = file.relative_to(run).parts[0]
            found[f"{top} files"] = found.get(f"{top} files", 0) + 1
            found[f"{top} bytes"] = found.get(f"{top} bytes", 0) + file.stat().st_size
    return found


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="reads what Linux tells of a process")
def test_a_long_run_holds_and_leaves_no_more_than_a_short_one(settings, tmp_path, monkeypatch):
    held: list[dict[str, int]] = []
    left: list[dict[str, int]] = []
    wait = Checkpoints.wait

    def measured(self):
        wait(self)  # of the save before: nothing is on its way then
        gc.collect()
        held.append({name: count() for name, count in HELD.items()})
        left.append(size(tmp_path))

    monkeypatch.setattr(Checkpoints, "wait", measured)
    train(
        settings(
            tmp_path,
            "model.n_layer=1", "model.attention_types=[global]", "model.n_embd=8", "model.n_head=1", "model.n_ctx=8",  # noqa: E501
            "mesh.shape=data:1", "mesh.layout=", "mesh.param_layout=", "mesh.cpu_devices=1", "train.microbatch=0",  # noqa: E501
            f"train.steps={STEPS}", "train.log_every=5", "train.eval_every=50", "train.checkpoint_every=50",
            "train.keep=2", "train.tensorboard=true",
        )
    )  # fmt: skip
    assert read_metrics(tmp_path)[-1]["step"] == STEPS
    saves = STEPS // 50
    assert len(held) >= saves
    middle, end = (
        {name: min(counts[name] for counts in held[first : first + 6]) for name in HELD}
        for first in (saves // 3, saves - 6)
    )
    growth = {name: end[name] - middle[name] for name in HELD}
    assert growth["bytes"] < LEAK, growth
    assert growth["files"] <= 0 and growth["arrays"] <= 0, growth
    assert growth["threads"] < 4, growth  # pools fill up slowly; a thread of every save would be 8
    assert growth["objects"] < 100, growth  # every fourth step one
    assert sorted(int(folder.name) for folder in (tmp_path / "checkpoints").iterdir()) == [950, 1000]
    third = len(left) // 3
    for name in left[-1]:
        before, after = (
            max(sizes.get(name, 0) for sizes in part) for part in (left[third:-third], left[-third:])
        )
        if name in ("metrics.jsonl bytes", "tensorboard bytes"):  # what the run tells
            assert after < 2 * before, name
        # Orbax puts an array into more files or fewer, as its threads happen to meet; a checkpoint more is
        # half
        else:
            assert after <= 1.3 * before + 100, name
