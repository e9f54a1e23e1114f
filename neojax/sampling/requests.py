"""What is asked of a sampler or a scorer: texts and settings, checked and encoded before anything runs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import jax
import numpy as np

from neojax.arguments import IDS, flag, real, text, token_ids, whole, wrong
from neojax.data.tokenizer import usual_end
from neojax.errors import NeojaxError, suggest
from neojax.models import Transformer

_TEXTS = "a text, a list of token ids, or a list of either"

# The settings that are numbers: how each is read, what is good, and how that is said.
_NUMBERS: dict[str, tuple[Callable[..., float], Callable[[float], bool], str]] = {
    "max_new_tokens": (whole, lambda n: n >= 1, "at least 1"),
    "temperature": (real, lambda x: 0 <= x < float("inf"), "0 (greedy) or more"),
    "top_k": (whole, lambda n: n >= 0, "0 (off) or a number of tokens"),
    "top_p": (real, lambda x: 0 < x <= 1, "above 0 and at most 1 (off)"),
    "min_p": (real, lambda x: 0 <= x <= 1, "0 (off) to 1"),
    "repetition_penalty": (real, lambda x: 0 < x < float("inf"), "above 0; 1 is off"),
    "seed": (whole, lambda n: 0 <= n < 2**32, "0 to 4294967295"),
}


@dataclass(frozen=True)
class Sampling:
    """How one row is continued; the rows of a batch may differ in every setting.

    A row ends at a text of `stop` (of which nothing is returned), at a token of `eos` (an id or several;
    None: the model's end-of-document token, (): none) or after `max_new_tokens`. A `temperature` of 0 takes
    the likeliest token; `top_k` 0, `top_p` 1, `min_p` 0 and `repetition_penalty` 1 are off; the filters apply
    in that order and as in Hugging Face. With `entmax` tokens are drawn from a sparse distribution (gpt-neo's
    entmax_sampling, for models trained with train.loss=entmax). The same `seed` gives the same text. Raises
    `NeojaxError` for what is of another type or out of range.
    """

    max_new_tokens: int = 128
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    entmax: bool = False
    seed: int = 0
    stop: str | Sequence[str] = ()
    eos: int | Sequence[int] | None = None

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
        if self.eos is not None:
            object.__setattr__(
                self, "eos", end_ids(self.eos, 2**31)
            )  # the model's vocabulary is not known yet


def settings_of(
    sampling: Any, changes: Mapping[str, Any], prompts: int, model: Transformer
) -> list[Sampling]:
    """The settings of each of `prompts` prompts: `sampling` (one for all, or a list with one for each, or
    None) with `changes`. Raises `NeojaxError`, also for what `model` cannot do."""
    known = [field.name for field in fields(Sampling)]
    for name in changes:
        if name not in known:
            raise NeojaxError(f"generate has no setting {name}{suggest(name, known)}")
    each = (
        list(sampling)
        if isinstance(sampling, list | tuple)
        else [Sampling() if sampling is None else sampling] * prompts
    )
    if len(each) != prompts or not all(isinstance(one, Sampling) for one in each):
        raise wrong("sampling", sampling, f"a Sampling, or a list of {prompts}, one for every prompt")
    found = [replace(one, **changes) for one in each] if changes else each
    for one in found:
        end_ids(one.eos or (), model.config.n_vocab)
        if one.stop and model.tokenizer is None:
            raise NeojaxError(
                "stop strings need a tokenizer and this model has none; stop at token ids with eos"
            )
    return found


def sample_count(num_samples: Any) -> int:
    """How many samples of every prompt are asked for. Raises `NeojaxError`."""
    return whole("num_samples", num_samples, lambda n: n >= 1, "at least 1")


def usable(model: Any, use: str) -> Transformer:
    """`model`, if it is one with weights that sees only what stands before a token. Raises `NeojaxError`."""
    if not isinstance(model, Transformer):
        raise wrong("model", model, "a model, as neojax.load gives it")
    model.check_bound()
    if not model.config.causal:
        raise NeojaxError(
            "model.causal is false: a model trained on masked tokens sees both sides of a token and cannot "
            f"{use}; use its logits, model(tokens)"
        )
    if "lm" not in model.config.head.kinds:
        raise NeojaxError(
            f"model.head.kinds={list(model.config.head.kinds)}: this model cannot {use} but says something "
            f"of it; "
            "use neojax predict"
        )
    return model


def listed(given: Any, n_vocab: int, what: str = "prompt") -> tuple[list[str | list[int]], bool]:
    """Texts one by one, each a text or a list of ids, and whether it was a single one that is not in a list.

    Takes a text, token ids (a list, or an array of one dimension), or a list of either (or an array of two
    dimensions). `what` is what the text is. Raises `NeojaxError` for anything else, for no texts, and for ids
    outside the vocabulary.
    """
    if isinstance(given, str):
        return [text(f"the {what}", given)], True
    if isinstance(given, jax.core.Tracer):
        raise NeojaxError(
            f"the {what} is traced by jax.jit or its like; generating and scoring compile themselves: call "
            "them outside"
        )
    if hasattr(given, "__array__"):
        given = np.asarray(given)
        if not given.ndim:
            raise wrong(f"{what}s", given, _TEXTS)
    elif not isinstance(given, list | tuple | range):
        raise wrong(f"{what}s", given, _TEXTS)
    if not len(given):
        raise NeojaxError(f"no {what} is given; give {_TEXTS}")
    if not any(isinstance(one, Sequence) or getattr(one, "shape", ()) for one in given):
        return [_ids(given, n_vocab, f"the {what}")], True
    names = [f"{what} {number}" for number in range(1, len(given) + 1)]
    return [
        text(name, str(one)) if isinstance(one, str) else _ids(one, n_vocab, name)
        for name, one in zip(names, given)
    ], False


def _ids(prompt: Any, n_vocab: int, name: str) -> list[int]:
    ids = token_ids(prompt, n_vocab, name)
    if ids.ndim != 1:
        raise wrong(name, prompt, f"a text, or a list of {IDS}")
    return ids.tolist()


def encode(
    model: Transformer, given: str | list[int], what: str = "prompt", *, begins: bool = True
) -> list[int]:
    """The tokens of a text, encoded as documents are for training; where it `begins` a row, after the model's
    `first_tokens`. Ids are left as they are."""
    if isinstance(given, list):
        return list(given)
    first = list(model.first_tokens) if begins else []
    return first + (tokenizer_of(model, what).encode(given, add_special_tokens=False).ids if given else [])


def tokenizer_of(model: Transformer, what: str) -> Any:
    """The model's tokenizer. Raises `NeojaxError` where it has none."""
    if model.tokenizer is None:
        raise NeojaxError(f"the model has no tokenizer: give {what}s as lists of token ids")
    return model.tokenizer


def start_token(model: Transformer, cause: str, mend: str = "") -> int:
    """The end-of-document token, after which all text begins. Raises `NeojaxError` where the model has none:
    `cause` says why it is needed, `mend` what to do without."""
    end = model.eos_token_id
    if end is None and model.tokenizer is not None:
        end = usual_end(model.tokenizer)
    if end is None:
        raise NeojaxError(f"{cause} and the model has no end-of-document token to start from{mend}")
    token_ids(end, model.config.n_vocab, f"{cause}, and the model's end-of-document token is its start")
    return end


def end_ids(eos: Any, n_vocab: int) -> tuple[int, ...]:
    """The token ids at which a row ends: one, or a list of them."""
    ids = token_ids(eos, n_vocab, "eos")
    if ids.ndim > 1:
        raise wrong("eos", eos, f"a token id or a list of {IDS}")
    return tuple(np.atleast_1d(ids).tolist())
