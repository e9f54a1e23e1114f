"""Conversations with a model: its history as the chat template writes it, kept within the context."""

import warnings
from collections.abc import Callable
from dataclasses import replace

from neojax.arguments import text as argument
from neojax.data.chat_template import template_of
from neojax.errors import NeojaxError
from neojax.models import Transformer
from neojax.sampling.generate import generate
from neojax.sampling.requests import Sampling, tokenizer_of


class Chat:
    """A conversation. `messages` are those so far; the first may be one of the system's. What no longer fits
    the context beside an answer is forgotten, the oldest question and its answer first."""

    def __init__(self, model: Transformer, template: str, sampling: Sampling, system: str = ""):
        tokenizer = tokenizer_of(model, "prompt")
        self._template = template_of(template, tokenizer, model.eos_token_id)
        system = argument("--system", system)
        self._model, self._tokenizer, self._sampling = model, tokenizer, sampling
        self.messages = [{"role": "system", "content": system}] if system else []

    def say(self, text: str, stream: Callable[[str], None] | None = None) -> str:
        """The answer to `text`, which `stream` is given piece by piece as it comes. Raises `NeojaxError`
        where what is asked alone does not fit the context, or has no encoding."""
        messages = [*self.messages, {"role": "user", "content": argument("what is asked", text)}]
        kept, tokens = self._fitting(messages)
        room = self._model.config.n_ctx - len(tokens)
        sampling = replace(self._sampling, max_new_tokens=min(self._sampling.max_new_tokens, room))
        (answer,) = generate(
            self._model,
            [tokens],
            sampling=sampling,
            stream=None if stream is None else (lambda _, piece: stream(piece)),
            return_samples=True,
        )
        said = (answer.text or "").strip()
        self.messages = [*kept, {"role": "assistant", "content": said}]
        return said

    def _fitting(self, messages: list[dict[str, str]]) -> tuple[list[dict[str, str]], list[int]]:
        """(the messages that fit, their tokens), with half of the context, or as much as an answer may have,
        left for the answer."""
        n_ctx = self._model.config.n_ctx
        room = n_ctx - min(self._sampling.max_new_tokens, n_ctx // 2)
        first = 1 if messages[0]["role"] == "system" else 0
        forgotten = 0
        while True:
            text = self._template.text(messages, asks=True)
            tokens = self._tokenizer.encode(text, add_special_tokens=False).ids
            if len(tokens) <= room:
                if forgotten:
                    warnings.warn(
                        f"the oldest {forgotten} messages no longer fit the context of {n_ctx}", stacklevel=3
                    )
                return messages, tokens
            if len(messages) - first <= 1:
                raise NeojaxError(
                    f"what is asked has {len(tokens)} tokens; beside an answer the context of {n_ctx} has "
                    f"room for "
                    f"{room}; shorten it"
                )
            del messages[first : first + 2]
            forgotten += 2
