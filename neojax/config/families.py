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
    "gpt2": {"attention": {"types": ["global"], "bias": True, "scale": True}},
}
