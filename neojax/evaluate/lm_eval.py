"""A model of ours as lm-evaluation-harness (lm-eval) takes one: `NeojaxLM`, known to it as `neojax`.

Needs the extra `eval`; neither PyTorch nor transformers. Encoding, truncation and windows are those of the
harness's own Hugging Face model, so that the same requests give the same numbers on the same weights.
"""

import hashlib
import os
from collections.abc import Sequence
from typing import Any

import lm_eval.api.model
from lm_eval.api.registry import model_registry
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

from neojax.data import tokenizer as tokenizers
from neojax.errors import NeojaxError
from neojax.evaluate.score import score_windows
from neojax.evaluate.windows import Window, disjoint
from neojax.loading import load
from neojax.models import Transformer
from neojax.sampling.generate import generate
from neojax.sampling.requests import Sampling, start_token, tokenizer_of, usable

MAX_GEN_TOKS = 256  # as the harness's Hugging Face model
_PASSED = ("top_k", "top_p", "min_p", "repetition_penalty")


class NeojaxLM(lm_eval.api.model.TemplateLM):
    """`model`, or the one at `pretrained`, a run or Hugging Face directory (with `dtype` and `weights` as for
    `neojax.load`), for lm-eval's `simple_evaluate(model=...)`.

    Requests are scored in batches of like length; those that read the same tokens, or the beginning of
    another's, are read once. The `batch_size`, `max_batch_size` and `device` that the harness hands to every
    model are taken and left alone: the scorer sizes its batches by their tokens, and devices are those of the
    model's mesh. In a job of several processes all of them run the harness alike, and score together. Raises
    `NeojaxError`.
    """

    def __init__(
        self,
        model: Transformer | None = None,
        *,
        pretrained: str | None = None,
        dtype: str = "auto",
        weights: str = "auto",
        max_gen_toks: int = MAX_GEN_TOKS,
        batch_size: Any = None,
        max_batch_size: Any = None,
        device: Any = None,
    ):
        super().__init__()
        if (model is None) == (pretrained is None):
            raise NeojaxError(
                "NeojaxLM: give either a model or pretrained=DIR, a run or Hugging Face directory"
            )
        model = load(str(pretrained), dtype=dtype, weights=weights) if model is None else model
        self.model = usable(model, "score a text token by token")
        self._tokenizer = tokenizer_of(model, "text")
        self._end = start_token(model, "requests may have no context")
        self.max_gen_toks = int(max_gen_toks)

    @property
    def max_length(self) -> int:
        """Tokens that the model sees at most."""
        return self.model.config.n_ctx

    @property
    def eot_token_id(self) -> int:
        """The end-of-document token."""
        return self._end

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has no context: what begins every text, as Llama's <s>, or else the
        end-of-document token."""
        return (*self.model.first_tokens, self._end)[0]

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer by its content: requests that the harness keeps belong to it."""
        return f"neojax-{hashlib.sha256(self._tokenizer.to_str().encode()).hexdigest()[:16]}"

    def get_model_info(self) -> dict[str, Any]:
        """What the harness notes of the model."""
        return {
            "model_family": self.model.config.family,
            "model_num_parameters": sum(value.size for value in self.model.params().values()),
            "model_dtype": self.model.compute.dtype,
        }

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids of a text, after what begins every text unless it begins with that, or
        `add_special_tokens` says no."""
        first = list(self.model.first_tokens)
        if add_special_tokens is None and first:
            begins = self._tokenizer.decode(first, skip_special_tokens=False)
            add_special_tokens = not string.startswith(begins)
        ids = self._tokenizer.encode(string, add_special_tokens=False).ids
        return [*first, *ids] if add_special_tokens else ids

    def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
        windows: list[list[Window]] = []
        for texts, context, continuation in requests:
            if not continuation:
                raise NeojaxError(
                    f"a request has no token to score: {texts[1]!r} after {texts[0][-40:]!r}; is an answer "
                    "of the task empty?"
                )
            windows.append(disjoint(context, continuation, self.max_length))
        results = []
        for (texts, *_), (nats, greedy) in zip(requests, self._sums(windows), strict=True):
            results.append((nats, greedy))
            self.cache_hook.add_partial("loglikelihood", texts, results[-1])
        return results

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """The log-likelihoods of whole texts in disjoint windows, in nats."""
        texts = [request.args[0] for request in requests]
        windows = [disjoint([self.prefix_token_id], self._long(text), self.max_length) for text in texts]
        results = [nats for nats, _ in self._sums(windows)]
        for text, nats in zip(texts, results):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), nats)
        return results

    def _long(self, text: str) -> list[int]:
        """As `tok_encode`, of a text that may be long."""
        if self.model.first_tokens or not tokenizers.is_splittable(self._tokenizer):
            return self.tok_encode(text)
        pieces = self._tokenizer.encode_batch_fast(list(tokenizers.split(text)), add_special_tokens=False)
        return [token for piece in pieces for token in piece.ids]

    def _sums(self, windows: Sequence[Sequence[Window]]) -> list[tuple[float, bool]]:
        """(nats, whether all tokens are the likeliest) of texts, each in windows."""
        found = iter(score_windows(self.model, [window for own in windows for window in own]))
        sums = []
        for own in windows:
            parts = [next(found) for _ in own]
            nats = float(sum(logprobs.sum(dtype="float64") for logprobs, _ in parts))
            sums.append((nats, all(bool(greedy.all()) for _, greedy in parts)))
        return sums

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """What follows contexts, each as far as its stop strings, the end-of-document token or its number of
        tokens let it."""
        prompts, settings = [], []
        for request in requests:
            context, given = request.args
            sampling = self._sampling(dict(given))
            room = self.max_length - sampling.max_new_tokens
            if room < 1:
                raise NeojaxError(
                    f"a task asks for {sampling.max_new_tokens} tokens, and the model's context is "
                    f"{self.max_length}; give fewer as max_gen_toks"
                )
            prompts.append((self.tok_encode(context) or [self.prefix_token_id])[-room:])
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


model_registry.register("neojax", target=NeojaxLM)
# A bootstrap in a pool of processes would fork one in which JAX has threads.
os.environ.setdefault("DISABLE_MULTIPROC", "1")
