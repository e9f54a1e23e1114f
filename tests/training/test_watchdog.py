"""A step that takes too long ends its process; nothing else does."""

import threading
import time

import jax.numpy as jnp
import pytest

from neojax.training import watchdog
from neojax.training.watchdog import FACTOR, LEAST_SECONDS, UNKNOWN_SECONDS, Watchdog

RESULT = jnp.zeros(())


@pytest.fixture
def ends(monkeypatch):
    """The lines that processes would have ended with."""
    lines = []
    monkeypatch.setattr(watchdog, "end", lambda line, status: lines.append((line, status)))
    return lines


def steps(dog, seconds, first=1):
    for number, spent in enumerate(seconds, first):
        with dog.step(number) as ran:
            time.sleep(spent)
            ran(RESULT)


def test_neither_the_first_step_nor_what_is_between_steps_counts(ends, tmp_path):
    with Watchdog(tmp_path, 0.3) as dog:
        steps(dog, [0.8, 0, 0])
        time.sleep(0.8)
        with dog.step(4):  # the run was asked to stop while it waited for input
            pass
        time.sleep(0.8)
    assert not ends and not dog.log.parent.exists()


def test_a_step_that_takes_too_long_is_told_with_every_thread(ends, tmp_path):
    with Watchdog(tmp_path, 0.3) as dog:
        steps(dog, [0, 0])
        with dog.step(3):
            give_up = time.monotonic() + 60
            while not ends and time.monotonic() < give_up:
                time.sleep(0.05)
    line, status = ends[0]
    assert status == 75 and line.startswith("step 3 has not ended after ") and str(dog.log) in line
    assert "test_watchdog.py" in dog.log.read_text() and "step 3" in dog.log.read_text()


def test_a_run_that_ends_while_its_log_is_written_is_not_ended_afterwards(ends, tmp_path, monkeypatch):
    writing = threading.Event()

    def write(self, line):
        writing.set()
        time.sleep(0.5)

    monkeypatch.setattr(Watchdog, "_write", write)
    with Watchdog(tmp_path, 0.3) as dog:
        steps(dog, [0, 0])
        with dog.step(3) as ran:
            assert writing.wait(60)
            ran(RESULT)
    assert not dog._watching.is_alive() and not ends


def test_zero_means_no_watchdog(ends, tmp_path):
    with Watchdog(tmp_path, 0) as dog:
        steps(dog, [0, 0, 0.5])
    assert not ends


def test_the_default_is_many_times_the_median_step(tmp_path):
    dog = Watchdog(tmp_path)
    assert dog.limit() == UNKNOWN_SECONDS
    dog._took.extend([9.0, 10.0, 500.0])
    assert dog.limit() == FACTOR * 10.0
    dog._took.extend([0.01] * 10)
    assert dog.limit() == LEAST_SECONDS
