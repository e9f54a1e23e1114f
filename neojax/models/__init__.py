"""The one Flax module and its parts."""

from neojax.models.transformer import Transformer

__all__ = ["Transformer"]
