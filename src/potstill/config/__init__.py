"""The run configuration: sections, the file they are read from, and their explanations."""

from potstill.config.asked import OPEN_TASKS, DataGenerationConfig
from potstill.config.checks import CheckLimits
from potstill.config.data import PERSONAL_KINDS, FeedbackConfig, PrivacyConfig
from potstill.config.file import (
    config_keys,
    dump_config,
    json_schema,
    load_config,
    parse_config,
)
from potstill.config.generation import GenerationConfig
from potstill.config.judge import JudgeConfig
from potstill.config.layers import AttentionConfig, HiddenConfig
from potstill.config.models import (
    Api,
    LogprobsMode,
    PriceConfig,
    PruneConfig,
    StudentConfig,
    TeacherConfig,
)
from potstill.config.rules import FieldTest, Where
from potstill.config.section import Section
from potstill.config.sections import (
    NAME_PATTERN,
    TASKS,
    DataConfig,
    DistillConfig,
    EvaluateConfig,
)
from potstill.config.speed import CostConfig, LoadConfig
from potstill.config.teachers import asked_of_all
from potstill.config.training import AdapterConfig, LossConfig, TargetsConfig, TrainConfig

__all__ = [
    "NAME_PATTERN",
    "OPEN_TASKS",
    "PERSONAL_KINDS",
    "TASKS",
    "AdapterConfig",
    "Api",
    "AttentionConfig",
    "CheckLimits",
    "CostConfig",
    "DataConfig",
    "DataGenerationConfig",
    "DistillConfig",
    "EvaluateConfig",
    "FeedbackConfig",
    "FieldTest",
    "GenerationConfig",
    "HiddenConfig",
    "JudgeConfig",
    "LoadConfig",
    "LogprobsMode",
    "LossConfig",
    "PriceConfig",
    "PrivacyConfig",
    "PruneConfig",
    "Section",
    "StudentConfig",
    "TargetsConfig",
    "TeacherConfig",
    "TrainConfig",
    "Where",
    "asked_of_all",
    "config_keys",
    "dump_config",
    "json_schema",
    "load_config",
    "parse_config",
]
