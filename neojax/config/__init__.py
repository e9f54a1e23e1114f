"""Run configuration: what keys there are (`keys`), and how they are read and written (`reading`)."""

from neojax.config.keys import (
    ACTIVATIONS,
    ATTENTION_TYPES,
    Config,
    DataConfig,
    MeshConfig,
    ModelConfig,
    SourceConfig,
    TrainConfig,
    expand_attention_types,
)
from neojax.config.reading import (
    check,
    describe,
    dump,
    from_dict,
    load,
    of_run,
    override,
    parse,
    read_yaml,
    to_dict,
)

__all__ = [
    "ACTIVATIONS",
    "ATTENTION_TYPES",
    "Config",
    "DataConfig",
    "MeshConfig",
    "ModelConfig",
    "SourceConfig",
    "TrainConfig",
    "check",
    "describe",
    "dump",
    "expand_attention_types",
    "from_dict",
    "load",
    "of_run",
    "override",
    "parse",
    "read_yaml",
    "to_dict",
]
