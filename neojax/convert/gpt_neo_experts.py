"""gpt-neo's mixtures of experts: what `moe_layers`, `moe_params` and `moe_activation` say in ours.

gpt-neo handed `moe_params` to Mesh-TensorFlow, whose names they have and whose defaults hold here. Of its
gatings top_2, switch and rand_1 are read; the last two are one and the same.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from neojax.convert.keys import Conversion, Keys
from neojax.errors import NeojaxError

GATINGS = {"top_2": 2, "switch": 1, "rand_1": 1}  # the experts of a token
POLICIES = ("argmax", "input_jitter", "sample")
IN_EVALUATION = ("capacity_factor_eval", "second_policy_eval", "second_threshold_eval")
"""Nothing is dropped, and nothing drawn, in evaluation here."""
OTHER_MODELS = (
    "dropout_rate",
    "use_second_place_loss",
    "use_second_place_expert_prob",
    "use_experts_attention",
    "word_embed_mode",
    "output_dim",
)


def put_experts(keys: Keys, out: Conversion, activation: Callable[[str], str | None]) -> None:
    """Sets the keys of `model.experts`. `activation` reads the activation that a key names. Raises
    `NeojaxError` for experts of another kind."""
    layers, given = keys.get("moe_layers"), keys.get("moe_params")
    if not layers:
        keys.get("moe_activation")
        return
    if not isinstance(layers, list) or not all(type(layer) is int and layer >= 0 for layer in layers):
        raise keys.wrong("moe_layers", "a list of layers, the first of which is 0", layers)
    if given is not None and not isinstance(given, dict):
        raise keys.wrong("moe_params", "keys and values", given)
    depth = out.count("model.n_layer", 1)
    out.ignored += [
        f"moe_layers {layer} (the last layer is {depth - 1})" for layer in layers if layer >= depth
    ]
    layers = [layer for layer in layers if layer < depth]
    if not layers:
        return
    more = Keys(keys.path, given or {})
    gating = more.text("moe_gating", "top_2")
    if gating not in GATINGS:
        raise more.wrong("moe_gating", ", ".join(GATINGS), gating)
    top_k = GATINGS[gating]
    coefficient = more.number("moe_loss_coef", 0.01)
    values = {
        "number": more.count("moe_num_experts", 16, least=1),
        "layers": layers,
        "width": more.count("moe_hidden_size", 4096, least=1),
        "top_k": top_k,
        "capacity_factor": more.number("moe_capacity_factor_train", 1.25) / top_k,
        "group_size": more.count("moe_group_size", 1024, least=1),
        "balance_loss": coefficient,
        "z_loss": (more.number("moe_z_loss") or 0.0) * coefficient,
        **(_second(more) if top_k == 2 else _policy(more, f"moe_{gating}")),
    }
    for name, value in values.items():
        out.put(f"model.experts.{name}", partial(_same, value), "moe_layers and moe_params")
    out.put("model.experts.activation", lambda: activation("moe_activation") or "relu", "moe_activation")
    out.ignored += [
        f"{key} (nothing is dropped in evaluation)"
        for name in IN_EVALUATION
        if (key := f"moe_{name}") in more
    ]
    for key in (f"moe_{name}" for name in OTHER_MODELS):
        if (value := more.get(key)) not in (None, 0, False):
            raise NeojaxError(
                f"{keys.path}: {key}={value!r}: experts with that are not supported; remove the key for a "
                "model without"
            )
    read = {f"moe_{name}" for name in (*IN_EVALUATION, "capacity_factor_second_level", "min_expert_capacity")}
    out.ignored += sorted(more.unread - read)


def _same(value: Any) -> Any:
    return value


def _second(keys: Keys) -> dict[str, Any]:
    """Who goes to a second expert."""
    policy = keys.text("moe_second_policy_train", "random")
    if policy not in ("all", "random", "threshold"):
        raise keys.wrong("moe_second_policy_train", "all, random or threshold", policy)
    threshold = keys.number("moe_second_threshold_train", 0.2)
    return {"second": policy} if policy == "all" else {"second": policy, "second_threshold": threshold}


def _policy(keys: Keys, gating: str) -> dict[str, Any]:
    """How the one expert is picked."""
    policy = keys.text(f"{gating}_policy_train", "argmax")
    if policy not in POLICIES:
        raise keys.wrong(f"{gating}_policy_train", ", ".join(POLICIES), policy)
    if policy == "sample" and keys.number(f"{gating}_temperature", 1.0) != 1:
        raise keys.wrong(f"{gating}_temperature", "1", keys.get(f"{gating}_temperature"))
    jitter = keys.number(f"{gating}_jitter", 0.01) if policy == "input_jitter" else 0.0
    for name in ("policy_eval", "dropout", "jitter", "temperature"):
        keys.get(f"{gating}_{name}")
    return {"sampled": policy == "sample", "jitter": jitter}
