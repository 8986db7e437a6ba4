"""The student as it is trained: number format, what is frozen, LoRA, and how it is saved."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from potstill.config import TrainConfig
from potstill.data.render import end_token_ids
from potstill.errors import ConfigError, TrainError
from potstill.models.weights import fast_bfloat16, quiet
from potstill.rundir import whole_folder
from potstill.train.qlora import is_four_bit, num_weights, put_together, to_four_bits

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Student:
    """A model ready for training."""

    model: nn.Module
    """The transformers model; with LoRA its layers already hold the updates."""

    adapter: Any
    """The peft model around `model`, or None."""

    device: torch.device
    weights: torch.dtype
    arithmetic: torch.dtype | None
    """Autocast's number format; None where arithmetic is done in the weights' own."""

    @property
    def stored(self) -> torch.dtype:
        """Format that the trained weights are saved in: the one that they are used in."""
        return self.arithmetic or self.weights

    @property
    def precision(self) -> str:
        """fp32, bf16 or autocast."""
        if self.arithmetic is not None:
            return "autocast"
        return "bf16" if self.weights == torch.bfloat16 else "fp32"

    def trainable(self) -> dict[str, nn.Parameter]:
        """Parameters that learn, by name, tied ones once."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    @property
    def num_weights(self) -> int:
        """Of the model, updates included."""
        return sum(num_weights(p) for p in self.model.parameters())

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """The number format of forward passes."""
        enabled = self.arithmetic is not None
        dtype = self.arithmetic or torch.bfloat16
        with torch.autocast(self.device.type, dtype=dtype, enabled=enabled):
            yield


def prepare_student(model: nn.Module, train: TrainConfig, device: torch.device) -> Student:
    """Puts a model into the form that `train` asks for, in place.

    LoRA's first values come from torch's global generator: seed it before.

    Raises:
        TrainError: If nothing is left to train.
    """
    weights, arithmetic = number_format(train.precision)
    model.requires_grad_(True)
    if train.adapter is not None and train.adapter.kind == "qlora":
        to_four_bits(model, device, arithmetic or weights)
    model.to(device=device, dtype=weights)
    adapter = None
    if train.adapter is not None:
        from peft import LoraConfig, get_peft_model

        settings = LoraConfig(
            r=train.adapter.r,
            lora_alpha=train.adapter.alpha,
            lora_dropout=train.adapter.dropout,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        adapter = get_peft_model(model, settings)
        model = adapter.get_base_model()
    else:
        _freeze(model, train)
    if train.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    student = Student(model, adapter, device, weights, arithmetic)
    if not student.trainable():
        raise TrainError(
            "no weight is left to train; set train.freeze_embeddings: false "
            "or lower train.freeze_layers"
        )
    return student


def _freeze(model: nn.Module, train: TrainConfig) -> None:
    """Keeps word vectors and lowest layers as they are; gradients end above them."""
    if train.freeze_embeddings:
        model.get_input_embeddings().requires_grad_(False)
    if train.freeze_layers:
        for layer in decoder_layers(model)[: train.freeze_layers]:
            layer.requires_grad_(False)


def number_format(precision: str) -> tuple[torch.dtype, torch.dtype | None]:
    """Format of the weights, and autocast's (None without autocast), for `train.precision`."""
    if precision == "auto":
        precision = "autocast" if fast_bfloat16() else "fp32"
    elif precision != "fp32" and not fast_bfloat16():
        log.warning("this machine has no bf16 arithmetic: precision %s is slow", precision)
    if precision == "autocast":
        return torch.float32, torch.bfloat16
    return (torch.bfloat16 if precision == "bf16" else torch.float32), None


def merged(student: Student) -> nn.Module:
    """The trained model without adapter layers, in the number format it is stored in.

    LoRA updates are added in float32: in bf16 most of a small update would be rounded away.
    """
    if student.adapter is None:
        return student.model.to(student.stored)
    if is_four_bit(student.model):
        put_together(student.model)
    student.adapter.float()
    return student.adapter.merge_and_unload().to(student.stored)


def save_adapter(student: Student, out: Path) -> None:
    """Writes the LoRA updates as a peft folder, before `merged` puts them into the weights.

    A folder of an earlier training is taken away where there is no adapter.
    """
    if student.adapter is None:
        shutil.rmtree(out, ignore_errors=True)
        return
    with whole_folder(out) as folder, quiet():
        # "auto" would ask the hub whether the base has other word vectors; LoRA leaves them.
        student.adapter.save_pretrained(folder, save_embedding_layers=False)


def save_model(model: nn.Module, tokenizer: Any, out: Path) -> None:
    """Writes a plain Hugging Face folder, whole or not at all.

    generation_config.json names every id that ends an answer: the chat template's end of
    turn, the tokenizer's and the model's own. A missing one makes the model talk on.
    """
    from transformers import GenerationConfig

    pad = tokenizer.pad_token_id
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=end_token_ids(tokenizer, model.generation_config),
        pad_token_id=tokenizer.eos_token_id if pad is None else pad,
    )
    with whole_folder(out) as folder, quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def signature(model: nn.Module) -> list[Any]:
    """Names, shapes and a few values of the weights: tells students apart without reading all."""
    return [
        (name, tuple(p.shape), str(p.dtype), p.detach().flatten()[:8].tolist())
        for name, p in model.named_parameters()
    ]


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The layers of a model, in order."""
    return getattr(model.base_model, layers_name(model))


def layers_name(model: nn.Module) -> str:
    """What the model calls its list of layers.

    Raises:
        ConfigError: If it keeps them in a way that is not known here.
    """
    total = model.config.get_text_config().num_hidden_layers
    for name, module in model.base_model.named_children():
        if isinstance(module, nn.ModuleList) and len(module) == total:
            return name
    raise ConfigError(
        f"{type(model).__name__} keeps its layers in a way this version does not know, so no "
        f"student can be cut out of it; name a smaller student instead"
    )
