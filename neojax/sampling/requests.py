"""What is asked of a sampler: prompts and settings, checked before anything runs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from neojax.arguments import IDS, flag, real, text, token_ids, whole, wrong
from neojax.errors import NeojaxError

_PROMPTS = "a text, a list of token ids, or a list of either"

# The settings that are numbers: how each is read, what is good, and how that is said.
_NUMBERS: dict[str, tuple[Callable[..., float], Callable[[float], bool], str]] = {
    "max_new_tokens": (whole, lambda n: n >= 1, "at least 1"),
    "temperature": (real, lambda x: 0 <= x < float("inf"), "0 (greedy) or more"),
    "top_k": (whole, lambda n: n >= 0, "0 (off) or a number of tokens"),
    "top_p": (real, lambda x: 0 < x <= 1, "above 0 and at most 1 (off)"),
    "min_p": (real, lambda x: 0 <= x <= 1, "0 (off) to 1"),
    "repetition_penalty": (real, lambda x: 0 < x < float("inf"), "above 0; 1 is off"),
    "seed": (whole, lambda n: 0 <= n < 2**32, "0 to 4294967295"),
    "num_samples": (whole, lambda n: n >= 1, "at least 1"),
}


@dataclass(frozen=True)
class Sampling:
    """How prompts are continued, as `generate` says. Raises `NeojaxError` for what is of another type or out of range."""

    max_new_tokens: int = 128
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    entmax: bool = False
    seed: int = 0
    num_samples: int = 1
    stop: str | Sequence[str] = ()

    def __post_init__(self) -> None:
        for name, (read, good, expected) in _NUMBERS.items():
            object.__setattr__(self, name, read(name, getattr(self, name), good, expected))
        object.__setattr__(self, "entmax", flag("entmax", self.entmax))
        stop = [self.stop] if isinstance(self.stop, str) else self.stop
        if not isinstance(stop, list | tuple):
            raise wrong("stop", stop, "a text or a list of texts")
        stop = tuple(text(f"stop string {i}", one) for i, one in enumerate(stop, start=1))
        if not all(stop):
            raise NeojaxError("a stop string is empty; leave it out, or give the text to stop at")
        object.__setattr__(self, "stop", stop)


def listed(prompts: Any, n_vocab: int) -> tuple[list[str | list[int]], bool]:
    """Prompts one by one, each a text or a list of ids, and whether it was a single one that is not in a list.

    Takes a text, token ids (a list, or an array of one dimension), or a list of either (or an array of two dimensions).
    Raises `NeojaxError` for anything else, for no prompts, and for ids outside the vocabulary.
    """
    if isinstance(prompts, str):
        return [text("the prompt", prompts)], True
    if hasattr(prompts, "__array__"):
        prompts = np.asarray(prompts)
        if not prompts.ndim:
            raise wrong("prompts", prompts, _PROMPTS)
    elif not isinstance(prompts, list | tuple | range):
        raise wrong("prompts", prompts, _PROMPTS)
    if not len(prompts):
        raise NeojaxError(f"no prompt is given; give {_PROMPTS}")
    if not any(isinstance(one, Sequence) or getattr(one, "shape", ()) for one in prompts):
        return [_ids(prompts, n_vocab, "the prompt")], True
    names = [f"prompt {number}" for number in range(1, len(prompts) + 1)]
    return [
        text(name, str(one)) if isinstance(one, str) else _ids(one, n_vocab, name)
        for name, one in zip(names, prompts)
    ], False


def _ids(prompt: Any, n_vocab: int, name: str) -> list[int]:
    ids = token_ids(prompt, n_vocab, name)
    if ids.ndim != 1:
        raise wrong(name, prompt, f"a text, or a list of {IDS}")
    return ids.tolist()


def end_ids(eos: Any, n_vocab: int) -> tuple[int, ...]:
    """The token ids at which a row ends: one, or a list of them."""
    ids = token_ids(eos, n_vocab, "eos")
    if ids.ndim > 1:
        raise wrong("eos", eos, f"a token id or a list of {IDS}")
    return tuple(np.atleast_1d(ids).tolist())
