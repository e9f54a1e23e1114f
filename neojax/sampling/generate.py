"""Text from prompts: batches of rows, decoded by chunks, until each meets its end."""

import warnings
import weakref
import zlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from neojax.arguments import flag, wrong
from neojax.errors import NeojaxError
from neojax.models import Transformer
from neojax.sampling.batching import bucket, power_of_two
from neojax.sampling.decode import Decoder
from neojax.sampling.requests import (
    Sampling,
    encode,
    end_ids,
    listed,
    sample_count,
    settings_of,
    start_token,
    usable,
)
from neojax.sampling.rows import Batch, FinishReason, Row, Stream
from neojax.sampling.text import Continuation

BATCH = 64  # rows decoded at once at most


@dataclass
class Sample:
    """One continuation. `text` and `tokens` are what follows the prompt, without the end-of-document token;
    the text is cut before a stop string. `finish_reason` is stop, eos or length; `text` is None without a
    tokenizer. `logprobs` are the log-probabilities of `tokens` where they were asked for, else None."""

    prompt: str | list[int]
    text: str | None
    tokens: list[int]
    finish_reason: FinishReason
    logprobs: list[float] | None = None


class Sampler:
    """Generation with one model. Keep it for many calls: it holds the weights laid out for decoding, and what
    it compiled serves every prompt length of a bucket and all settings of the filters."""

    def __init__(self, model: Transformer):
        self.config = model.config
        self.tokenizer = model.tokenizer
        self.eos_token_id = model.eos_token_id
        self.decoder = Decoder(model)

    def generate(
        self, prompts: Sequence[str | list[int]], rows: Sequence[Row], num_samples: int, logprobs: bool
    ) -> list[Sample]:
        """Finishes `rows`, `num_samples` of every prompt; see `generate`."""
        need = max(bucket(len(row.prompt)) + row.limit for row in rows)
        batch = Batch(self.decoder, min(self.config.n_ctx, power_of_two(need)), logprobs=logprobs)
        # Rows of like length together, so that little is padded; where half of them are finished, others
        # join.
        waiting = deque(sorted(rows, key=lambda row: len(row.prompt)))
        while waiting or batch.rows:
            free = BATCH - len(batch.rows)
            if waiting and 2 * free >= BATCH:
                batch.join([waiting.popleft() for _ in range(min(free, len(waiting)))])
            batch.step()
        return [
            Sample(
                prompts[row.index // num_samples],
                None if self.tokenizer is None else row.continuation.text,
                row.continuation.tokens,
                row.finish_reason or "length",
                row.logprobs[: len(row.continuation.tokens)] if logprobs else None,
            )
            for row in rows
        ]

    def rows(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sequence[Sampling],
        num_samples: int = 1,
        stream: Stream | None = None,
    ) -> list[Row]:
        """`num_samples` rows for every prompt, given as tokens, with its settings."""
        rows: list[Row] = []
        usual = () if self.eos_token_id is None else (self.eos_token_id,)
        for tokens, one in zip(self._fit(prompts, sampling), sampling):
            limit = min(one.max_new_tokens, max(1, self.config.n_ctx - len(tokens)))
            ends = usual if one.eos is None else end_ids(one.eos, self.config.n_vocab)
            before = _since(tokens, (*ends, *usual))
            for sample in range(num_samples):
                key = _row_key(one.seed, tokens, sample)
                continuation = Continuation(self.tokenizer, one.stop, before)
                rows.append(Row(len(rows), tokens, one, limit, ends, key, continuation, stream))
        return rows

    def _fit(self, prompts: Sequence[Sequence[int]], sampling: Sequence[Sampling]) -> list[tuple[int, ...]]:
        """The last tokens of prompts that leave room: for max_new_tokens, or half the context if that is
        less."""
        n_ctx = self.config.n_ctx
        rooms = [max(1, n_ctx - one.max_new_tokens, n_ctx // 2) for one in sampling]
        if long := [i for i, (tokens, room) in enumerate(zip(prompts, rooms)) if len(tokens) > room]:
            others = f" ({len(long) - 1} more are too long as well)" if len(long) > 1 else ""
            warnings.warn(
                f"prompt {long[0] + 1} has {len(prompts[long[0]])} tokens{others}; its last "
                f"{rooms[long[0]]} are used, since prompt and continuation share a context of {n_ctx}",
                stacklevel=4,
            )
        fitted = [tuple(tokens[-room:]) for tokens, room in zip(prompts, rooms)]
        left = [max(1, n_ctx - len(tokens)) for tokens in fitted]
        if short := [i for i, one in enumerate(sampling) if left[i] < one.max_new_tokens]:
            least = min(short, key=lambda i: left[i])
            warnings.warn(
                f"max_new_tokens is {sampling[least].max_new_tokens}, but prompt and continuation share a "
                f"context of {n_ctx}: after the longest prompt at most {left[least]} follow",
                stacklevel=4,
            )
        return fitted


def generate(
    model: Transformer,
    prompts: Any,
    *,
    sampling: Sampling | Sequence[Sampling] | None = None,
    num_samples: int = 1,
    stream: Stream | None = None,
    return_samples: bool = False,
    return_logprobs: bool = False,
    **settings: Any,
) -> Any:
    """Continues `prompts`: a text or a list of token ids (which needs no tokenizer), or a list of such; ids
    may also be arrays, of one dimension or, for prompts of one length, of two.

    How is said by `settings`, the fields of `neojax.Sampling`: max_new_tokens=128, temperature=1.0, top_k=0,
    top_p=1.0, min_p=0.0, repetition_penalty=1.0, entmax=False, seed=0, stop=(), eos=None. `sampling`, a
    `Sampling` or a list with one for every prompt, says what else they are: prompts of one call may differ in
    all.

    The same seed gives the same text, whatever else is in the batch and whatever the mesh. Prompt and
    continuation share n_ctx positions: a prompt keeps its last n_ctx - max_new_tokens tokens, or n_ctx / 2 if
    that is more, with a warning if it was longer. `stream(index, text)` is called with pieces of text as they
    come; index counts samples, those of one prompt together.

    Returns the continuation (a str; token ids where there is no tokenizer) for one prompt and one sample,
    else a list in the order of prompts, each `num_samples` times; with `return_samples` always a list of
    `Sample`. So it is with `return_logprobs`, and a sample's `logprobs` are then those of its tokens, in nats
    as the model has them: of the logits alone, whatever temperature, penalty and filters made of them, so
    that they are those of `neojax.score`. Raises `NeojaxError`.
    """
    usable(model, "continue a text")
    given, single = listed(prompts, model.config.n_vocab)
    each = settings_of(sampling, settings, len(given), model)
    num_samples = sample_count(num_samples)
    if stream is not None and not callable(stream):
        raise wrong("stream", stream, "a function of the sample's index and a piece of text")
    for name, value in (("return_samples", return_samples), ("return_logprobs", return_logprobs)):
        flag(name, value)
    with model.layout.in_force() as is_free:
        if not is_free:
            raise NeojaxError("generate runs by itself: call it outside of jax.jit and its like")
        sampler = sampler_of(model)
    encoded = [encode(model, prompt) or [start_token(model, "the prompt is empty")] for prompt in given]
    rows = sampler.rows(encoded, each, num_samples, stream)
    samples = sampler.generate(given, rows, num_samples, return_logprobs)
    if return_samples or return_logprobs:
        return samples
    texts = [sample.tokens if sample.text is None else sample.text for sample in samples]
    return texts[0] if single and num_samples == 1 else texts


_samplers: "weakref.WeakKeyDictionary[Transformer, tuple[list[Any], Sampler]]" = weakref.WeakKeyDictionary()


def sampler_of(model: Transformer) -> Sampler:
    """The sampler of `model`, made at the first call and again when its parameters have been replaced."""
    weights = list(model.params().values())
    kept, sampler = _samplers.get(model, ([], None))
    if sampler is None or any(a is not b for a, b in zip(kept, weights)):
        sampler = Sampler(model)
        _samplers[model] = weights, sampler
    sampler.tokenizer, sampler.eos_token_id = model.tokenizer, model.eos_token_id
    return sampler


def _since(tokens: Sequence[int], ends: Sequence[int]) -> Sequence[int]:
    """The tokens of the last document: those behind the last of `ends`."""
    last = max((place for place, token in enumerate(tokens) if token in ends), default=-1)
    return tokens[last + 1 :]


@jax.jit
def _fold(seed: jax.Array, prompt: jax.Array, sample: jax.Array) -> jax.Array:
    key = jax.random.key(seed, impl="threefry2x32")
    return jax.random.key_data(jax.random.fold_in(jax.random.fold_in(key, prompt), sample))


def _row_key(seed: int, prompt: tuple[int, ...], sample: int) -> np.ndarray:
    """uint32 [2]: other prompts and other samples of a prompt draw other numbers."""
    content = zlib.crc32(np.asarray(prompt, np.int32).tobytes())
    return np.asarray(_fold(np.uint32(seed), np.uint32(content), np.uint32(sample)))
