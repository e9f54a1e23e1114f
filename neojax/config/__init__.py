"""Run configuration: what keys there are (`keys`), and how they are read and written (`reading`)."""

from neojax.config.families import FAMILIES
from neojax.config.keys import Config, DataConfig, MeshConfig, SourceConfig, TrainConfig
from neojax.config.model import (
    ACTIVATIONS,
    ATTENTION_TYPES,
    AttentionConfig,
    EmbeddingConfig,
    InitConfig,
    MlpConfig,
    ModelConfig,
    NormConfig,
    PositionsConfig,
    expand_attention_types,
)
from neojax.config.paths import replaced, set_at, value_at
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
    "FAMILIES",
    "AttentionConfig",
    "Config",
    "DataConfig",
    "EmbeddingConfig",
    "InitConfig",
    "MeshConfig",
    "MlpConfig",
    "ModelConfig",
    "NormConfig",
    "PositionsConfig",
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
    "replaced",
    "set_at",
    "to_dict",
    "value_at",
]
