"""Arguments of the public functions: one of the wrong kind is one line that names it and says what is
expected."""

import operator
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from neojax.errors import NeojaxError

IDS = "token ids, whole numbers"


def wrong(name: str, value: Any, expected: str) -> NeojaxError:
    """The error for argument `name`, which is `value` where `expected` is."""
    return NeojaxError(f"{name} is {shown(value)}; expected {expected}")


def shown(value: Any) -> str:
    """A value in a few words, on one line."""
    if getattr(value, "shape", ()) and hasattr(value, "dtype"):
        return f"{value.dtype}{list(value.shape)}"
    words = " ".join(repr(value).split())
    return words if len(words) <= 60 else f"{words[:57]}..."


def whole(name: str, value: Any, good: Callable[[int], bool], expected: str) -> int:
    """A whole number that is `good`: of Python or numpy, no bool and no float."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise wrong(name, value, f"a whole number, {expected}")
    if not good(number):
        raise wrong(name, value, expected)
    return number


def real(name: str, value: Any, good: Callable[[float], bool], expected: str) -> float:
    """A number that is `good`, also in float32, as the device sees it; no bool, no text."""
    try:
        number = None if isinstance(value, bool | np.bool_ | str | bytes) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = None
    if number is None:
        raise wrong(name, value, f"a number, {expected}")
    with np.errstate(over="ignore"):
        seen = float(np.float32(number))
    if not (good(number) and good(seen)):
        raise wrong(name, value, expected)
    return number


def flag(name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, bool | np.bool_):
        raise wrong(name, value, "True or False")
    return bool(value)


def text(name: str, value: Any) -> str:
    """A text that UTF-8 can hold: Python's may have halves of surrogate pairs in them, which stand for bytes
    of a command line that were no UTF-8, too."""
    if not isinstance(value, str):
        raise wrong(name, value, "a text")
    try:
        value.encode()
    except UnicodeEncodeError as e:
        raise NeojaxError(
            f"{name} is not text that UTF-8 can hold: its character {e.start + 1} is {value[e.start]!r}; "
            "give it in UTF-8"
        ) from None
    return value


def token_ids(value: Any, n_vocab: int, name: str) -> Any:
    """Ids as an int32 array on this host; ids that are traced, or lie on other hosts too, as they are.

    Raises `NeojaxError` for what is no array of whole numbers and, where they are known, for an id outside
    [0, n_vocab), which a look-up on the device would silently move into it.
    """
    hidden = isinstance(value, jax.core.Tracer) or not getattr(value, "is_fully_addressable", True)
    try:
        ids = value if hidden else np.asarray(value)
    except (
        TypeError,
        ValueError,
        RuntimeError,
    ):  # rows of several lengths, or arrays that are not of this host
        raise wrong(name, value, f"{IDS}, in rows of one length") from None
    if ids.size and ids.dtype.kind not in "iu":
        raise wrong(name, value, IDS)
    if hidden:
        return ids
    if ids.size and (ids.min() < 0 or ids.max() >= n_vocab):
        outside = ids.min() if ids.min() < 0 else ids.max()
        raise NeojaxError(f"{name}: token {outside} is not in the vocabulary, 0 to {n_vocab - 1}")
    return ids.astype(np.int32)
