"""What gpt-neo's configs meant before its last version: attention before `attention_types`, and other models'
keys."""

import json
from typing import Any

from neojax.convert.keys import Keys
from neojax.errors import NeojaxError

# Keys that some version of gpt-neo read and that make another model: key -> what they do, and the values that
# do not.
_WITHOUT: dict[str, tuple[str, tuple]] = {
    "residual": ("blocks without residual connections", (True, 1)),
    "use_mlp": ("blocks without MLPs", (True, 1)),
    "lightweight_conv_attention": ("lightweight convolutions, and heads wider by as much", (0, False)),
}
# Of the video transformer that a branch of its repository became; its models of text alone differ from
# gpt-neo's too.
_VIDEO = (
    "time_patch",
    "patch_size",
    "frame_width",
    "frame_height",
    "color_channels",
    "use_video",
    "three_axes",
    "language_token_per_frame",
    "token_patch_size",
    "feed_forward_per_attention",
    "use_revnet",
    "intermediate_feed_forward_multiplier",
    "group_linear_factor",
    "block_config",
    "n_blocks",
    "model_mode",
)


def refuse_other_models(keys: Keys) -> None:
    """Raises `NeojaxError`, naming the key, for a config of a model that this is not."""
    for key, (what, harmless) in _WITHOUT.items():
        value = keys.get(key)
        if value is not None and not any(value == same and type(value) is type(same) for same in harmless):
            raise NeojaxError(
                f"{keys.path}: {key}={_shown(value)}: {what} are not supported; remove the key for a model "
                "without"
            )
    for key in _VIDEO:
        if key in keys:
            raise NeojaxError(
                f"{keys.path}: {key} is a key of the video transformer that gpt-neo's code once was, "
                "another model; neojax has no such model"
            )


def attention_types(keys: Keys) -> Any:
    """`attention_types`, or what layers were before that key."""
    if "attention_types" in keys:
        return keys.get("attention_types")
    help = "give model.attention.types, such as model.attention.types=global or [global,local]"
    if keys.flag("local"):
        raise NeojaxError(
            f"{keys.path}: local=true without attention_types: every layer was local, by gpt-neo's version "
            "in windows of 128 tokens or in blocks of fixed_attn_block_size; give "
            "model.attention.types=local model.attention.window=128, or model.attention.types=global"
        )
    if keys.text("model") == "GPT2":
        return ["global"]
    raise NeojaxError(
        f"{keys.path}: no key attention_types, which a gpt-neo config needs; is it one? If so, {help}"
    )


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else text[:60] + "..."
