"""A model of ours as lm-evaluation-harness (lm-eval) takes one: `NeojaxLM`, known to it as `neojax`.

Needs the extra `eval`; neither PyTorch nor transformers. Encoding, truncation and windows are those of the
harness's own Hugging Face model, so that the same requests give the same numbers on the same weights.
"""

import hashlib
import os
from typing import Any

import lm_eval.api.model
from lm_eval.api.registry import model_registry
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

from neojax.data.chat_template import ChatTemplate, of_model, template_of
from neojax.errors import NeojaxError
from neojax.evaluate.requests import encode, log_likelihoods, prefix_token, rolling
from neojax.loading import load
from neojax.models import Transformer
from neojax.sampling.generate import generate
from neojax.sampling.requests import Sampling, start_token, tokenizer_of, usable
from neojax.storage.remote import place

MAX_GEN_TOKS = 256  # as the harness's Hugging Face model
_PASSED = ("top_k", "top_p", "min_p", "repetition_penalty")


class NeojaxLM(lm_eval.api.model.LM):
    """`model`, or the one at `pretrained`, a run or Hugging Face directory (with `dtype` and `weights` as for
    `neojax.load`), for lm-eval's `simple_evaluate(model=...)`.

    `chat_template`, in Jinja, writes requests where the harness is told to (`apply_chat_template`); by
    default the one that lies at `pretrained`.

    What requests begin with alike, as answers with their question, is read once, and short ones share a row.
    The `batch_size`, `max_batch_size` and `device` that the harness hands to every model are taken and left
    alone: the scorer sizes its batches by their tokens, and devices are those of the model's mesh. In a job
    of several processes all of them run the harness alike, and score together. Raises `NeojaxError`.
    """

    def __init__(
        self,
        model: Transformer | None = None,
        *,
        pretrained: str | None = None,
        dtype: str = "auto",
        weights: str = "auto",
        max_gen_toks: int = MAX_GEN_TOKS,
        chat_template: str | None = None,
        batch_size: Any = None,
        max_batch_size: Any = None,
        device: Any = None,
    ):
        super().__init__()
        if (model is None) == (pretrained is None):
            raise NeojaxError(
                "NeojaxLM: give either a model or pretrained=DIR, a run or Hugging Face directory"
            )
        if model is None:
            model = load(str(pretrained), dtype=dtype, weights=weights)
            chat_template = chat_template or of_model(place(str(pretrained)))
        self.model = usable(model, "score a text token by token")
        self._tokenizer = tokenizer_of(model, "text")
        self._end = start_token(model, "requests may have no context")
        self._n_ctx = model.config.n_ctx
        self.max_gen_toks = int(max_gen_toks)
        self._chat = None if chat_template is None else template_of(chat_template, self._tokenizer, self._end)

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer and the chat template by their content: requests that the harness keeps belong to
        them."""
        content = self._tokenizer.to_str() + ("" if self._chat is None else self._chat.source)
        return f"neojax-{hashlib.sha256(content.encode()).hexdigest()[:16]}"

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template that writes requests, None where none is asked for. There is one, whatever the name
        that is asked for. Raises `NeojaxError` where there is none."""
        return self._template().source if chat_template else None

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The text of a conversation, with what stands before an answer, or without `add_generation_prompt`
        as far as its last message, which is to be continued. Where a template refuses what the system says,
        that is left out, as by the harness's Hugging Face model. Raises `NeojaxError`."""
        template = self._template()
        without = [message for message in chat_history if message["role"] != "system"]
        try:
            return _written(template, chat_history, add_generation_prompt)
        except NeojaxError:
            if len(without) == len(chat_history):
                raise
            return _written(template, without, add_generation_prompt)

    def _template(self) -> ChatTemplate:
        if self._chat is None:
            raise NeojaxError("the model has no chat template; give one as chat_template")
        return self._chat

    def get_model_info(self) -> dict[str, Any]:
        """What the harness notes of the model."""
        return {
            "model_family": self.model.config.family,
            "model_num_parameters": sum(value.size for value in self.model.params().values()),
            "model_dtype": self.model.compute.dtype,
        }

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-likelihood in nats, whether all tokens are the likeliest) of continuations after contexts."""
        found = log_likelihoods(self.model, [request.args for request in requests])
        for request, result in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood", request.args, result)
        return found

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """The log-likelihoods of whole texts in disjoint windows, in nats."""
        found = rolling(self.model, [request.args[0] for request in requests])
        for request, nats in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, nats)
        return found

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """What follows contexts, each as far as its stop strings, the end-of-document token or its number of
        tokens let it."""
        prompts, settings = [], []
        for request in requests:
            context, given = request.args
            sampling = self._sampling(dict(given))
            room = self._n_ctx - sampling.max_new_tokens
            if room < 1:
                raise NeojaxError(
                    f"a task asks for {sampling.max_new_tokens} tokens, and the model's context is "
                    f"{self._n_ctx}; give fewer as max_gen_toks"
                )
            prompts.append((encode(self.model, [context])[0] or [prefix_token(self.model)])[-room:])
            settings.append(sampling)
        if not prompts:
            return []
        samples = generate(self.model, prompts, sampling=settings, return_samples=True)
        for request, sample in zip(requests, samples):
            self.cache_hook.add_partial("generate_until", request.args, sample.text)
        return [sample.text for sample in samples]

    def _sampling(self, given: dict[str, Any]) -> Sampling:
        kwargs = dict(normalize_gen_kwargs(given, self.max_gen_toks))
        end = self._tokenizer.decode([self._end], skip_special_tokens=False)
        stop = [text for text in handle_stop_sequences(kwargs.pop("until", None), end) if text]
        temperature = kwargs.pop("temperature", 0.0)
        temperature = float(temperature) if kwargs.pop("do_sample") else 0.0
        length = kwargs.pop("max_gen_toks")
        passed = {name: kwargs.pop(name) for name in _PASSED if name in kwargs}
        if kwargs:
            raise NeojaxError(
                f"a task's generation_kwargs have {', '.join(sorted(kwargs))}, which neojax has not; it has "
                f"until, do_sample, temperature, max_gen_toks, {', '.join(_PASSED)}"
            )
        return Sampling(max_new_tokens=length, temperature=temperature, stop=stop, **passed)


def _written(template: ChatTemplate, messages: list[dict[str, str]], asks: bool) -> str:
    return template.text(messages, asks=True) if asks else template.begun(messages)


model_registry.register("neojax", target=NeojaxLM)
# A bootstrap in a pool of processes would fork one in which JAX has threads.
os.environ.setdefault("DISABLE_MULTIPROC", "1")
