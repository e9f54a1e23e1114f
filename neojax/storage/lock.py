"""One owner of a folder in a bucket: an object that only one can create, and that its owner writes anew while
it lives.

The store lets one of several create FOLDER/lock (`if-generation-match: 0` on gs://, `If-None-Match: *` on
s3://). Its owner writes it again every BEAT seconds with another number; whoever finds it watches it for
PATIENCE, and removes one that stays as it was. Two that do so at once know after SETTLE whose it is.
"""

import contextlib
import json
import secrets
import threading
import time
from collections.abc import Callable
from typing import Any

from neojax.errors import NeojaxError
from neojax.lock import BEAT, NAME, PATIENCE, SETTLE, owner_text, say, taken, this_process
from neojax.storage.remote import BucketPath


class BucketLock:
    """As `neojax.lock.Lock`, of a folder in a bucket."""

    def __init__(self, folder: str, doing: str = "written", say: Callable[[str], None] = say):
        self.folder, self._doing, self._say = folder, doing, say
        self._path = BucketPath(folder) / NAME
        self._mine = {**this_process(), "token": secrets.token_hex(8)}
        self._beats = 0
        self._ended: threading.Event | None = None

    def __enter__(self) -> "BucketLock":
        self.take()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def take(self) -> None:
        """Makes this process the owner. Raises `NeojaxError` where another is, or where the bucket cannot be
        written."""
        was_another = False
        try:
            while not self._path.create(self._content()):
                was_another |= self._outlived()
            if was_another:
                time.sleep(SETTLE)  # a second that took over may have removed our lock for the one before
                if (owner := self._owner() or {}).get("token") != self._mine["token"]:
                    raise self._taken(owner)
        except OSError as e:
            raise NeojaxError(f"{self.folder}: cannot write there: {e.strerror or e}") from None
        self._ended = threading.Event()
        self._beating = threading.Thread(target=self._beat, args=(self._ended,), daemon=True)
        self._beating.start()

    def check(self) -> None:
        """Makes sure that the lock is still ours, where somebody may have deleted or replaced it. Raises
        `NeojaxError`."""
        if self._ended is None:
            return
        with contextlib.suppress(OSError):  # a store that does not answer is for whoever writes next to tell
            owner = self._owner()
            if owner is None:
                self._forget()
                self.take()
            elif owner.get("token") != self._mine["token"]:
                self._forget()
                raise self._taken(owner)

    def release(self) -> None:
        """Gives the lock back."""
        if self._ended is None:
            return
        self._forget()
        with contextlib.suppress(OSError):
            if (self._owner() or {}).get("token") == self._mine["token"]:
                self._path.unlink(missing_ok=True)

    def _outlived(self) -> bool:
        """Removes the lock of an owner that shows no sign of life; False where there is none any more. Raises
        `NeojaxError` where it does show one."""
        former = self._owner()
        if former is None:
            return False
        was = f"{self.folder} was being {self._doing} by {owner_text(former)}"
        self._say(f"{was}; waiting {PATIENCE:.0f} seconds for a sign of life")
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            time.sleep(min(2.0, PATIENCE / 10))
            now = self._owner()
            if now is None:
                return False
            if now != former:
                raise self._taken(now)
        self._say(f"{was}, which ended without giving back its lock; taking over")
        self._path.unlink(missing_ok=True)
        return True

    def _taken(self, owner: dict[str, Any]) -> NeojaxError:
        return taken(self.folder, self._doing, owner_text(owner))

    def _owner(self) -> dict[str, Any] | None:
        """What the lock says of its owner; None where there is none, {} where it cannot be understood."""
        try:
            owner = json.loads(self._path.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError:
            return {}
        return owner if isinstance(owner, dict) else {}

    def _content(self) -> bytes:
        self._beats += 1
        return json.dumps({**self._mine, "beat": self._beats}).encode()

    def _beat(self, ended: threading.Event) -> None:
        while not ended.wait(BEAT):
            with contextlib.suppress(OSError):
                # A process that was stopped for long may find that another has taken over.
                if (self._owner() or {}).get("token") == self._mine["token"] and not ended.is_set():
                    self._path.write_bytes(self._content())

    def _forget(self) -> None:
        if self._ended is not None:
            self._ended.set()
            self._beating.join(5.0)  # else it might write once more what is removed next
        self._ended = None
