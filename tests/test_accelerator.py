"""benchmarks/accelerator.py, tried here at tiny shapes; its jobs, which end in time and lose nothing; what it
imports."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
BENCHMARKS = REPOSITORY / "benchmarks"
sys.path.append(str(BENCHMARKS))

import accelerator  # noqa: E402
import jobs  # noqa: E402
from accelerator import OPEN, PARTS, Record, open_lines  # noqa: E402
from jobs import Job, Skip  # noqa: E402

READS_DATA = ("grain", "tensorboardX", "pyarrow", "zstandard", "google_crc32c")
BLOCKED = f"""
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {READS_DATA}:
            frame = sys._getframe(1)
            while "importlib" in frame.f_code.co_filename:
                frame = frame.f_back
            place = frame.f_code.co_filename
            # Other libraries, an environment inside the checkout too, may use what they find.
            if place.startswith({str(REPOSITORY)!r}) and "site-packages" not in place:
                raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocked())
"""


def run_blocked(program: str, *arguments: str) -> subprocess.CompletedProcess:
    """Runs a program where the packages that read data cannot be imported."""
    import jax

    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(REPOSITORY),
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir or "",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }
    command = [sys.executable, "-c", BLOCKED + program, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=REPOSITORY)


def test_training_and_sampling_import_nothing_that_only_reads_data():
    done = run_blocked(
        "import neojax\n"
        "from neojax.training.step import make_train_step\n"
        "from neojax.data.share import Share\n"
        "from neojax.models import flops\n"
        "from neojax.training import optimizer\n"
        "from neojax.kernels import chunked_loss, cudnn, splash\n"
        "neojax.generate"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_every_part_runs_here_at_tiny_shapes_without_the_packages_that_read_data(tmp_path):
    program = f"import runpy\nrunpy.run_path({str(BENCHMARKS / 'accelerator.py')!r}, run_name='__main__')"
    done = run_blocked(program, "--tiny", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "accelerator_tiny.json").read_text())
    assert list(record["parts"]) == list(PARTS)
    for name, part in record["parts"].items():
        assert part["chip"]["platform"] == "cpu" and part["versions"]["jax"] and part["date"]
        assert not [row for row in part["rows"] if "error" in row], name
        skipped = [row["skipped"] for row in part["rows"] if "skipped" in row]
        assert all("not installed" in reason for reason in skipped), skipped
    rows = {row["what"]: row for part in record["parts"].values() for row in part["rows"]}
    assert rows["tiny, neojax"]["tokens_per_second"] > 0
    assert rows["tiny, neojax, batch 1"]["share_of_bandwidth"] > 0
    assert rows["train.deterministic"]["equal_between_processes"] is True
    assert all(row["agrees"] for row in rows.values() if "agrees" in row)
    for line in open_lines({name: part["rows"] for name, part in record["parts"].items()}):
        assert line in done.stdout and line in (tmp_path / "accelerator_tiny.md").read_text()


def test_every_open_row_of_the_results_is_one_that_the_command_fills():
    text = (BENCHMARKS / "results" / "README.md").read_text()
    section = text.partition("\n## Open")[2].partition("\n## ")[0]
    assert [line for line in section.splitlines() if line.startswith("|")][2:] == open_lines({})
    assert {row.part for row in OPEN} == set(PARTS)


def test_the_jobs_for_an_h200_fill_the_open_rows_and_the_first_of_them_fit_into_a_part():
    """With figures made up, since there is no H200 here: that every row finds its own, by name."""
    chip = {"platform": "gpu", "kind": "NVIDIA H200", "count": 1, "memory": 130_000_000_000}
    figures = {
        "tokens_per_second": 9.0,
        "mfu": 0.5,
        "share_of_bandwidth": 0.75,
        "seconds": 2.0,
        "digest": "a",
    }
    figures |= {"agrees": True, "equal_within_a_process": True, "passed": 3, "failed": 0, "not_run": 0}
    filled = {}
    for name, part in PARTS.items():
        works = part.jobs(chip, False)
        assert len({job.what for job in works}) == len(works)
        assert sum(job.least for job in works[:4]) < 520
        rows = [{**figures, **job.options, "what": job.what} for job in works]
        if name == "kernels":
            rows = [{**figures, "what": f"sequence 8, {kernel}"} for kernel in ("cudnn", "xla")]
        if name == "compiler-options":
            rows = [{**figures, "what": what} for what in ("the table as it is, before", "without a=1")]
        filled[name] = rows + part.conclude(rows)
    assert not [line for line in open_lines(filled) if line.endswith("| open |")]
    assert [job.what for job in PARTS["training"].jobs({**chip, "memory": 16e9}, False) if not job.least] == [
        job.what for job in PARTS["training"].jobs(chip, False) if "1.3B" in job.what
    ]  # their state does not fit into 16 GB, which a row says


def two_rows(options):
    yield {"what": "first", "number": 1}
    yield {"number": 2}


def breaks(options):
    yield {"what": "before", "number": 1}
    raise ValueError("no\nsuch thing")


def absent(options):
    raise Skip("torch is not installed")
    yield {}


def hangs(options):
    yield {"what": "early", "number": 1}
    time.sleep(600)


def dies(options):
    yield {"what": "alive", "number": 1}
    os._exit(3)


def interrupted(options):
    yield {"what": "kept", "number": 1}
    raise KeyboardInterrupt


def test_jobs_in_processes_of_their_own_give_their_rows_and_say_what_went_wrong():
    works = [Job("two", two_rows), Job("breaks", breaks), Job("absent", absent), Job("dies", dies)]
    rows = list(jobs.run(works, time.time() + 120))
    assert [row["what"] for row in rows] == ["first", "two", "before", "breaks", "absent", "alive", "dies"]
    assert rows[3]["error"] == "ValueError: no such thing"
    assert rows[4]["skipped"] == "torch is not installed"
    assert "status 3" in rows[6]["error"]


def test_a_job_is_stopped_at_its_time_and_one_that_does_not_fit_is_skipped():
    start = time.time()
    works = [Job("hangs", hangs, most=8), Job("long", two_rows, least=1e6)]
    rows = list(jobs.run(works, time.time() + 300))
    assert time.time() - start < 60
    assert [row["what"] for row in rows] == ["early", "hangs", "long"]
    assert "stopped" in rows[1]["skipped"] and "are left" in rows[2]["skipped"]


def test_past_the_deadline_nothing_is_begun():
    assert list(jobs.run([Job("late", hangs)], time.time() - 1)) == [
        {"what": "late", "skipped": "0 s are left"}
    ]


def test_items_that_would_take_longer_than_is_left_are_skipped():
    options = {"deadline": time.time() + 100}
    assert [reason for _, reason in jobs.fitting("ab", options)] == ["", ""]
    assert all(reason for _, reason in jobs.fitting("ab", options, first=90))


def test_ctrl_c_keeps_what_was_measured_and_other_parts_stay(tmp_path, monkeypatch):
    class Part:
        @staticmethod
        def jobs(chip, tiny):
            return [Job("a", interrupted), Job("b", two_rows)]

        @staticmethod
        def conclude(rows):
            return [{"what": "conclusion", "ratio": len(rows)}]

    chip = {"what": "chip", "platform": "gpu", "kind": "Some GPU", "count": 1, "memory": None}
    earlier = Record(tmp_path, chip, tiny=False)
    earlier.begin("kernels").append({"what": "earlier", "seconds": 1.0})
    earlier.write()
    monkeypatch.setattr(accelerator, "PARTS", {"training": Part})
    with pytest.raises(KeyboardInterrupt):
        accelerator.measure(["training"], Record(tmp_path, chip, tiny=False), chip, 60, tiny=True)
    parts = json.loads((tmp_path / "accelerator_some_gpu.json").read_text())["parts"]
    assert [row["what"] for row in parts["training"]["rows"]] == ["kept", "conclusion"]
    assert parts["kernels"]["rows"] == [{"what": "earlier", "seconds": 1.0}]
