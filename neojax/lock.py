"""One owner of a folder that is written: a lock that dies with its process.

The lock is `flock` on FOLDER/lock, which the kernel gives up when its owner ends in any way, SIGKILL
included, and which NFS carries to other hosts. The file says who the owner is. Where the file system has no
`flock`, or keeps it to one host, the owner's sign of life decides: it touches the file every BEAT seconds,
and whoever finds the lock of another machine watches it for PATIENCE before taking it over. Reading a folder
needs no lock.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from neojax.errors import NeojaxError

NAME = "lock"
BEAT = 10.0  # seconds between signs of life
PATIENCE = 30.0  # seconds without one after which an owner on another machine counts as dead
SETTLE = 2.0  # seconds after which two that took a lock at once, without flock, know whose it is
_UNSUPPORTED = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOLCK)


def say(text: str) -> None:
    print(text, file=sys.stderr)


class Lock:
    """The lock of `folder`, which is made where it does not exist. A context manager; `take` and `release`
    without.

    `doing` says what the owner does to the folder ("trained", "written"). `say` is given a line where an
    owner before ended without giving the lock back.
    """

    def __init__(self, folder: str | Path, doing: str = "written", say: Callable[[str], None] = say):
        self.folder, self._doing, self._say = Path(folder), doing, say
        self._path = self.folder / NAME
        self._fd: int | None = None
        self._made = False
        self._me = {**this_process(), "machine": _machine()}

    def __enter__(self) -> "Lock":
        self.take()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def take(self) -> None:
        """Makes this process the owner. Raises `NeojaxError` where another is, or where the folder cannot be
        written."""
        try:
            self._made = not self.folder.exists()
            if not self._made and not self.folder.is_dir():
                raise NeojaxError(f"{self.folder} is a file; name a folder")
            self._target().mkdir(parents=True, exist_ok=True)
            while self._fd is None:
                self._try()
        except OSError as e:
            raise NeojaxError(f"{self.folder}: cannot write there: {e.strerror or e}") from None
        finally:
            if self._fd is None:
                self._unmake()
        self._ended = threading.Event()
        self._beating = threading.Thread(target=self._beat, args=(self._fd, self._ended), daemon=True)
        self._beating.start()

    def check(self) -> None:
        """Makes sure that the lock is still ours, where somebody may have deleted its file. Raises
        `NeojaxError`."""
        with contextlib.suppress(OSError):  # a mount that is gone is for whoever writes next to tell
            if self._fd is not None and not self._is_there(self._fd):
                self._forget()
                self.take()

    def release(self) -> None:
        """Gives the lock back; a folder made for it that nothing was written into goes too."""
        if self._fd is None:
            return
        with contextlib.suppress(OSError):
            if self._is_there(self._fd):
                self._path.unlink()
        self._forget()
        self._unmake()

    def _unmake(self) -> None:
        """Removes the folder, if it was made for the lock and is empty."""
        if self._made:
            with contextlib.suppress(OSError):
                self._target().rmdir()

    def _target(self) -> Path:
        """The folder itself where a link leads to it, which need not exist yet."""
        return Path(os.path.realpath(self.folder))

    def _try(self) -> None:
        """One try; leaves `_fd` None where the file was replaced meanwhile."""
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        is_locked: bool | None = None
        try:
            is_locked = _flock(fd)
            if is_locked is None:
                raise self._taken(fd)
            if not self._is_there(fd):  # whoever held it gave it back, and with it removed the file
                os.close(fd)
                return
            former = _owner(fd)
            if former is not None:
                # On this machine the kernel has just said that the owner is gone.
                is_here = is_locked and former.get("machine") == self._me["machine"]
                was = f"{self.folder} was being {self._doing} by {owner_text(former)}"
                if not is_here:
                    self._say(f"{was}; waiting {PATIENCE:.0f} seconds for a sign of life")
                    if self._is_alive():
                        raise self._taken(fd)
                self._say(f"{was}, which ended without giving back its lock; taking over")
            os.ftruncate(fd, 0)
            os.pwrite(fd, json.dumps(self._me).encode(), 0)
            os.fsync(fd)
            if not is_locked:
                time.sleep(SETTLE)
                if not self._is_there(fd) or _owner(fd) != self._me:
                    raise self._taken(fd)
        except BaseException:
            with contextlib.suppress(OSError):  # unsigned, as on a full disk
                if is_locked and not os.fstat(fd).st_size and self._is_there(fd):
                    self._path.unlink()
            os.close(fd)
            raise
        self._fd = fd

    def _taken(self, fd: int) -> NeojaxError:
        owner = _owner(fd)
        if owner is None:  # it has only just taken the lock, and is about to sign it
            time.sleep(0.5)
            owner = _owner(fd)
        who = "another process" if owner is None else owner_text(owner)
        return taken(self.folder, self._doing, who)

    def _is_there(self, fd: int) -> bool:
        try:
            return os.path.samestat(os.fstat(fd), os.stat(self._path))
        except FileNotFoundError:
            return False

    def _is_alive(self) -> bool:
        """Whether the owner gives a sign of life within PATIENCE. Only changes count: clocks of hosts may
        differ."""
        first = self._touched()
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            time.sleep(min(1.0, PATIENCE / 10))
            if self._touched() != first:
                return True
        return False

    def _touched(self) -> int | None:
        with (
            contextlib.suppress(FileNotFoundError),
            open(self._path, "rb") as f,
        ):  # opening asks an NFS server anew
            return os.fstat(f.fileno()).st_mtime_ns
        return None

    @staticmethod
    def _beat(fd: int, ended: threading.Event) -> None:
        while not ended.wait(BEAT):
            with contextlib.suppress(OSError):
                os.utime(fd)

    def _forget(self) -> None:
        fd, self._fd = self._fd, None
        if fd is None:
            return
        self._ended.set()
        self._beating.join(1.0)  # it uses the descriptor, and may hang with a mount that does
        os.close(fd)


def _flock(fd: int) -> bool | None:
    """True: locked; None: another process has it; False: this file system has no such locks."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    except OSError as e:
        if e.errno in _UNSUPPORTED:
            return False
        raise
    return True


def _owner(fd: int) -> dict[str, Any] | None:
    """What the lock's file says of its owner; None where it is empty, {} where it cannot be understood."""
    content = os.pread(fd, 4096, 0)
    if not content:
        return None
    try:
        owner = json.loads(content)
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def this_process() -> dict[str, Any]:
    """What a lock says of its owner."""
    return {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S %z"),
    }


def taken(folder: str | Path, doing: str, who: str) -> NeojaxError:
    """The error for a lock that somebody has."""
    return NeojaxError(f"{folder} is being {doing} by {who}; wait for it, stop it, or name another folder")


def owner_text(owner: dict[str, Any]) -> str:
    """An owner, as its lock tells it, for a message."""
    unknown = "an unknown"
    process = owner.get("process", unknown)
    return (
        f"process {process} on {owner.get('host', unknown + ' host')} since "
        f"{owner.get('since', unknown + ' time')}"
    )


def _machine() -> str:
    """This boot of this machine, the same in all its containers; on systems that do not tell, its name."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()
