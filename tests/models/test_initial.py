"""Initial weights have the spread that `model.init` says, by the dimensions of the matrix."""

import numpy as np
import pytest
from helpers import tiny

from neojax.models import Transformer

OUTPUTS = ("attn.out", "mlp.down")
RULES = {  # n_embd = 32, n_layer = 4: of matrices that write into the residual stream, of all others
    "small and wang": ({"method": "small", "output": "wang"}, 2 / (4 * 32**0.5), (2 / (5 * 32)) ** 0.5),
    "normal and scaled": ({"std": 0.5, "output": "scaled"}, 0.5 / 8**0.5, 0.5),
    "small and scaled": ({"std": 0.5, "method": "small", "output": "scaled"}, 0.5 / 8**0.5, 80**-0.5),
    "one for all": ({"std": 0.25}, 0.25, 0.25),
}


@pytest.mark.parametrize("rule", RULES)
def test_every_matrix_is_spread_by_its_rule(rule):
    """Facts: `init_functions.py` of GPT-NeoX."""
    init, output, other = RULES[rule]
    model = Transformer(tiny(tie_word_embeddings=False, **{f"init.{key}": v for key, v in init.items()}))
    drawn = {name: np.asarray(value) for name, value in model.init(0).params().items()}
    for name, value in drawn.items():
        kind = name.partition("blocks.")[2].partition(".")[2] or name
        if kind.endswith("scale"):
            assert (value == 1).all(), name
        elif "bias" in kind:
            assert (value == 0).all(), name
        else:
            expected = output if kind in OUTPUTS else other
            rows = value if name not in ("wte", "lm_head") else value[:61]
            assert rows.std() == pytest.approx(expected, rel=0.1), name
