"""Writes `hf/`: tiny models as transformers saves them, with the logits and the greedy text it computes.

Tests compare with them where PyTorch is not installed. Run with transformers: python
tests/convert/data/write_hf.py
"""

import sys
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from hf_reference import batch, gpt2, gpt_neo  # noqa: E402

MODELS = {
    "gpt-neo": lambda: gpt_neo([[["global", "local"], 1]], hidden_size=16, max_position_embeddings=24),
    "gpt2": lambda: gpt2(n_embd=16, n_layer=2, n_positions=24),
}


def main() -> None:
    for name, make in MODELS.items():
        model, folder = make(), HERE / "hf" / name
        model.save_pretrained(folder)
        tokens = torch.tensor(batch(model, rows=2), dtype=torch.long)
        model.generation_config.eos_token_id = None
        with torch.no_grad():
            logits = model(tokens).logits
            text = model.generate(tokens[:, :5], do_sample=False, max_new_tokens=12, pad_token_id=0)
        arrays = {"tokens": tokens.int(), "logits": logits, "greedy": text[:, 5:].int()}
        np.savez_compressed(folder / "expected.npz", **{key: a.numpy() for key, a in arrays.items()})


if __name__ == "__main__":
    main()
