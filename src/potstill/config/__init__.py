"""The run configuration: sections, the file they are read from, and their explanations."""

from potstill.config.file import (
    config_keys,
    dump_config,
    json_schema,
    load_config,
    parse_config,
)
from potstill.config.models import (
    PriceConfig,
    PruneConfig,
    Section,
    StudentConfig,
    TeacherConfig,
)
from potstill.config.sections import (
    NAME_PATTERN,
    TASKS,
    AdapterConfig,
    DataConfig,
    DistillConfig,
    EvaluateConfig,
    GenerationConfig,
    LossConfig,
    TargetsConfig,
    TrainConfig,
)

__all__ = [
    "NAME_PATTERN",
    "TASKS",
    "AdapterConfig",
    "DataConfig",
    "DistillConfig",
    "EvaluateConfig",
    "GenerationConfig",
    "LossConfig",
    "PriceConfig",
    "PruneConfig",
    "Section",
    "StudentConfig",
    "TargetsConfig",
    "TeacherConfig",
    "TrainConfig",
    "config_keys",
    "dump_config",
    "json_schema",
    "load_config",
    "parse_config",
]
