"""Model FLOPs per token, and the share of the chips' peak that a run reaches (MFU).

Model FLOPs are those the model's mathematics needs, whatever the program does: recomputation (remat), padding
of the vocabulary and masked attention scores do not count. A multiply and an add are two.
"""

from typing import Any

from neojax.config import ModelConfig
from neojax.layout.chips import peak_flops

MASKED = 0.15  # of the tokens, as BERT is trained


def flops_per_token(model: ModelConfig, n_ctx: int | None = None) -> float:
    """FLOPs of the forward and backward pass per trained token: three times `forward_flops_per_token`.

    As there, attention counts only the keys a token can see. Others (PaLM's appendix B, nanoGPT) count all
    n_ctx keys for every token, which gives a higher MFU for the same speed.
    """
    return 3 * forward_flops_per_token(model, n_ctx)


def forward_flops_per_token(model: ModelConfig, n_ctx: int | None = None) -> float:
    """FLOPs of the forward pass per token, averaged over sequences of `n_ctx` tokens (default: the model's).

    Counts the matrix multiplications: the projections, the MLPs, the logits (over n_vocab, unpadded), and
    attention scores and mixing over VISIBLE keys only, see `visible_keys`; linear attention updates and reads
    a state of head_dim columns. Of experts, the router and those `top_k` that a token goes to count, as if
    all had room for it. Of masked tokens, `MASKED` go through the table of logits; classifiers are
    left out. Embedding look-ups, normalisation, softmax and biases are left out.
    """
    length = n_ctx or model.n_ctx
    width = model.attention.heads * model.head_dim
    shared = model.kv_heads * model.head_dim
    layers = model.attention_layers
    attention = 2 * model.n_embd * (width + shared) * sum(kind != "none" for kind in layers)
    keys = 0.0
    for kind in layers:
        if kind == "linear":
            keys += model.head_dim
        elif kind != "none":
            keys += visible_keys(kind, length, model.attention.window, model.causal)
    keys += model.attention.memory_slots * layers.count("global")
    mlp = (3 if model.mlp.gated else 2) * model.n_embd * model.mlp_dim
    mixed = sum(model.expert_layers)
    mlps = mlp * (model.n_layer - mixed + (model.n_layer if model.mlp.macaron else 0))
    experts = model.n_embd * (model.experts.number + 2 * model.experts.top_k * model.expert_dim)
    return 2.0 * (attention + mlps + mixed * experts + 2 * width * keys + _ends(model, length))


def _ends(model: ModelConfig, length: int) -> float:
    """Multiplications per token before the stack and after it: ALBERT's matrix between, and the heads."""
    count = float(model.n_embd * model.embedding.width) if model.embedding.width else 0.0
    table = model.token_embd * model.n_vocab
    if "lm" in model.head.kinds:
        count += table
    if "mlm" in model.head.kinds:
        count += MASKED * (model.n_embd * model.token_embd + table)
    if "pair" in model.head.kinds:
        count += (model.n_embd**2 + 2 * model.n_embd) / length  # once a row
    return count


def visible_keys(attention_type: str, length: int, window: int, causal: bool = True) -> float:
    """Mean number of keys that a position of a sequence of `length` tokens sees, itself included.

    Global: (length + 1) / 2, or all where attention is not causal. Local: the mean over positions i of
    min(i + 1, window), or of the keys at most `window` away.
    """
    if causal:
        span = length if attention_type == "global" else min(length, window)
        return (span * (span + 1) / 2 + (length - span) * span) / length
    reach = length - 1 if attention_type == "global" else min(length - 1, window)
    return 1 + (2 * reach * length - reach * (reach + 1)) / length


def mfu(tokens_per_second: float, model: ModelConfig, devices: Any) -> float | None:
    """Model FLOP utilisation: the share of the devices' joint peak that training at this rate uses, or None.

    `tokens_per_second` is over all `devices` (a sequence of `jax.Device` of one kind).
    """
    peak = peak_flops(devices[0])
    return None if peak is None else tokens_per_second * flops_per_token(model) / (peak * len(devices))
