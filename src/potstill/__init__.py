"""Distil a large language model into a small one that you own.

    >>> import potstill
    >>> records = potstill.load_dataset("train.jsonl")        # doctest: +SKIP

`import potstill` costs a few milliseconds and loads nothing else: a name's module is
imported when the name is first used.
"""

import importlib

__version__ = "0.1.0"

_HOME = {
    # public name                   module it lives in
    "DistillConfig": "potstill.config",
    "load_config": "potstill.config",
    "PotstillError": "potstill.errors",
    "Message": "potstill.types",
    "Record": "potstill.types",
    "Response": "potstill.types",
    "Estimate": "potstill.types",
    "Evaluation": "potstill.types",
    "Report": "potstill.types",
}

__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__():
    return __all__
