"""GPT-Neo in modern JAX: every tensor dimension has a name, and configuration says how a mesh splits it."""

from neojax.version import __version__

__all__ = ["__version__"]
