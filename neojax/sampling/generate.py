"""Text from prompts: batches of rows, decoded by chunks, until each meets its end."""

import warnings
import weakref
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import numpy as np

from neojax.arguments import flag, wrong
from neojax.errors import NeojaxError
from neojax.models import Transformer
from neojax.sampling.batching import bucket, power_of_two, rounded
from neojax.sampling.decode import Decoder
from neojax.sampling.logits import Controls
from neojax.sampling.requests import Sampling, encode, end_ids, listed, start_token, usable
from neojax.sampling.text import Continuation

FinishReason = Literal["stop", "eos", "length"]
Stream = Callable[[int, str], None]

CHUNK = 8  # tokens decoded for one round trip to the host; what is streamed comes in pieces of so many
BATCH = 64  # rows decoded at once at most


@dataclass
class Sample:
    """One continuation. `text` and `tokens` are what follows the prompt, without the end-of-document token; the text
    is cut before a stop string. `finish_reason` is stop, eos or length; `text` is None without a tokenizer. `logprobs` are
    the log-probabilities of `tokens` where they were asked for, else None."""

    prompt: str | list[int]
    text: str | None
    tokens: list[int]
    finish_reason: FinishReason
    logprobs: list[float] | None = None


@dataclass
class _Row:
    """One continuation in the making; `index` is its place in the result."""

    index: int
    prompt: tuple[int, ...]
    limit: int
    key: np.ndarray
    continuation: Continuation
    logprobs: list[float] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stream: Stream | None = field(default=None, repr=False)

    def push(self, tokens: Iterable[int], logprobs: Iterable[float], eos: Sequence[int]) -> None:
        """Takes new tokens (-1: none) with their log-probabilities, if any, and notes whether they end the row."""
        self.logprobs += logprobs
        taken: list[int] = []
        for token in tokens:
            if token < 0 or self.finish_reason:
                break
            if token in eos:
                self.finish_reason = "eos"
                break
            taken.append(int(token))
            if len(self.continuation.tokens) + len(taken) >= self.limit:
                self.finish_reason = "length"
        piece = self.continuation.push(taken, last=self.finish_reason is not None)
        if self.continuation.stopped:
            self.finish_reason = "stop"
        if piece and self.stream:
            self.stream(self.index, piece)


