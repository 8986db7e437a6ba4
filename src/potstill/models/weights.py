"""Weights from a Hugging Face folder, the hub or a GGUF file, in one way."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import io
import json
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from potstill.errors import ConfigError, DataError, MissingExtra, OfflineError
from potstill.models.catalog import ModelRef, find_model
from potstill.models.fingerprint import weights_identity
from potstill.models.offline import is_offline
from potstill.rundir import whole_folder

_DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
}
_CACHE_VERSION = "1"


def load_weights(
    source: ModelRef | Path | str, *, dtype: str = "float32"
) -> tuple[transformers.PreTrainedModel, Any]:
    """Reads model and tokenizer into memory, in eval mode, on the CPU.

    A GGUF file is turned into a Hugging Face folder once and read from there afterwards.

    Args:
        dtype: float32, bfloat16, float16, or auto (bfloat16 where the machine is fast at it).

    Raises:
        ConfigError: If there are no such weights on this machine and none can be fetched.
        DataError: If they are pickled or want to bring their own code; neither is run.
    """
    place = cached_folder(source)
    number_format = resolve_dtype(dtype)
    with quiet(), _reading(place):
        model = AutoModelForCausalLM.from_pretrained(
            place, dtype=number_format, use_safetensors=True, trust_remote_code=False
        )
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    return model.eval(), tokenizer


def count_parameters(source: ModelRef | Path | str) -> int:
    """How many weights a model has, shared ones counted once, from its config alone.

    Raises:
        ConfigError, DataError: As `load_weights`.
    """
    place = cached_folder(source)
    with quiet(), _reading(place), torch.device("meta"):
        config = AutoConfig.from_pretrained(place, trust_remote_code=False)
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        model.tie_weights()
    return sum(parameter.numel() for parameter in model.parameters())


def load_tokenizer(source: ModelRef | Path | str) -> Any:
    """Reads the tokenizer alone.

    Raises:
        ConfigError, DataError: As `load_weights`.
    """
    place = cached_folder(source)
    with quiet(), _reading(place):
        return AutoTokenizer.from_pretrained(place, trust_remote_code=False)


def cached_folder(source: ModelRef | Path | str) -> Path:
    """A Hugging Face folder with the model's weights, on this machine.

    Hub names are looked up in the local cache first and fetched only where that is allowed;
    GGUF files are converted, and adapters merged into their base, in `$POTSTILL_HOME` (or
    ~/.cache/potstill), by their hash.

    Raises:
        ConfigError: If the weights are not here and cannot be fetched.
        DataError: If the folder holds pickled weights or code.
    """
    ref = source if isinstance(source, ModelRef) else find_model(str(source))
    if ref.kind not in ("huggingface", "gguf"):
        what = {"endpoint": "an endpoint", "opener": "opened by code of its own"}.get(
            ref.kind, f"made for {ref.kind}"
        )
        raise ConfigError(
            f"{ref.name} is {what} ({ref.source}): it has no weights here. Losses on "
            f"probabilities and students need a folder or a file"
        )
    if ref.kind == "gguf":
        return _converted(Path(ref.source))
    folder = Path(ref.source)
    if not folder.is_dir():
        folder = _from_hub(ref)
    if (folder / "adapter_config.json").exists() and not any(folder.glob("model*.safetensors")):
        return _merged(folder)
    _refuse_foreign_code(folder)
    return folder


def resolve_dtype(name: str) -> torch.dtype:
    """The torch dtype of a name; `auto` asks the machine.

    Raises:
        ConfigError: If there is no such number format.
    """
    if name == "auto":
        return torch.bfloat16 if fast_bfloat16() else torch.float32
    if name not in _DTYPES:
        raise ConfigError(f"dtype must be auto or one of {', '.join(_DTYPES)}, got {name!r}")
    return _DTYPES[name]


def fast_bfloat16() -> bool:
    """Whether this machine multiplies bfloat16 matrices faster than float32 ones."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps transformers' progress bars and warnings off the terminal."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        # Reading GGUF draws bars of its own, which no switch turns off.
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextlib.contextmanager
def _reading(place: Path) -> Iterator[None]:
    """Turns what transformers says about unreadable files into our own error."""
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise DataError(
            f"{place}: these weights or their tokenizer cannot be read: {_first_line(error)}; a "
            f"folder that save_pretrained wrote, with safetensors and a tokenizer, can"
        ) from error


def _from_hub(ref: ModelRef) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ModuleNotFoundError:
        raise MissingExtra('weights from the hub need: pip install "potstill[train]"') from None
    wanted = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]
    asked = {"revision": ref.revision, "allow_patterns": wanted}
    with contextlib.suppress(LocalEntryNotFoundError):
        return Path(snapshot_download(ref.source, local_files_only=True, **asked))
    try:
        if is_offline():
            raise OSError("this run is offline")
        _refuse_what_does_not_fit(ref)
        return Path(snapshot_download(ref.source, **asked))
    except (OSError, HfHubHTTPError, OfflineError) as error:
        raise ConfigError(
            f"the weights of {ref.name} ({ref.source}) are not on this machine and could not be "
            f"fetched: {_first_line(error)}. Point the name at a folder or an endpoint in "
            f"potstill.yaml (models: {{{ref.name}: {{source: FOLDER}}}}), or give the folder itself"
        ) from error


