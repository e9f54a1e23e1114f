"""GPT-Neo in modern JAX: every tensor dimension has a name, and configuration says how a mesh splits it."""

from typing import Any

from neojax.errors import NeojaxError
from neojax.version import __version__

__all__ = ["NeojaxError", "__version__", "generate", "load", "train"]

_LAZY = {
    "generate": "neojax.sampling.generate",
    "load": "neojax.loading",
    "train": "neojax.training.loop",
}


def __getattr__(name: str) -> Any:
    """Imports JAX only when something that needs it is asked for, so that the command line starts at once."""
    if name not in _LAZY:
        raise AttributeError(f"module 'neojax' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LAZY[name]), name)
