import json
import os
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest

from neojax.errors import NeojaxError
from neojax.training import metrics
from neojax.training.metrics import MetricsWriter, Progress, Throughput, read_metrics


def test_floats_survive_to_the_last_bit(tmp_path):
    values = np.random.default_rng(0).normal(size=20).astype("f4")
    writer = MetricsWriter(tmp_path, tensorboard=False)
    for step, value in enumerate(values, 1):
        writer.write(step, {"loss": jnp.asarray(value), "mfu": None, "tokens": np.int64(step)})
        assert len(read_metrics(tmp_path)) == step  # on disk at once
    rows = read_metrics(tmp_path)
    assert [np.float32(r["loss"]) for r in rows] == list(values)
    assert rows[3]["step"] == 4 and rows[3]["tokens"] == 4 and rows[3]["mfu"] is None


def test_resuming_leaves_each_step_once_even_after_a_torn_line(tmp_path):
    writer = MetricsWriter(tmp_path, tensorboard=False)
    for step in range(1, 8):
        writer.write(step, {"loss": 1 / 3 + step})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as f:
        f.write('{"step": 8, "lo')
    writer = MetricsWriter(tmp_path, tensorboard=False, resume_step=4)
    for step in range(5, 9):
        writer.write(step, {"loss": 1 / 3 + step})
    assert read_metrics(tmp_path) == [{"step": s, "loss": 1 / 3 + s} for s in range(1, 9)]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize(
    "broken",
    [
        b'{"ste',
        b"5",
        b"{}",
        b"null",
        b"[1]",
        b'{"step": null}',
        b'{"step": "2"}',
        b'{"step": 1e400}',
        b"\xff",
        b"[" * 9999,
    ],
)
def test_a_broken_line_in_the_middle_is_an_error(broken, tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n' + broken + b'\n{"step": 3}\n')
    with pytest.raises(NeojaxError, match="line 2"):
        MetricsWriter(tmp_path, tensorboard=False, resume_step=3)


def test_tensorboard_gets_the_numbers(tmp_path):
    writer = MetricsWriter(tmp_path, tensorboard=True)
    writer.write(3, {"loss": 2.5, "mfu": None})
    writer.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"loss" in events.read_bytes() and b"mfu" not in events.read_bytes()


def test_only_process_0_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(metrics.jax, "process_index", lambda: 1)
    writer = MetricsWriter(tmp_path / "run", tensorboard=True)
    writer.write(1, {"loss": 1.0})
    writer.close()
    with Progress(2) as progress:
        progress.update(2, 1.0)
        progress.note("done")
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr().out == ""


def test_throughput_leaves_out_the_first_step_and_pauses(monkeypatch):
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    meter = Throughput()
    now = 100.0  # compiling
    meter.add(1000)
    assert meter.rate() is None
    now = 102.0
    meter.add(1000)
    with meter.pause():
        now = 150.0
    now = 152.0
    meter.add(1000)
    assert meter.rate() == 500
    now = 153.0
    meter.add(1000)
    assert meter.rate() == 1000


def test_progress_prints_plain_lines_without_a_terminal(capsys, monkeypatch):
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with Progress(100) as progress:
        progress.begin(10)
        for step in range(11, 101):
            now += 1.0
            progress.update(step, 2.0, 12345.6)
        progress.note("a [bold] note")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "step 11/100  loss 2.0000  12,346 tokens/s  0:01:29 left"
    assert lines[-2].startswith("step 100/100") and lines[-1] == "a [bold] note"
    assert len(lines) == 5


UNTAKEN = """
import sys
from neojax.training.metrics import Progress
progress = Progress(2)
for step in (1, 2):
    progress.note("word")
    progress.update(step, 1.0)
print("went on", file=sys.stderr)
"""


@pytest.mark.parametrize("output", ["a full disk", "a reader that has left"])
def test_a_run_goes_on_whose_output_nobody_takes(output):
    if output == "a full disk":
        if not os.path.exists("/dev/full"):
            pytest.skip("needs /dev/full")
        out = os.open("/dev/full", os.O_WRONLY)
    else:
        gone, out = os.pipe()
        os.close(gone)
    done = subprocess.run([sys.executable, "-c", UNTAKEN], stdout=out, stderr=subprocess.PIPE, text=True)
    os.close(out)
    assert done.stderr.startswith("went on")


def test_metrics_file_is_json_lines(tmp_path):
    writer = MetricsWriter(tmp_path, tensorboard=False)
    writer.write(1, {"loss": float("nan")})
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["loss"] != json.loads(line)["loss"]
