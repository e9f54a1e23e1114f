"""Training on pairs of segments: the keys that stand where a configuration does not give them, and what goes
together."""

from typing import Any

from neojax.config.keys import Config, TrainConfig
from neojax.errors import NeojaxError

RECIPES: dict[str, dict[str, Any]] = {
    "nsp": {"mlm_random_token_prob": 0.1},
    "sop": {"mlm_random_token_prob": 0.1, "mlm_whole_words": True, "mlm_max_ngram": 3},
}
"""By `data.pairs`: keys of `train`."""

LEAST = 8  # tokens of a row
_OWN = ("mlm_whole_words", "mlm_max_ngram", "mlm_max_predictions")
_TOLD = ("mlm_mask_id", "mlm_cls_token_id")


def check_pairs(config: Config) -> None:
    """Raises `NeojaxError` for keys that do not go with `data.pairs`, or only with it."""
    model, data, train = config.model, config.data, config.train
    given = f"data.pairs={data.pairs}"
    if data.pairs == "none":
        for name in _OWN:
            if (value := getattr(train, name)) != getattr(TrainConfig, name):
                raise NeojaxError(
                    f"train.{name}={value} is for pairs of segments; set data.pairs, or leave it out"
                )
        return
    if model.causal:
        raise NeojaxError(f"{given} is for encoders; set model.family=bert or albert")
    if data.isolate_documents:
        raise NeojaxError(f"{given}: a row is one pair; leave data.isolate_documents out")
    if model.n_ctx < LEAST:
        raise NeojaxError(
            f"{given}: a row of model.n_ctx={model.n_ctx} tokens is too short; set {LEAST} or more"
        )
    for name in _TOLD:
        if getattr(train, name) is not None:
            raise NeojaxError(f"train.{name} is told by the tokenizer where {given}; leave it out")
    if train.mlm_same_token_prob + train.mlm_random_token_prob > 1:
        raise NeojaxError("train.mlm_same_token_prob + mlm_random_token_prob is a share of at most 1")
