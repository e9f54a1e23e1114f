"""The families of models, a file each: how a model is built from the parts, and its names at Hugging Face.

A family is `neojax.models.families.NAME` for each NAME of `neojax.config.families`, and has a `FAMILY` in it.
"""

from importlib import import_module

from neojax.models.families.family import Family, HuggingFace, class_names

__all__ = ["Family", "HuggingFace", "class_names", "family"]


def family(name: str) -> Family:
    """The family of that name, which is one of `neojax.config.families`."""
    return import_module(f"neojax.models.families.{name}").FAMILY
