"""What a GPT-NeoX config can ask for and neojax has not: refused by the name of the key, where it is on."""

from collections.abc import Mapping
from typing import Any

from neojax.errors import NeojaxError

_OFF: tuple[Any, ...] = (None, False, {}, [], "")
_HELP = "only a config without it can be trained"
_LISTS = "give plain texts as data_path or train_data_paths"

REFUSED: dict[str, tuple[str, tuple[Any, ...]]] = {
    # key -> what it asks for, and the values that ask for nothing
    "moe_num_experts": ("mixtures of experts are not supported", (*_OFF, 1)),
    "use_mup": ("muP is not supported", _OFF),
    "use_qk_layernorm": ("norms of queries and keys are not supported", _OFF),
    "soft_prompt_tuning": ("soft prompts are not supported", _OFF),
    "model_arch": ("other models than decoders are not supported", (*_OFF, "gpt2")),
    "te_columnparallel": ("Transformer Engine is not supported", _OFF),
    "te_rowparallel": ("Transformer Engine is not supported", _OFF),
    "te_layernorm_mlp": ("Transformer Engine is not supported", _OFF),
    "te_mha": ("Transformer Engine is not supported", _OFF),
    "te_fp8_format": ("8-bit floats are not supported", _OFF),
    "te_fp8_wgrad": ("8-bit floats are not supported", _OFF),
    "use_bnb_optimizer": ("optimizers of bitsandbytes are not supported", _OFF),
    "weight_by_num_documents": (
        "weights by the number of documents are not supported: give them as train_data_weights",
        _OFF,
    ),
    "data_impl": (
        "only token stores of PREFIX.bin and PREFIX.idx that begin with MMIDIDX are read",
        (*_OFF, "infer", "mmap"),
    ),
    "pack_impl": ("only packed documents are supported", (*_OFF, "packed")),
    "dataset_impl": ("only plain texts are supported", (*_OFF, "gpt2")),
    "train_impl": ("only the likelihood of the next token is trained on", (*_OFF, "normal")),
    "eod_mask_loss": ("the token behind an end of document is always scored", _OFF),
    "train_epochs": ("a run is measured in steps: give train_iters", _OFF),
    "curriculum_learning": ("sequences of growing length are not supported", _OFF),
    "curriculum_seqlen": ("sequences of growing length are not supported", (*_OFF, 0)),
    "data_efficiency": ("DeepSpeed's data efficiency is not supported", _OFF),
    "compression_training": ("DeepSpeed's compression is not supported", _OFF),
    "elasticity": ("batches that depend on the number of devices are not supported", _OFF),
    "amp": ("Apex is not supported: give bf16", _OFF),
    "scheduler": ("DeepSpeed's schedulers are not supported: give lr_decay_style", _OFF),
    "sparse_attention": ("give sparsity_config, which GPT-NeoX reads", _OFF),
    "optimizer.params.weight_decay": ("GPT-NeoX reads weight_decay beside optimizer, not within", ()),
    "optimizer.params.adam_w_mode": ("only decoupled weight decay is supported", (None, True)),
    "optimizer.params.amsgrad": ("AMSGrad is not supported", _OFF),
    **{
        f"{side}{part}_{kind}data_paths": (
            f"preferences, labels and rewards are not supported: {_LISTS}",
            _OFF,
        )
        for part in ("train", "valid", "test")
        for side, kind in (
            ("", "label_"),
            ("", "reward_"),
            ("pos_", ""),
            ("neg_", ""),
            ("pos_", "label_"),
            ("neg_", "label_"),
        )
    },
}


def refuse(keys: Any) -> None:
    """Raises `NeojaxError`, naming key and file, for what makes another model or another training. `keys` are
    `NeoxKeys`."""
    for key, (what, harmless) in REFUSED.items():
        if key not in keys:
            continue
        value = keys.get(key)
        word = value.lower() if isinstance(value, str) else value
        is_off = isinstance(word, Mapping) and word.get("enabled") is False
        if not is_off and not any(word == same and type(word) is type(same) for same in harmless):
            raise NeojaxError(f"{keys.at(key)}={value!r}: {what}; {_HELP}")
