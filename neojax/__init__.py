"""GPT-Neo in modern JAX: every tensor dimension has a name, and configuration says how a mesh splits it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from neojax.errors import NeojaxError
from neojax.version import __version__

if TYPE_CHECKING:
    from neojax import config
    from neojax.evaluate.in_training import train
    from neojax.evaluate.score import score
    from neojax.loading import load
    from neojax.sampling.fill_mask import fill_mask
    from neojax.sampling.generate import generate
    from neojax.sampling.predict import predict
    from neojax.sampling.requests import Sampling

__all__ = [
    "NeojaxError",
    "Sampling",
    "__version__",
    "config",
    "fill_mask",
    "generate",
    "load",
    "predict",
    "score",
    "train",
]

_LAZY = {
    "Sampling": "neojax.sampling.requests",
    "fill_mask": "neojax.sampling.fill_mask",
    "generate": "neojax.sampling.generate",
    "load": "neojax.loading",
    "predict": "neojax.sampling.predict",
    "score": "neojax.evaluate.score",
    "train": "neojax.evaluate.in_training",
}


def __getattr__(name: str) -> Any:
    """Imports JAX only when something that needs it is asked for, so that the command line starts at once."""
    if name == "config":
        return import_module("neojax.config")
    if name not in _LAZY:
        raise AttributeError(f"module 'neojax' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
