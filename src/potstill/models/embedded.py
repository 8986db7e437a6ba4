"""Engines that run inside this process: folders of CTranslate2 and of ONNX Runtime GenAI.

Everything is read from the artefact's own folder: weights, tokenizer, chat template and the
tokens that end an answer. So what is asked here is what a user gets.

Shape letters of this file:
    T  tokens of an answer        V  vocabulary
"""

from __future__ import annotations

import importlib.util
import json
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from potstill.data.render import render_prompt
from potstill.errors import DataError, MissingExtra
from potstill.models.catalog import EMBEDDED
from potstill.models.machine import num_cores
from potstill.types import Message, Sampling

PACKAGES = {"ctranslate2": "ctranslate2", "onnx": "onnxruntime-genai"}
"""Kind of folder -> the package that runs it."""


class Generated(NamedTuple):
    """One answer, token by token."""

    ids: list[int]
    """The end token included, where one ended it."""

    logits_TV: np.ndarray | None
    """float32, before any sampling; None unless asked for."""


class Embedded(Protocol):
    """An engine with one model in it. Not for two threads at once."""

    tokenizer: Any
    """transformers' reading of the tokenizer in the folder."""

    end_ids: tuple[int, ...]
    """What ends an answer, as the folder says."""

    context: int | None

    def encode(self, text: str) -> list[int]:
        """A rendered prompt cut up by the engine's own tokenizer."""
        ...

    def rendered(self, messages: Sequence[Message]) -> list[int]:
        """Messages through the folder's own chat template and tokenizer."""
        ...

    def generate(
        self,
        ids: Sequence[int],
        sampling: Sampling,
        *,
        on_token: Callable[[int], bool] | None = None,
        logits: bool = False,
    ) -> Generated:
        """An answer to a prompt; `on_token` is told each token, and True from it ends there."""
        ...


def open_embedded(folder: Path, *, threads: int | None = None) -> Embedded:
    """Loads a folder into its engine.

    Raises:
        MissingExtra: If the engine is not installed.
        DataError: If it cannot read the folder.
    """
    kind = kind_of(folder)
    make = _CTranslate2 if kind == "ctranslate2" else _OnnxGenAi
    try:
        return make(folder, threads or num_cores())
    except (RuntimeError, ValueError, OSError) as error:
        raise DataError(f"{PACKAGES[kind]} cannot load {folder}: {error}") from error


def kind_of(folder: Path) -> str:
    """Whose folder it is: a key of `PACKAGES`.

    Raises:
        MissingExtra: If the engine is not installed.
        DataError: If it is no engine's.
    """
    kind = next((kind for kind, file in EMBEDDED.items() if (folder / file).is_file()), None)
    if kind is None:
        raise DataError(f"{folder} has neither of {', '.join(EMBEDDED.values())}")
    if not is_installed(kind):
        raise MissingExtra(
            f'running {folder.name} needs {PACKAGES[kind]}: pip install "potstill[{kind}]"'
        )
    return kind


def is_installed(kind: str) -> bool:
    """Whether the engine of this kind of folder is installed."""
    return importlib.util.find_spec(PACKAGES[kind].replace("-", "_")) is not None


class _CTranslate2:
    """A folder that CTranslate2 wrote, with tokenizer and generation_config.json beside it.

    `Sampling.seed` has no effect: its threads draw from random numbers of their own.
    """

    def __init__(self, folder: Path, threads: int):
        import ctranslate2

        generator = ctranslate2.Generator(
            str(folder), device="cpu", inter_threads=1, intra_threads=threads
        )
        # A generator that is left when the interpreter ends aborts the process.
        self._held = [generator]
        weakref.finalize(self, self._held.clear)
        self.tokenizer = _tokenizer(folder)
        told = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
        self.end_ids = _ids(told["eos_token_id"])
        self.context: int | None = told.get("max_length")

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def rendered(self, messages: Sequence[Message]) -> list[int]:
        return render_prompt(self.tokenizer, messages)

    def generate(
        self,
        ids: Sequence[int],
        sampling: Sampling,
        *,
        on_token: Callable[[int], bool] | None = None,
        logits: bool = False,
    ) -> Generated:
        drawn: dict[str, Any] = {"sampling_topk": 1}
        if sampling.temperature > 0:
            drawn = {
                "sampling_topk": 0,
                "sampling_topp": sampling.top_p,
                "sampling_temperature": sampling.temperature,
            }

        (found,) = self._held[0].generate_batch(
            [self.tokenizer.convert_ids_to_tokens(list(ids))],
            max_length=sampling.max_new_tokens,
            end_token=list(self.end_ids),
            return_end_token=True,
            include_prompt_in_result=False,
            return_logits_vocab=logits,
            callback=on_token and (lambda step: on_token(step.token_id)),
            **drawn,
        )
        rows = (
            [np.array(row, dtype=np.float32).reshape(-1) for row in found.logits[0]]
            if logits
            else None
        )
        return Generated(list(found.sequences_ids[0]), None if rows is None else np.stack(rows))


class _OnnxGenAi:
    """A folder of the ONNX Runtime GenAI model builder."""

    def __init__(self, folder: Path, threads: int):
        import onnxruntime_genai

        config = onnxruntime_genai.Config(str(folder))
        options = {"intra_op_num_threads": threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self._genai = onnxruntime_genai
        self._model = onnxruntime_genai.Model(config)
        self._own = onnxruntime_genai.Tokenizer(self._model)
        self.tokenizer = _tokenizer(folder)
        told = json.loads((folder / EMBEDDED["onnx"]).read_text(encoding="utf-8"))["model"]
        self.end_ids = _ids(told["eos_token_id"])
        self.context: int | None = told.get("context_length")

    def encode(self, text: str) -> list[int]:
        return [int(token) for token in self._own.encode(text)]

    def rendered(self, messages: Sequence[Message]) -> list[int]:
        turns = [message.model_dump(include={"role", "content"}) for message in messages]
        text = self._own.apply_chat_template(json.dumps(turns), add_generation_prompt=True)
        return self.encode(text)

    def generate(
        self,
        ids: Sequence[int],
        sampling: Sampling,
        *,
        on_token: Callable[[int], bool] | None = None,
        logits: bool = False,
    ) -> Generated:
        params = self._genai.GeneratorParams(self._model)
        drawn: dict[str, Any] = {"do_sample": False}
        if sampling.temperature > 0:
            drawn = {
                "do_sample": True,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": 0,
                "random_seed": sampling.seed,
            }
        params.set_search_options(max_length=len(ids) + sampling.max_new_tokens, **drawn)
        generator = self._genai.Generator(self._model, params)
        generator.append_tokens(np.array(ids, dtype=np.int32))
        said, rows = [], []
        while not generator.is_done():
            if logits:
                rows.append(np.array(generator.get_logits(), dtype=np.float32)[0, -1])
            generator.generate_next_token()
            said.append(int(generator.get_next_tokens()[0]))
            if on_token is not None and on_token(said[-1]):
                break
        return Generated(said, np.stack(rows) if rows else None)


def _tokenizer(folder: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    # config.json beside it is the engine's, and tells transformers nothing.
    return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)


def _ids(told: int | Sequence[int]) -> tuple[int, ...]:
    return (told,) if isinstance(told, int) else tuple(told)
