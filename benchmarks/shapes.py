"""The published shapes, as our config and as Hugging Face's."""

from typing import Any

SHAPES = {
    "125M": (12, 768, 12),
    "350M": (24, 1024, 16),
    "1.3B": (24, 2048, 16),
    "2.7B": (32, 2560, 20),
    "tiny": (2, 32, 2),  # to see that a benchmark runs
}


def ours(name: str, n_ctx: int = 2048) -> Any:
    """A `neojax.config.ModelConfig`."""
    from neojax.config import AttentionConfig, ModelConfig

    layers, embd, heads = SHAPES[name]
    return ModelConfig(n_layer=layers, n_embd=embd, n_ctx=n_ctx, attention=AttentionConfig(heads=heads))


def hugging_face(name: str, n_ctx: int = 2048, device: str = "cpu") -> Any:
    """A `transformers.GPTNeoForCausalLM` with random weights made on `device`, in eager attention."""
    import torch
    from transformers import GPTNeoConfig, GPTNeoForCausalLM

    layers, embd, heads = SHAPES[name]
    config = GPTNeoConfig(
        num_layers=layers,
        hidden_size=embd,
        num_heads=heads,
        max_position_embeddings=n_ctx,
        attention_types=[[["global", "local"], layers // 2]],
        attn_implementation="eager",
    )
    with torch.device(device):
        return GPTNeoForCausalLM(config)
