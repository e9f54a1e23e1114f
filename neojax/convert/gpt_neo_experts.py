"""gpt-neo's mixtures of experts: what `moe_layers`, `moe_params` and `moe_activation` say in ours.

gpt-neo handed `moe_params` to Mesh-TensorFlow 0.1.18, whose names they have and whose defaults hold here:
those of its `set_default_moe_hparams`, and of gpt-neo's own for what that leaves out. Its gatings are top_2,
rand_1 and switch, which reads rand_1's keys, draws nothing and leaves no token behind; later versions have
keys of switch's own, and draw.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from neojax.convert.keys import Conversion, Keys
from neojax.errors import NeojaxError

GATINGS = {"top_2": 2, "switch": 1, "rand_1": 1}  # the experts of a token
POLICIES = ("argmax", "input_dropout", "input_jitter", "sample")
WITHOUT_MEANING = {
    "capacity_factor_eval": "nothing is dropped in evaluation",
    "second_policy_eval": "both experts are taken in evaluation",
    "second_threshold_eval": "both experts are taken in evaluation",
    "rand_1_policy_eval": "nothing is drawn in evaluation",
    "switch_policy_eval": "nothing is drawn in evaluation",
    "capacity_factor_second_level": "of experts in two levels, which gpt-neo had not",
    "output_dim": "gpt-neo's was n_embd whatever it said",
}
OTHER_MODELS = (
    "dropout_rate",
    "use_second_place_loss",
    "use_second_place_expert_prob",
    "use_experts_attention",
    "word_embed_mode",
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
        "min_capacity": max(1, more.count("moe_min_expert_capacity", 1)),
        "capacity_factor": more.number("moe_capacity_factor_train", 1.25) / top_k,
        "group_size": more.count("moe_group_size", 1024, least=1),
        "balance_loss": coefficient,
        "z_loss": (more.number("moe_z_loss") or 0.0) * coefficient,
        **(_second(more) if top_k == 2 else _one(more, gating, out)),
    }
    for name, value in values.items():
        out.put(f"model.experts.{name}", partial(_same, value), "moe_layers and moe_params")
    out.put("model.experts.activation", lambda: activation("moe_activation") or "relu", "moe_activation")
    for key in (f"moe_{name}" for name in OTHER_MODELS):
        if (value := more.get(key)) not in (None, 0, False):
            raise NeojaxError(
                f"{keys.path}: {key}={value!r}: experts with that are not supported; remove the key for a "
                "model without"
            )
    why = {f"moe_{name}": reason for name, reason in WITHOUT_MEANING.items()}
    out.ignored += [f"{key} ({why[key]})" if key in why else key for key in sorted(more.unread)]


def _same(value: Any) -> Any:
    return value


def _second(keys: Keys) -> dict[str, Any]:
    """Who goes to a second expert."""
    policy = keys.text("moe_second_policy_train", "random")
    if policy not in ("all", "none", "random", "threshold"):
        raise keys.wrong("moe_second_policy_train", "all, none, random or threshold", policy)
    threshold = keys.number("moe_second_threshold_train", 0.2)
    if policy in ("random", "threshold") and threshold <= 0:
        policy = "all"  # every share is above it
    return {"second": policy} | ({} if policy in ("all", "none") else {"second_threshold": threshold})


def _one(keys: Keys, gating: str, out: Conversion) -> dict[str, Any]:
    """How the one expert is picked."""
    names = [f"moe_{spelling}_" for spelling in ("rand_1", "switch") if spelling in ("rand_1", gating)]
    origin, policy = _either(keys, names, "policy_train", keys.text)
    policy = policy or "argmax"
    if policy not in POLICIES:
        raise keys.wrong(origin, ", ".join(POLICIES), policy)
    values: dict[str, Any] = {}
    if gating == "switch":
        values["tries"] = keys.count("moe_switch_top_k", 1, least=1)
        if "moe_switch_top_k" not in keys:
            out.note(
                "model.experts.tries",
                "moe_gating=switch without moe_switch_top_k: a token asks one expert for room, as in Switch "
                "Transformer; with Mesh-TensorFlow 0.1.18 gpt-neo did not start without that key",
            )
        if origin.startswith("moe_rand_1") and policy in ("input_dropout", "sample"):
            out.ignored.append(f"{origin}={policy} (switch took it for argmax)")
            policy = "argmax"
    if policy == "input_jitter":
        values["jitter"] = _number(keys, names, "jitter", 0.01)
    elif policy == "input_dropout":
        values["input_dropout"] = _number(keys, names, "dropout", 0.1)
    elif policy == "sample":
        values["sampled"] = True
        if _number(keys, names, "temperature", 1.0) != 1:
            origin, temperature = _either(keys, names, "temperature", keys.number)
            raise keys.wrong(origin, "1", temperature)
    return values


def _number(keys: Keys, names: Sequence[str], key: str, default: float) -> float:
    _, value = _either(keys, names, key, keys.number)
    return default if value is None else value


def _either(keys: Keys, names: Sequence[str], key: str, read: Callable[[str], Any]) -> tuple[str, Any]:
    """The spelling of `key` that is given, of those that begin with one of `names`, and what it says; None
    where none is. Raises `NeojaxError` where they say two things."""
    given = {name + key: read(name + key) for name in names if name + key in keys}
    if len(set(given.values())) > 1:
        both = " and ".join(f"{name}={value}" for name, value in given.items())
        raise NeojaxError(f"{keys.path}: {both} are two spellings of one thing; leave one of them out")
    return next(iter(given.items()), (names[0] + key, None))
