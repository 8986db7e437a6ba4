"""A teacher beside the student while it trains, and what the student learns of its insides.

Shape letters of this file:
    B  rows        T  places of a row, padding included     H  hidden width
    N  places that are compared, over all rows              L  tokens of one document
    S, U  hidden widths of student and teacher

Both models read the same tokens; forward hooks keep the outputs of the layers and projections
that are compared. Queries, keys and values are taken as the projections give them: before
rotary positions, and before the norms that some families put on queries and keys.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from potstill.config import AttentionConfig, HiddenConfig, LossConfig
from potstill.data.render import Rendered
from potstill.errors import ConfigError, TrainError, VocabMismatch
from potstill.models.longrope import hidden_states, rope_switch
from potstill.models.weights import load_weights
from potstill.train.intermediate import (
    Places,
    find_places,
    hidden_cosine,
    hidden_mse,
    layer_pairs,
    relation_heads,
    relation_kl,
)
from potstill.train.objective import LossSums, Objective, TeacherTargets
from potstill.train.student import decoder_layers, number_format

DISTANCES = {"cosine": hidden_cosine, "mse": hidden_mse}
RELATIONS = {"qkv": ("query", "key", "value"), "value": ("value",)}

FIT_TOKENS_PER_WIDTH = 4
"""A projection begins as the best fit on so many tokens for each number of the student's."""

FIT_ROWS = 128
"""At most so many rows are read for that."""

RIDGE = 1e-3
"""Added to the fit's diagonal, as a share of its mean: keeps few tokens from being learnt by
heart."""


class Part(NamedTuple):
    """A stretch of a module's output."""

    module: nn.Module
    start: int = 0
    width: int | None = None
    """None: all of it."""


Parts = dict[tuple[str, int], Part]
"""What is compared of one model: ("hidden" | "query" | "key" | "value", layer) -> where it is."""


def attention_parts(layer: nn.Module, config: Any) -> dict[str, Part]:
    """Where a layer's queries, keys and values come from.

    Raises:
        TrainError: If its attention has no such projections.
    """
    names = {"query": "q_proj", "key": "k_proj", "value": "v_proj"}
    for module in layer.modules():
        if all(isinstance(getattr(module, name, None), nn.Module) for name in names.values()):
            projections = {what: getattr(module, name) for what, name in names.items()}
            return {what: Part(p, 0, p.out_features) for what, p in projections.items()}
        if isinstance(fused := getattr(module, "qkv_proj", None), nn.Module):
            num_heads, num_groups = config.num_attention_heads, config.num_key_value_heads
            size = fused.out_features // (num_heads + 2 * num_groups)
            queries, others = num_heads * size, num_groups * size
            return {
                "query": Part(fused, 0, queries),
                "key": Part(fused, queries, others),
                "value": Part(fused, queries + others, others),
            }
    raise TrainError(
        f"{type(layer).__name__} has no projections of queries, keys and values (q_proj, k_proj, "
        f"v_proj or qkv_proj), so its attention cannot be compared; leave loss.attention out"
    )


