"""Reading the keys of another program's config, each with its type, and collecting what they say in ours."""

import contextlib
import math
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neojax.config import set_at, value_at
from neojax.errors import NeojaxError

Sections = Mapping[str, Mapping[str, Any]]


class Keys:
    """The keys of a config. Whoever asks for one says of which type it has to be: another is one line.

    Numbers and truth values may be written as texts, as gpt-neo's own configs do; null is as if not given.
    """

    def __init__(self, path: Path, raw: Mapping[str, Any]):
        self.path = path
        self.raw = {key: value for key, value in raw.items() if value is not None}
        self.unread = set(self.raw)

    def __contains__(self, key: str) -> bool:
        return key in self.raw

    def get(self, key: str) -> Any:
        """The value as it stands, None where there is none."""
        self.unread.discard(key)
        return self.raw.get(key)

    def wrong(self, key: str, expected: str, value: Any) -> NeojaxError:
        return NeojaxError(f"{self.path}: {key}: expected {expected}, got {reprlib.repr(value)}")

    def number(self, key: str, default: Any = None) -> Any:
        value = self.get(key)
        if value is None:
            return default
        return self.as_number(key, value)

    def as_number(self, key: str, value: Any, expected: str = "a number") -> float:
        """`value`, which stands somewhere under `key`, as a finite number."""
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise self.wrong(key, expected, value)
        return number

    def count(self, key: str, default: int | None = None, least: int = 0) -> Any:
        value, expected = self.get(key), f"a whole number, at least {least}"
        if value is None:
            return default
        number = self.as_number(key, value, expected)
        if number != int(number) or number < least:
            raise self.wrong(key, expected, value)
        # As it is written: a float has 53 bits, and a seed may have 63.
        is_exact = isinstance(value, int) or (isinstance(value, str) and value.strip().isdecimal())
        return int(value) if is_exact else int(number)

    def flag(self, key: str) -> bool:
        value = self.get(key)
        word = value.strip().lower() if isinstance(value, str) else value
        if word in ("true", 1):
            return True
        if word in (None, "false", "", 0):
            return False
        raise self.wrong(key, "true or false", value)

    def text(self, key: str, default: str = "") -> str:
        value = self.get(key)
        if value is not None and not (isinstance(value, str) and all(c.isprintable() for c in value)):
            raise self.wrong(key, "a text of one line", value)
        return default if value is None else value


@dataclass
class Conversion:
    """The sections of a config: section -> key -> value, where each came from, what was left out, and notes
    on what was taken otherwise than it was said.

    What is `given` on the command line is not asked of the other config, whatever stands there.
    """

    given: Sections = field(default_factory=dict)
    sections: dict[str, dict[str, Any]] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def is_given(self, name: str) -> bool:
        return value_at(self.given, name, self) is not self

    def put(self, name: str, value: Callable[[], Any], origin: str) -> None:
        """Sets `name` to what `value()` reads, unless that is None."""
        if self.is_given(name):
            with contextlib.suppress(NeojaxError):
                value()  # its keys have been read, and need not be listed as ignored
        elif (read := value()) is not None:
            set_at(self.sections, name.split("."), read)
            self.origin[name] = origin

    def note(self, name: str, text: str) -> None:
        """Notes how `name` was read, unless it is given."""
        if not self.is_given(name):
            self.notes.append(text)

    def get(self, name: str, default: Any = None) -> Any:
        """The value that `name` will have: the one given, or the one read."""
        return value_at(self.given, name, value_at(self.sections, name, default))

    def count(self, name: str, default: int) -> int:
        """As `get`, for reckoning with: `default` for what is no count (it is refused where it is used)."""
        value = self.get(name, default)
        return value if type(value) is int and value > 0 else default
