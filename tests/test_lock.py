"""A folder that is written has one owner, whatever became of the one before."""

import errno
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import threading

import pytest

from neojax import lock
from neojax.errors import NeojaxError
from neojax.lock import Lock

# Takes the lock of a folder and says so (or what it was told), then waits to be ended.
OWNER = """
import sys
from neojax.errors import NeojaxError
from neojax.lock import Lock
sys.stdin.readline()
try:
    with Lock(sys.argv[1], "trained"):
        print("mine", flush=True)
        sys.stdin.read()
except NeojaxError as e:
    print(e, flush=True)
"""


def start(folder):
    command = [sys.executable, "-c", OWNER, str(folder)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def go(process):
    process.stdin.write("\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


@pytest.fixture
def said(monkeypatch):
    """What a lock says in this test; it does not wait long for signs of life."""
    monkeypatch.setattr(lock, "PATIENCE", 0.5)
    monkeypatch.setattr(lock, "SETTLE", 0.3)
    monkeypatch.setattr(lock, "BEAT", 0.05)
    return []


def refused(folder, said=None):
    with pytest.raises(NeojaxError) as error:
        Lock(folder, "trained", (said if said is not None else []).append).take()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_second_owner_is_refused_and_told_who_the_first_is(tmp_path):
    process = start(tmp_path)
    assert go(process) == "mine"
    host = re.escape(os.uname().nodename)
    assert re.match(
        rf"{tmp_path} is being trained by process {process.pid} on {host} since 20\d\d-\d\d-\d\d \d\d:",
        refused(tmp_path),
    )
    process.communicate()
    assert not list(tmp_path.iterdir())
    with Lock(tmp_path):
        assert [f.name for f in tmp_path.iterdir()] == ["lock"]


def test_the_lock_of_a_killed_owner_is_taken_over_and_said(tmp_path):
    process = start(tmp_path)
    assert go(process) == "mine"
    process.send_signal(signal.SIGKILL)
    process.wait()
    said = []
    with Lock(tmp_path, "trained", said.append):
        (line,) = said
        assert f"process {process.pid} on" in line and "without giving back its lock; taking over" in line
        assert f"process {os.getpid()} on" in refused(tmp_path)
    with Lock(tmp_path, "trained", said.append):
        assert len(said) == 1  # it was given back


def test_of_several_starts_at_once_one_owns(tmp_path):
    processes = [start(tmp_path / "new") for _ in range(4)]
    for process in processes:
        process.stdin.write("\n")
    for process in processes:
        process.stdin.flush()
    lines = [process.stdout.readline().strip() for process in processes]
    assert lines.count("mine") == 1
    owner = processes[lines.index("mine")].pid
    assert sum(f"is being trained by process {owner} on" in line for line in lines) == 3
    for process in processes:
        process.communicate()


def test_a_lock_that_is_given_back_while_another_waits_is_never_had_twice(tmp_path):
    """The file goes with its owner: whoever opened it before must not count it as the lock."""
    inside, worst = [], []

    def work():
        for _ in range(50):
            try:
                with Lock(tmp_path, say=worst.append):
                    inside.append(1)
                    worst.append(len(inside))
                    inside.pop()
            except NeojaxError:
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert set(worst) == {1}


def of_another_machine(folder):
    """Makes the lock that lies there one of another machine."""
    path = folder / "lock"
    path.write_text(json.dumps({**json.loads(path.read_text()), "machine": "another", "host": "far"}))


@pytest.mark.parametrize("has_flock", [True, False])
def test_where_the_kernel_cannot_tell_a_sign_of_life_decides(tmp_path, monkeypatch, said, has_flock):
    """A lock of another machine, on a file system that has no locks or keeps them to one machine."""

    def no_locks(*_):
        if not has_flock:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with Lock(tmp_path, "trained", said.append):
        of_another_machine(tmp_path)
        assert re.search(r"is being trained by process \d+ on far since", refused(tmp_path, said))
        assert "waiting" in said[0]
        content = (tmp_path / "lock").read_text()
    (tmp_path / "lock").write_text(content)  # left behind, and nobody touches it
    said.clear()
    with Lock(tmp_path, "trained", said.append):
        assert "waiting" in said[0] and "taking over" in said[1]


def test_without_flock_two_at_once_settle_whose_it_is(tmp_path, monkeypatch, said):
    def no_locks(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    told, barrier, locks = [], threading.Barrier(2), [Lock(tmp_path, say=said.append) for _ in range(2)]
    for number, own in enumerate(locks):
        own._me["process"] = number

    def take(own):
        barrier.wait()
        try:
            own.take()
            told.append("mine")
        except NeojaxError as e:
            told.append(str(e))

    threads = [threading.Thread(target=take, args=(own,)) for own in locks]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert told.count("mine") == 1 and len(told) == 2
    for own in locks:
        own.release()


def test_an_owner_whose_lock_was_deleted_takes_it_again_or_stops(tmp_path):
    with Lock(tmp_path, "trained") as first:
        first.check()
        (tmp_path / "lock").unlink()
        first.check()
        assert f"process {os.getpid()}" in refused(tmp_path)
        (tmp_path / "lock").unlink()
        process = start(tmp_path)
        assert go(process) == "mine"
        with pytest.raises(NeojaxError, match=f"being trained by process {process.pid} on"):
            first.check()
    assert (tmp_path / "lock").exists()  # the other's
    process.communicate()


def test_a_folder_made_for_the_lock_alone_goes_with_it(tmp_path):
    with Lock(tmp_path / "a"):
        pass
    with Lock(tmp_path / "b"):
        (tmp_path / "b" / "file").touch()
    assert [f.name for f in tmp_path.iterdir()] == ["b"]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    assert "file is a file; name a folder" in refused(tmp_path / "file")
    assert "cannot write there: Not a directory" in refused(tmp_path / "file" / "run")
    assert "cannot write there" in refused("/proc/run")


def test_what_is_no_lock_is_overwritten(tmp_path, said):
    (tmp_path / "lock").write_text("hello")
    with Lock(tmp_path, "trained", said.append):
        assert "an unknown host" in said[0]


def test_a_full_disk_leaves_no_lock_behind_and_no_folder(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "there").mkdir()
    monkeypatch.setattr(os, "pwrite", full)
    assert "No space left on device" in refused(tmp_path / "new")
    assert "No space left on device" in refused(tmp_path / "there")
    assert [p.name for p in tmp_path.rglob("*")] == ["there"]


def test_a_link_to_a_folder_that_is_not_there_yet_is_followed(tmp_path):
    (tmp_path / "link").symlink_to("away/new")
    with Lock(tmp_path / "link"):
        assert (tmp_path / "away" / "new" / lock.NAME).is_file()
    assert [p.name for p in tmp_path.iterdir() if p.name != "away"] == ["link"]
    assert not (tmp_path / "away" / "new").exists()