@contextlib.contextmanager
def watched(parts: Parts) -> Iterator[dict[tuple[str, int], Tensor]]:
    """Keeps what the parts give, [B, T, width], in every forward pass inside the block."""
    found: dict[tuple[str, int], Tensor] = {}

    def listen(key: tuple[str, int], part: Part) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            whole = output[0] if isinstance(output, tuple) else output
            end = None if part.width is None else part.start + part.width
            found[key] = whole[..., part.start : end]

        return hook

    handles = [part.module.register_forward_hook(listen(key, part)) for key, part in parts.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


class Matching(nn.Module):
    """The terms between the layers, and the projections that they learn.

    Args:
        student: As it is trained, adapters included.
        teacher: Of the same tokens. It is put on the student's device, in eval mode, without
            gradients, and is no part of this module: neither saved nor trained.

    Raises:
        ConfigError: If a layer map or the relation heads do not fit the two models.
        TrainError: If a family does not show what is compared.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, loss: LossConfig):
        super().__init__()
        self._teacher = [teacher.to(student.device).eval().requires_grad_(False)]
        self.hidden, self.attention = loss.hidden, loss.attention
        layers = decoder_layers(student), decoder_layers(teacher)
        configs = student.config.get_text_config(), teacher.config.get_text_config()
        counts = len(layers[0]), len(layers[1])
        self.parts: tuple[Parts, Parts] = {}, {}
        self.hidden_pairs: list[tuple[int, int]] = []
        self.attention_pairs: list[tuple[int, int]] = []
        self.projections = nn.ModuleDict()
        if self.hidden is not None:
            self.hidden_pairs = layer_pairs(self.hidden.layers, *counts, key="loss.hidden.layers")
            widths = configs[0].hidden_size, configs[1].hidden_size
            for pair in self.hidden_pairs:
                for side, index in enumerate(pair):
                    self.parts[side]["hidden", index] = Part(layers[side][index])
                if widths[0] != widths[1]:
                    self.projections[_name(pair)] = nn.Linear(*widths, bias=False)
        if self.attention is not None:
            self.attention_pairs = layer_pairs(
                self.attention.layers, *counts, key="loss.attention.layers"
            )
            for pair in self.attention_pairs:
                for side, index in enumerate(pair):
                    found = attention_parts(layers[side][index], configs[side])
                    for what in RELATIONS[self.attention.kind]:
                        self.parts[side][what, index] = found[what]
            taken = [part.width for parts in self.parts for part in parts.values() if part.width]
            self.heads = relation_heads(taken, self.attention.heads)
        self.to(student.device)

    @property
    def teacher(self) -> Any:
        """The model that is learnt from."""
        return self._teacher[0]

    def trainable(self) -> dict[str, nn.Parameter]:
        """The projections' weights, by names that no weight of a student has."""
        return {f"matching.{name}": p for name, p in self.named_parameters()}

    @torch.no_grad()
    def ask_teacher(
        self, ids_BT: Tensor, is_label_BT: Tensor, attention_BT: Tensor | None
    ) -> dict[tuple[str, int], Tensor]:
        """What the teacher's parts give on the same tokens."""
        with watched(self.parts[1]) as found:
            hidden_states(self.teacher, ids_BT, is_label_BT, attention_BT)
        return found

    def forward(
        self,
        student: Mapping[tuple[str, int], Tensor],
        teacher: Mapping[tuple[str, int], Tensor],
        places: Places,
    ) -> dict[str, Tensor]:
        """The terms, not weighted, each summed over the batch as `Places.weights` counts.

        Returns:
            `hidden_cosine` or `hidden_mse`, and `attention_nats`: the mean over layer pairs and,
            for attention, over what is related.
        """
        terms = {}
        with torch.autocast(places.is_label_BT.device.type, enabled=False):
            if self.hidden is not None:
                terms[f"hidden_{self.hidden.kind}"] = self._hidden(
                    self.hidden, student, teacher, places
                )
            if self.attention is not None:
                terms["attention_nats"] = self._attention(self.attention, student, teacher, places)
        return terms

    def _hidden(
        self, config: HiddenConfig, student: Mapping, teacher: Mapping, places: Places
    ) -> Tensor:
        weights_BT = places.weights(config.tokens)
        is_taken_BT = weights_BT > 0
        sums = []
        for pair in self.hidden_pairs:
            student_NH = student["hidden", pair[0]][is_taken_BT].float()
            if _name(pair) in self.projections:
                student_NH = self.projections[_name(pair)](student_NH)
            distance_N = DISTANCES[config.kind](student_NH, teacher["hidden", pair[1]][is_taken_BT])
            sums.append((weights_BT[is_taken_BT] * distance_N).sum())
        return torch.stack(sums).mean()

    def _attention(
        self, config: AttentionConfig, student: Mapping, teacher: Mapping, places: Places
    ) -> Tensor:
        weights_N = places.weights(config.tokens).flatten()
        sums = []
        for places_L in places.documents():
            for pair in self.attention_pairs:
                for what in RELATIONS[config.kind]:
                    ours_LD = student[what, pair[0]].flatten(0, 1)[places_L]
                    theirs_LD = teacher[what, pair[1]].flatten(0, 1)[places_L]
                    # Relations are worked out again for the gradient: those of one document
                    # are [R, L, L], and all of a batch would not fit where attention does.
                    kl_L = checkpoint(
                        relation_kl, ours_LD, theirs_LD, heads=self.heads, use_reentrant=False
                    )
                    sums.append((weights_N[places_L] * kl_L).sum())
        if not sums:  # a process that only helps others to gather their weights
            return weights_N.sum()
        num_compared = len(self.attention_pairs) * len(RELATIONS[config.kind])
        return torch.stack(sums).sum() / num_compared

    def weight(self, term: str) -> float:
        """What a term is multiplied by."""
        section = self.attention if term == "attention_nats" else self.hidden
        return section.weight if section is not None else 0.0

    @torch.no_grad()
    def fit(self, student: nn.Module, rows: Sequence[Rendered]) -> None:
        """Sets each projection to the best linear map on the first rows (ridge regression).

        From random values it would have to be learnt at the student's learning rate, and until
        then the student would learn from noise. With `cosine` every token counts alike; with
        `mse` long vectors count more, as they do in the term.
        """
        if not self.projections:
            return
        was_training = student.training
        student.eval()
        needed = FIT_TOKENS_PER_WIDTH * student.config.get_text_config().hidden_size
        sums: dict[str, tuple[Tensor, Tensor]] = {}
        num_tokens = 0
        for row in rows[:FIT_ROWS]:
            ids_BT = torch.tensor([row.ids[:-1]], device=student.device)
            is_label_BT = torch.tensor([row.loss_mask[1:]], device=student.device).bool()
            with watched(self.parts[0]) as ours:
                hidden_states(student, ids_BT, is_label_BT)
            theirs = self.ask_teacher(ids_BT, is_label_BT, None)
            for pair in self.hidden_pairs:
                ours_NS, theirs_NU = ours["hidden", pair[0]][0], theirs["hidden", pair[1]][0]
                scale_N1 = torch.ones_like(theirs_NU[:, :1], dtype=torch.float64)
                if self.hidden is not None and self.hidden.kind == "cosine":
                    scale_N1 = theirs_NU.double().norm(dim=-1, keepdim=True)
                ours_NS, theirs_NU = ours_NS.double() / scale_N1, theirs_NU.double() / scale_N1
                squares, products = sums.get(_name(pair), (0.0, 0.0))
                sums[_name(pair)] = (
                    squares + ours_NS.T @ ours_NS,
                    products + ours_NS.T @ theirs_NU,
                )
            num_tokens += ids_BT.shape[1]
            if num_tokens >= needed:
                break
        for name, (squares_SS, products_SU) in sums.items():
            squares_SS.diagonal().add_(RIDGE * squares_SS.diagonal().mean())
            map_SU = torch.linalg.solve(squares_SS, products_SU)
            self.projections[name].weight.copy_(map_SU.T)
        student.train(was_training)


class MatchedObjective(nn.Module):
    """An objective with the terms between the layers added, in one module's forward.

    They are worked out in training mode alone: the validation loss, which chooses the best
    step, is the one of what the student says, and takes no teacher.
    """

    takes_packed = False
    """A teacher of another family may mix documents up where the student does not."""

    def __init__(self, objective: Objective, matching: Matching):
        super().__init__()
        self.objective, self.matching = objective, matching

    def forward(
        self,
        ids_BT: Tensor,
        loss_mask_BT: Tensor,
        attention_BT: Tensor | None,
        targets: TeacherTargets | None,
    ) -> LossSums:
        """As `Objective`, with `loss` the weighted sum of all and the terms beside it."""
        model = self.objective.model
        if not model.training:
            return self.objective(ids_BT, loss_mask_BT, attention_BT, targets)
        matching, inputs_BT = self.matching, ids_BT[:, :-1]
        _refuse_mixed_rope((model, matching.teacher), inputs_BT.shape[1])
        with watched(matching.parts[0]) as ours:
            sums = self.objective(ids_BT, loss_mask_BT, attention_BT, targets)
        is_label_BT = loss_mask_BT[:, 1:].bool()
        attention_BT = None if attention_BT is None else attention_BT[:, :-1]
        theirs = matching.ask_teacher(inputs_BT, is_label_BT, attention_BT)
        places = find_places(is_label_BT, attention_BT=attention_BT)
        terms = matching(ours, theirs, places)
        more = sum(matching.weight(name) * term for name, term in terms.items())
        matched = {name: term.detach() for name, term in terms.items()}
        return sums._replace(loss=sums.loss + more, matched=matched)


def load_teacher(folder: str | Path | None, precision: str) -> nn.Module | None:
    """A teacher's weights, in the number format that the student computes in; None for none."""
    if folder is None:
        return None
    weights, arithmetic = number_format(precision)
    return load_weights(folder, dtype=str(arithmetic or weights).removeprefix("torch."))[0]


def with_matching(objective: Objective, matching: Matching | None) -> nn.Module:
    """The objective, with the terms between the layers where there are any."""
    return objective if matching is None else MatchedObjective(objective, matching)


def build_matching(
    student: nn.Module,
    teacher: nn.Module | None,
    loss: LossConfig,
    rows: Sequence[Rendered],
) -> Matching | None:
    """The terms between the layers that `loss` asks for, ready for the first step; None: none.

    Raises:
        ConfigError: If they are asked for and no teacher is given, or the layers do not fit.
        VocabMismatch: If the rows have tokens that the teacher does not know.
    """
    if not loss.needs_teacher:
        return None
    if teacher is None:
        raise ConfigError(
            "loss.hidden and loss.attention compare the student with the teacher's own weights, "
            "and no teacher was given: fine_tune_student(..., teacher=model)"
        )
    num_known = teacher.get_input_embeddings().num_embeddings
    largest = max(max(row.ids) for row in rows)
    if largest >= num_known:
        raise VocabMismatch(
            f"the rows have token {largest:,} and the teacher knows {num_known:,}: loss.hidden "
            f"and loss.attention need a teacher of the student's tokenizer"
        )
    matching = Matching(student, teacher, loss)
    matching.fit(student, rows)
    return matching


def _refuse_mixed_rope(models: Sequence[Any], width: int) -> None:
    for model in models:
        switch = rope_switch(model.config)
        if switch is not None and width > switch:
            raise TrainError(
                f"{type(model).__name__} turns positions differently beyond {switch:,} tokens, and "
                f"a batch is then computed in parts whose layers cannot be compared; set "
                f"train.max_tokens to {switch:,} or leave loss.hidden and loss.attention out"
            )


def _name(pair: tuple[int, int]) -> str:
    return f"{pair[0]}-{pair[1]}"
