"""GPT-Neo's shapes as a PyTorch user would write them today: fused attention, one product for q, k and v.

Global layers run `scaled_dot_product_attention`; local layers FlexAttention with a sliding window on GPUs,
and the same function with a mask elsewhere, where FlexAttention has no backward pass. Scores are not scaled,
as in GPT-Neo.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WINDOW = 256


class Block(nn.Module):
    """Pre-norm residual block on [batch, sequence, embd]."""

    def __init__(self, embd: int, heads: int, local: bool):
        super().__init__()
        self.heads, self.local = heads, local
        self.norm_1, self.norm_2 = nn.LayerNorm(embd), nn.LayerNorm(embd)
        self.qkv, self.out = nn.Linear(embd, 3 * embd, bias=False), nn.Linear(embd, embd)
        self.up, self.down = nn.Linear(embd, 4 * embd), nn.Linear(4 * embd, embd)

    def forward(self, x: Tensor, masks: dict[str, Any]) -> Tensor:
        batch, sequence, embd = x.shape
        qkv = self.qkv(self.norm_1(x)).view(batch, sequence, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        if not self.local:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)
        elif "flex" in masks:
            from torch.nn.attention.flex_attention import flex_attention

            y = flex_attention(q, k, v, block_mask=masks["flex"], scale=1.0)
        else:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=masks["plain"], scale=1.0)
        x = x + self.out(y.transpose(1, 2).reshape(batch, sequence, embd))
        return x + self.down(F.gelu(self.up(self.norm_2(x)), approximate="tanh"))


class Model(nn.Module):
    """Tokens [batch, sequence] to the mean loss of the next token; alternating global and local layers."""

    def __init__(self, layers: int, embd: int, heads: int, n_ctx: int, n_vocab: int = 50257):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(n_vocab, embd), nn.Embedding(n_ctx, embd)
        self.blocks = nn.ModuleList(Block(embd, heads, bool(i % 2)) for i in range(layers))
        self.norm_f = nn.LayerNorm(embd)
        for weight in self.parameters():
            if weight.ndim > 1:
                nn.init.normal_(weight, std=0.02)
        self.masks: dict[str, Any] = {}

    def prepare(self, sequence: int, device: str) -> None:
        """Makes the window's mask, once."""
        if device == "cuda":
            from torch.nn.attention.flex_attention import create_block_mask

            def window(b: Any, h: Any, q: Any, k: Any) -> Any:
                return (k <= q) & (k > q - WINDOW)

            self.masks = {"flex": create_block_mask(window, None, None, sequence, sequence, device=device)}
        else:
            time = torch.arange(sequence)
            self.masks = {"plain": (time <= time[:, None]) & (time > time[:, None] - WINDOW)}

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.wte(tokens) + self.wpe.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x, self.masks)
        logits = F.linear(self.norm_f(x), self.wte.weight)[:, :-1]
        return F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())
