"""Run configuration: its keys (`keys`), which of them go together (`checks`), and their `reading`."""

from neojax.config.checks import check, check_unused
from neojax.config.families import FAMILIES
from neojax.config.keys import Config, DataConfig, LoraConfig, MeshConfig, SourceConfig, TrainConfig
from neojax.config.model import (
    ACTIVATIONS,
    ATTENTION_TYPES,
    EXPERTS,
    HEADS,
    AttentionConfig,
    EmbeddingConfig,
    ExpertsConfig,
    HeadConfig,
    InitConfig,
    MlpConfig,
    ModelConfig,
    NormConfig,
    PositionsConfig,
    expand_attention_types,
)
from neojax.config.paths import replaced, set_at, value_at
from neojax.config.reading import (
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
from neojax.config.tasks import TASKS, Task

__all__ = [
    "ACTIVATIONS",
    "ATTENTION_TYPES",
    "EXPERTS",
    "FAMILIES",
    "HEADS",
    "TASKS",
    "AttentionConfig",
    "Config",
    "DataConfig",
    "EmbeddingConfig",
    "ExpertsConfig",
    "HeadConfig",
    "InitConfig",
    "LoraConfig",
    "MeshConfig",
    "MlpConfig",
    "ModelConfig",
    "NormConfig",
    "PositionsConfig",
    "SourceConfig",
    "Task",
    "TrainConfig",
    "check",
    "check_unused",
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
