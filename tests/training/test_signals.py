"""SIGTERM and Ctrl-C: saving comes first, evaluation never, and the process ends in time whatever it is
doing."""

import os
import signal
import subprocess
import sys
import threading
import time

import jax
import pytest

from neojax import config as configuration
from neojax.runs.checkpoint import Checkpoints
from neojax.training import feed, loop
from neojax.training import run as run_module
from neojax.training.loop import train
from neojax.training.metrics import read_metrics
from neojax.training.signals import Stop, Stopped

BOTH = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)

# A process whose main thread is in native code that nothing interrupts, as it is while XLA compiles.
STUCK = """
import ctypes, signal, sys
from neojax.training.signals import SIGNALS, Stop

with Stop(ends_process=True) as stop:
    if sys.argv[1] != "none":
        stop.protect(float(sys.argv[1]))
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # another thread meets them
    print("stuck", flush=True)
    ctypes.CDLL(None).sleep(60)
"""


def ended(process, within=30):
    """(status, standard output, standard error) of a process that ends by itself."""
    try:
        out, err = process.communicate(timeout=within)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, out, err


def started(code, *args, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


@BOTH
def test_with_nothing_to_save_the_process_ends_at_once(number):
    process = started(STUCK, "none")
    process.stdout.readline()
    process.send_signal(number)
    status, _, err = ended(process)
    assert (status, err) == (
        128 + number,
        f"{number.name}: stopped before the first step, with nothing to save\n",
    )


@BOTH
def test_the_time_to_save_is_bounded(number):
    process = started(STUCK, 0.3)
    process.stdout.readline()
    process.send_signal(number)
    status, _, err = ended(process)
    first, last = err.splitlines()
    assert status == 128 + number
    assert first == f"{number.name}: stopping after saving; a second signal ends the run at once"
    assert last.startswith(f"{number.name}: not saved within train.grace_seconds=0.3; the same command goes")


def test_a_second_signal_ends_the_process_at_once():
    process = started(STUCK, 50)
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert "stopping after saving" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    status, _, err = ended(process)
    assert status == 128 + signal.SIGTERM
    assert err.startswith("SIGTERM: ended at once by a second signal") and err.count("\n") == 1


def test_a_thread_that_waits_for_input_does_not_hold_up_the_end():
    """The signal comes while the main thread is busy; another one reads what never comes."""
    process = started(
        """
import threading, time
from neojax.training.signals import Stop
with Stop(ends_process=True) as stop:
    stop.protect(60)
    threading.Thread(target=threading.Event().wait).start()
    print("now", flush=True)
    while not stop.asked:
        time.sleep(0.01)
"""
    )
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 0


def test_the_end_of_the_terminal_stops_a_run_but_not_under_nohup():
    """Shells pass SIGHUP on and the terminal sends its own: the second is no wish to end at once."""
    for nohup in (False, True):
        process = started(
            f"import signal; signal.signal(signal.SIGHUP, signal.SIG_{'IGN' if nohup else 'DFL'})" + STUCK, 50
        )
        process.stdout.readline()
        process.send_signal(signal.SIGHUP)
        if not nohup:
            assert process.stderr.readline().startswith("SIGHUP: stopping after saving")
            process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        if nohup:
            assert process.stderr.readline().startswith("SIGTERM: stopping after saving")
            process.send_signal(signal.SIGTERM)
        status, _, err = ended(process)
        assert status == 128 + signal.SIGTERM and err.startswith("SIGTERM: ended at once"), err


def test_what_it_says_reaches_nobody_and_the_run_still_ends_in_time():
    """`neojax train ... | tee log`: Ctrl-C ends tee too."""
    process = started(STUCK, 0.3)
    process.stdout.readline()
    process.stdout.close()
    process.stderr.close()
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 128 + signal.SIGINT


@BOTH
def test_a_process_that_a_signal_ends_gives_back_its_lock(number, tmp_path):
    lock = f"""
from neojax.lock import Lock
lock = Lock({str(tmp_path)!r})
lock.take()
"""
    process = started(
        lock + STUCK.replace("    if sys", "    stop.before_end(lock.release)\n    if sys"), "none"
    )
    process.stdout.readline()
    assert os.listdir(tmp_path) == ["lock"]
    process.send_signal(number)
    assert ended(process)[0] == 128 + number
    assert os.listdir(tmp_path) == []


def test_waiting_is_given_up_at_any_instruction():
    """The signal falls somewhere into `waiting`, also where it begins and ends: Stopped, or what came just
    before."""
    come = given_up = 0
    for microseconds in range(0, 400, 2):
        with Stop() as stop:
            stop.protect(1)
            timer = threading.Timer(microseconds / 1e6, os.kill, [os.getpid(), signal.SIGTERM])
            timer.start()
            try:
                assert stop.waiting(time.sleep, 0.0002) is None
                come += 1
            except Stopped:
                given_up += 1
            timer.join()
        assert stop.asked
    assert come and given_up


@pytest.mark.parametrize("ends_process", [False, True])
def test_a_signal_that_comes_just_before_the_wait_begins_ends_it(ends_process):
    """Its handler in C has run on another thread, as it may, and the main thread waits for a lock."""
    process = started(
        f"""
import signal, threading
from neojax.training.signals import SIGNALS, Stop, Stopped

def interrupt(stop):
    while not stop._waits:
        pass
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    print("now", flush=True)
    threading.Event().wait()

signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
with Stop({ends_process}) as stop:
    stop.protect(60)
    threading.Thread(target=interrupt, args=(stop,), daemon=True).start()
    try:
        stop.waiting(threading.Event().wait)
    except Stopped:
        print("given up", flush=True)
"""
    )
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    assert ended(process)[:2] == (0, "given up\n")


def test_signals_are_as_before_afterwards():
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    descriptors = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    for ends_process in (False, True):
        with Stop(ends_process):
            pass
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before
    assert signal.set_wakeup_fd(-1) == -1
    if descriptors is not None:
        assert len(os.listdir("/proc/self/fd")) == descriptors


def test_without_a_process_of_its_own_a_run_that_has_not_begun_is_interrupted(
    settings, tmp_path, monkeypatch
):
    monkeypatch.setattr(loop, "build", lambda *_: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(KeyboardInterrupt):
        train(settings(tmp_path))


def stopped_at(run, step, capsys):
    """The run has said that it stopped at `step`, and has saved it."""
    said = " ".join("".join(capsys.readouterr()).split())
    assert f"stopped at step {step}; the same command goes on" in said
    with Checkpoints(run) as checkpoints:
        assert checkpoints.latest() == step


def test_an_evaluation_is_left_for_saving(settings, tmp_path, monkeypatch, capsys):
    original, calls = feed.make_eval_step, []

    def counted(*args):
        step = original(*args)

        def eval_step(*batch):
            calls.append(None)
            if len(calls) == 3:
                signal.raise_signal(signal.SIGTERM)
            return step(*batch)

        return eval_step

    monkeypatch.setattr(feed, "make_eval_step", counted)
    train(settings(tmp_path, "train.eval_every=7", "train.eval_batches=0"))
    assert len(calls) == 3
    stopped_at(tmp_path, 7, capsys)
    assert "validation_loss" not in read_metrics(tmp_path)[-1]


@pytest.mark.parametrize("step", [10, 20])
def test_an_evaluation_that_was_left_is_made_up_once(
    settings, whole_run, tmp_path, monkeypatch, capsys, step
):
    def rows(run):
        return [{k: v for k, v in row.items() if "second" not in k} for row in read_metrics(run)]

    original, calls = feed.evaluate, []

    def stopped(*args):
        calls.append(None)
        if len(calls) == step // 10:
            signal.raise_signal(signal.SIGTERM)
        return original(*args)

    monkeypatch.setattr(feed, "evaluate", stopped)
    train(settings(tmp_path))
    stopped_at(tmp_path, step, capsys)
    assert rows(tmp_path)[:-1] == rows(whole_run)[: step - 1]
    assert "validation_loss" not in rows(tmp_path)[-1]
    # Going on does it, as it would have been done, and does not do it a second time.
    for _ in range(2):
        train(settings(tmp_path))
        assert rows(tmp_path) == rows(whole_run)
        assert len(calls) == 3


def test_a_run_that_is_asked_to_stop_does_not_begin_to_evaluate(settings, tmp_path, monkeypatch, capsys):
    original, calls = run_module.make_train_step, []

    def signalled(*args):
        step = original(*args)

        def train_step(*rest):
            calls.append(None)
            if len(calls) == 7:
                signal.raise_signal(signal.SIGINT)
            return step(*rest)

        return train_step

    monkeypatch.setattr(run_module, "make_train_step", signalled)
    monkeypatch.setattr(feed, "evaluate", lambda *_: pytest.fail("evaluated"))
    train(settings(tmp_path, "train.eval_every=7"))
    stopped_at(tmp_path, 7, capsys)


def test_while_a_save_is_in_progress(settings, tmp_path, monkeypatch, capsys):
    original = Checkpoints.save

    def save(self, step, *rest):
        original(self, step, *rest)
        if step == 5:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Checkpoints, "save", save)
    train(settings(tmp_path))
    stopped_at(tmp_path, 5, capsys)  # no further step is begun


# A run of the command line that says on standard output when `moment` has come to pass, which then does not
# end.
COMMAND = """
import sys, threading, time
import neojax.config
from neojax.cli import main

def never_ends():
    print("now", flush=True)
    threading.Event().wait()

moment, config = sys.argv[1:]
if moment == "import":
    read_yaml = neojax.config.read_yaml
    neojax.config.read_yaml = lambda *args: print("now", flush=True) or read_yaml(*args)
elif moment == "input":
    from neojax.data.loader import Windows
    read, come = Windows.__getitem__, []
    def blocked(self, i):
        come.append(i)
        if len(come) == 60:
            time.sleep(2)  # the steps before, and their save, come to their end
        return read(self, i) if len(come) < 60 else never_ends()
    Windows.__getitem__ = blocked
elif moment == "save":
    from neojax.runs.checkpoint import Checkpoints
    save = Checkpoints.save
    def blocked(self, step, *rest):
        if step == 10:
            self.wait()
            never_ends()
        save(self, step, *rest)
    Checkpoints.save = blocked

sys.exit(main(["train", config]))
"""


@pytest.mark.parametrize(
    "moment, status, words, saved",
    [
        ("import", 143, "stopped before the first step, with nothing to save", None),
        ("input", 0, "stopping after saving", 7),
        ("save", 143, "not saved within train.grace_seconds=1; the same command goes on", 5),
    ],
)
def test_the_command_ends_in_time_and_goes_on_as_if_it_had_not(
    moment, status, words, saved, settings, whole_run, tmp_path
):
    run = tmp_path / "run"
    config = settings(run, "data.prefetch=1", f"train.grace_seconds={1 if moment == 'save' else 60}")
    (tmp_path / "c.yml").write_text(configuration.dump(config))
    process = started(
        COMMAND,
        moment,
        tmp_path / "c.yml",
        JAX_COMPILATION_CACHE_DIR=jax.config.jax_compilation_cache_dir,
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0.3",
    )
    while process.stdout.readline().strip() != "now":
        assert process.poll() is None, process.stderr.read()
    process.send_signal(signal.SIGTERM)
    ending, _, err = ended(process)
    assert ending == status, err
    assert words in err and "Traceback" not in err
    assert not (run / "lock").exists()
    with Checkpoints(run) as checkpoints:
        latest = checkpoints.latest()
    assert (latest is None) == (saved is None)
    if saved:
        assert saved <= latest < 10
        train(config)
        ours, theirs = read_metrics(run), read_metrics(whole_run)
        assert [row["step"] for row in ours] == list(range(1, 21))
        assert [row["loss"] for row in ours] == [row["loss"] for row in theirs]