class Sampler:
    """Generation with one model. Keep it for many calls: it holds the weights laid out for decoding, and what it
    compiled serves every prompt length of a bucket and all settings of the filters."""

    def __init__(self, model: Transformer):
        self.config = model.config
        self.tokenizer = model.tokenizer
        self.eos_token_id = model.eos_token_id
        self._decoder = Decoder(model)
        self._parts = self._decoder.layout.split("batch")

    def generate(
        self,
        prompts: Sequence[str | list[int]],
        encoded: Sequence[list[int]],
        sampling: Sampling,
        eos: tuple[int, ...] | None = None,
        stream: Stream | None = None,
        logprobs: bool = False,
    ) -> list[Sample]:
        """Continues every prompt, `encoded` as tokens, `sampling.num_samples` times; see `generate`."""
        if sampling.stop and self.tokenizer is None:
            raise NeojaxError(
                "stop strings need a tokenizer and this model has none; stop at token ids with eos"
            )
        if eos is None:
            eos = () if self.eos_token_id is None else (self.eos_token_id,)
        controls = Controls(
            temperature=np.float32(sampling.temperature),
            top_k=np.int32(min(sampling.top_k, self.config.n_vocab)),
            top_p=np.float32(sampling.top_p),
            min_p=np.float32(sampling.min_p),
            repetition_penalty=np.float32(sampling.repetition_penalty),
            entmax=np.bool_(sampling.entmax),
        )
        max_new_tokens, num_samples = sampling.max_new_tokens, sampling.num_samples
        rows: list[_Row] = []
        for tokens in self._fit(encoded, max_new_tokens):
            limit = min(max_new_tokens, max(1, self.config.n_ctx - len(tokens)))
            for sample in range(num_samples):
                key = _row_key(sampling.seed, tokens, sample)
                rows.append(
                    _Row(
                        len(rows),
                        tokens,
                        limit,
                        key,
                        Continuation(self.tokenizer, sampling.stop),
                        stream=stream,
                    )
                )
        # Rows of like length together, so that little is padded.
        by_length = sorted(rows, key=lambda row: len(row.prompt))
        for first in range(0, len(rows), BATCH):
            self._run(by_length[first : first + BATCH], max_new_tokens, eos, controls, logprobs)
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

    def _fit(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[tuple[int, ...]]:
        """The last tokens of prompts that leave room: for `max_new_tokens`, or half the context if that is less."""
        n_ctx = self.config.n_ctx
        room = max(1, n_ctx - max_new_tokens, n_ctx // 2)
        if long := [number for number, tokens in enumerate(prompts, start=1) if len(tokens) > room]:
            others = f" ({len(long) - 1} more are too long as well)" if len(long) > 1 else ""
            warnings.warn(
                f"prompt {long[0]} has {len(prompts[long[0] - 1])} tokens{others}; its last {room} are used, since "
                f"prompt and continuation share a context of {n_ctx}",
                stacklevel=4,
            )
        fitted = [tuple(tokens[-room:]) for tokens in prompts]
        left = max(1, n_ctx - max(map(len, fitted)))
        if left < max_new_tokens:
            warnings.warn(
                f"max_new_tokens is {max_new_tokens}, but prompt and continuation share a context of {n_ctx}: after the "
                f"longest prompt at most {left} follow",
                stacklevel=4,
            )
        return fitted

    def _run(
        self, rows: list[_Row], max_new_tokens: int, eos: Sequence[int], controls: Controls, logprobs: bool
    ) -> None:
        """Prefills and decodes one batch, leaving its rows finished."""
        prompts = list(dict.fromkeys(row.prompt for row in rows))
        n_ctx = self.config.n_ctx
        length = min(n_ctx, bucket(max(map(len, prompts))))
        padded, start = self._pad(prompts, length)
        total = min(n_ctx, power_of_two(length + max_new_tokens))
        live: list[_Row | None] = [*rows, *[None] * (rounded(len(rows), self._parts) - len(rows))]

        def column(value: Callable[[_Row], Any]) -> np.ndarray:  # padding rows are like the first
            return np.array([value(row or rows[0]) for row in live])

        fetch = self._decoder.layout.fetch
        state = self._decoder.prefill(
            *(padded, start),
            column(lambda row: prompts.index(row.prompt)).astype(np.int32),
            column(lambda row: row.limit).astype(np.int32),
            column(lambda row: row.key),
            controls,
            slots={"global": total, "local": min(total, self.config.window_size)},
        )
        ends = np.array(eos or [-1], np.int32)
        new, of_new, time = state.token[:, None], state.logprob[:, None], length
        while True:
            found = fetch(new), fetch(of_new) if logprobs else np.zeros((len(live), 0))
            for row, tokens, their in zip(live, *found):
                if row is not None:
                    row.push(tokens, map(float, their), eos)
            live = [None if row is None or row.finish_reason else row for row in live]
            going = [place for place, row in enumerate(live) if row is not None]
            if not going:
                return
            if (smaller := rounded(len(going), self._parts)) < len(live):  # finished rows should cost nothing
                kept = going + [going[0]] * (smaller - len(going))
                state = self._decoder.take(state, np.array(kept, np.int32))
                live = [live[place] for place in going] + [None] * (smaller - len(going))
            done = np.array([row is None for row in live])
            new, of_new, state = self._decoder.decode(state, time, done, ends, controls, CHUNK)
            time += CHUNK

    def _pad(self, prompts: list[tuple[int, ...]], length: int) -> tuple[np.ndarray, np.ndarray]:
        count = rounded(len(prompts), self._parts)
        start = np.full(count, length - 1, np.int32)
        tokens = np.zeros((count, length), np.int32)
        for i, prompt in enumerate(prompts):
            start[i] = length - len(prompt)
            tokens[i, start[i] :] = prompt
        return tokens, start


def generate(
    model: Transformer,
    prompts: Any,
    *,
    max_new_tokens: int = 128,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    entmax: bool = False,
    seed: int = 0,
    num_samples: int = 1,
    stop: str | Sequence[str] = (),
    eos: int | Sequence[int] | None = None,
    stream: Stream | None = None,
    return_samples: bool = False,
    return_logprobs: bool = False,
) -> Any:
    """Continues `prompts`: a text or a list of token ids (which needs no tokenizer), or a list of such; ids may also be
    arrays, of one dimension or, for prompts of one length, of two.

    The same seed gives the same text, whatever else is in the batch and whatever the mesh. A temperature of 0 takes the
    likeliest token; top_k 0, top_p 1, min_p 0 and repetition_penalty 1 are off; the filters apply in that order
    and as in Hugging Face. With `entmax` tokens are drawn from a sparse distribution (gpt-neo's entmax_sampling, for
    models trained with train.loss=entmax). A row ends at a `stop` string (of which nothing is returned), at a token in `eos`
    (default: the model's end-of-document token; () for none) or after `max_new_tokens`. Prompt and continuation
    share n_ctx positions: a prompt keeps its last n_ctx - max_new_tokens tokens, or n_ctx / 2 if that is more, with
    a warning if it was longer. `stream(index, text)` is called with pieces of text as they come; index counts samples,
    those of one prompt together.

    Returns the continuation (a str; token ids where there is no tokenizer) for one prompt and one sample, else a list
    in the order of prompts, each `num_samples` times; with `return_samples` always a list of `Sample`. So it is with
    `return_logprobs`, and a sample's `logprobs` are then those of its tokens, in nats as the model has them: of the logits
    alone, whatever temperature, penalty and filters made of them, so that they are those of `neojax.score`. Raises
    `NeojaxError`.
    """
    usable(model, "continue a text")
    given, single = listed(prompts, model.config.n_vocab)
    sampling = Sampling(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        entmax=entmax,
        seed=seed,
        num_samples=num_samples,
        stop=stop,
    )
    ends = None if eos is None else end_ids(eos, model.config.n_vocab)
    if stream is not None and not callable(stream):
        raise wrong("stream", stream, "a function of the sample's index and a piece of text")
    for name, value in (("return_samples", return_samples), ("return_logprobs", return_logprobs)):
        flag(name, value)
    with model.layout.in_force() as is_free:
        if not is_free:
            raise NeojaxError("generate runs by itself: call it outside of jax.jit and its like")
        sampler = sampler_of(model)
    encoded = [encode(model, prompt) or [start_token(model, "the prompt is empty")] for prompt in given]
    samples = sampler.generate(given, encoded, sampling, ends, stream, return_logprobs)
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


@jax.jit
def _fold(seed: jax.Array, prompt: jax.Array, sample: jax.Array) -> jax.Array:
    key = jax.random.key(seed, impl="threefry2x32")
    return jax.random.key_data(jax.random.fold_in(jax.random.fold_in(key, prompt), sample))


def _row_key(seed: int, prompt: tuple[int, ...], sample: int) -> np.ndarray:
    """uint32 [2]: other prompts and other samples of a prompt draw other numbers."""
    content = zlib.crc32(np.asarray(prompt, np.int32).tobytes())
    return np.asarray(_fold(np.uint32(seed), np.uint32(content), np.uint32(sample)))