def _refuse_what_does_not_fit(ref: ModelRef) -> None:
    needed = int(2 * (ref.parameters or 0))  # published weights take two bytes or more each
    home = Path(os.environ.get("HF_HOME") or Path.home())
    while not home.exists():
        home = home.parent
    free = shutil.disk_usage(home).free
    if needed > free:
        raise OSError(
            f"they take about {needed / 1e9:,.0f} GB and {free / 1e9:,.0f} GB of disk are free"
        )


def _refuse_foreign_code(folder: Path) -> None:
    config = folder / "config.json"
    if not config.exists():
        raise DataError(f"{folder} has no config.json, so it is not a Hugging Face folder")
    try:
        tree = json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{config} is not JSON: {error}") from None
    if "auto_map" in tree:
        raise DataError(
            f"{config} wants to run code from the model's folder (auto_map); that code is never "
            f"run here. Use a model whose architecture transformers knows"
        )
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(path.name for path in folder.glob("*.bin"))
        found = f"only pickled weights ({pickled[0]}), which may hold code" if pickled else "none"
        raise DataError(
            f"{folder} must hold safetensors weights, and there are {found}; load them once where "
            f"you trust them and save_pretrained(folder) writes safetensors"
        )


def _converted(path: Path) -> Path:
    """The Hugging Face folder of a GGUF file, made on first use (about 10 s for 135M)."""
    try:
        with path.open("rb") as file:
            key = hashlib.file_digest(file, "sha256").hexdigest()[:24]
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    folder = _home() / "gguf" / f"{path.stem}-{key}-{_CACHE_VERSION}"
    if folder.is_dir():
        return folder
    place = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    if importlib.util.find_spec("gguf") is None:
        raise MissingExtra('reading GGUF weights needs an extra: pip install "potstill[export]"')
    with quiet():
        with _reading(path), _gguf_read_once():
            config = AutoConfig.from_pretrained(**place)
            tokenizer = AutoTokenizer.from_pretrained(**place)
            model = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
        _forget_quantisation(model, config)
        with whole_folder(folder) as temporary:
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
    return folder


@contextlib.contextmanager
def _gguf_read_once() -> Iterator[None]:
    """Lets transformers parse a file's header once.

    It does so for the config, the tokenizer and the weights (twice), and makes the table of
    names anew for each tensor, which together take three quarters of the time.
    """
    import gguf

    slow = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    try:
        for name, function in slow.items():
            setattr(gguf, name, functools.cache(function))
        yield
    finally:
        for name, function in slow.items():
            setattr(gguf, name, function)


def _merged(adapter: Path) -> Path:
    """The Hugging Face folder of an adapter's base with the adapter in it, made on first use."""
    try:
        tree = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
        base = cached_folder(find_model(str(tree["base_model_name_or_path"])))
    except (ValueError, KeyError) as error:
        raise DataError(f"{adapter / 'adapter_config.json'} names no base model: {error}") from None
    key = hashlib.sha256(f"{weights_identity(adapter)} {weights_identity(base)}".encode())
    name = f"{adapter.resolve().name}-{key.hexdigest()[:24]}-{_CACHE_VERSION}"
    folder = _home() / "merged" / name
    if folder.is_dir():
        return folder
    if not any(adapter.glob("*.safetensors")):
        raise DataError(f"{adapter} holds no adapter in safetensors; pickled ones are not read")
    if importlib.util.find_spec("peft") is None:
        raise MissingExtra('adapters need an extra: pip install "potstill[train]"')
    from peft import PeftModel

    model, tokenizer = load_weights(base)
    own = any((adapter / file).exists() for file in ("tokenizer.json", "tokenizer_config.json"))
    with quiet(), _reading(adapter):
        tokenizer = AutoTokenizer.from_pretrained(adapter) if own else tokenizer
        merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
        with whole_folder(folder) as temporary:
            merged.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
    return folder


def _home() -> Path:
    return Path(os.environ.get("POTSTILL_HOME") or Path.home() / ".cache" / "potstill")


def _forget_quantisation(model: Any, config: Any) -> None:
    """The weights are plain floats by now; what says otherwise stops them from being saved."""
    for owner in (model.config, config):
        if hasattr(owner, "quantization_config"):
            del owner.quantization_config
    for name in ("hf_quantizer", "quantization_method", "is_quantized"):
        if name in vars(model):
            delattr(model, name)
    model.is_quantized = False
    model.hf_quantizer = None


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
