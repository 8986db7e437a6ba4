"""Other people's job descriptions -> `DistillConfig`."""

from potstill.dialects.azure import from_azure, is_azure, read_azure_file
from potstill.dialects.dialect import KEY_VARIABLE, Dialect, slug
from potstill.dialects.reading import read_job, understand
from potstill.dialects.tutorial import from_distillation_job

__all__ = [
    "KEY_VARIABLE",
    "Dialect",
    "from_azure",
    "from_distillation_job",
    "is_azure",
    "read_azure_file",
    "read_job",
    "slug",
    "understand",
]
