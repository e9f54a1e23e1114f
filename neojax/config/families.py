"""The registry of model families, and the keys that stand where a configuration of that family does not give
them.

This is the one line that a new family adds outside its own module, `neojax/models/families/NAME.py`. What a
family leaves out here is as declared in `neojax.config.model`.
"""

from typing import Any

FAMILIES: dict[str, dict[str, Any]] = {
    "gpt_neo": {},
    "gpt_neox": {
        "attention": {"types": ["global"], "bias": True, "scale": True},
        "mlp": {"activation": "gelu"},
        "norm": {"order": "parallel"},
        "positions": {"kind": "rotary"},
        "embedding": {"tied": False},
        "init": {"std": 0.02},
    },
    "gpt_j": {
        "attention": {"types": ["global"], "out_bias": False, "scale": True},
        "norm": {"order": "parallel_shared"},
        "positions": {"kind": "rotary", "interleaved": True},
        "embedding": {"tied": False, "output_bias": True},
        "init": {"std": 0.02},
    },
    "gpt2": {"attention": {"types": ["global"], "bias": True, "scale": True}},
    "albert": {
        "n_ctx": 512,
        "n_vocab": 30000,
        "causal": False,
        "share_parameters": True,
        "attention": {"types": ["global"], "bias": True, "scale": True},
        "norm": {"order": "post", "epsilon": 1e-12},
        "embedding": {"width": 128, "token_types": 2, "norm": True},
        "head": {"kinds": ["mlm", "pair"], "dropout": 0.1},
        "init": {"std": 0.02},
    },
    "bert": {
        "n_ctx": 512,
        "n_vocab": 30522,
        "causal": False,
        "dropout": 0.1,
        "attention": {"types": ["global"], "bias": True, "scale": True, "dropout": 0.1},
        "mlp": {"activation": "gelu"},
        "norm": {"order": "post", "epsilon": 1e-12},
        "embedding": {"token_types": 2, "norm": True, "dropout": 0.1},
        "head": {"kinds": ["mlm", "pair"]},
        "init": {"std": 0.02},
    },
    "llama": {
        "attention": {"types": ["global"], "out_bias": False, "scale": True},
        "mlp": {"activation": "silu", "gated": True, "bias": False},
        "norm": {"kind": "rms"},
        "positions": {"kind": "rotary"},
        "embedding": {"tied": False},
        "init": {"std": 0.02},
    },
}
