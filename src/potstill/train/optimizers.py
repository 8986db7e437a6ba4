"""Optimizers: what is kept beside the weights, and which weights decay."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from potstill.config import TrainConfig

BETAS = (0.9, 0.95)
"""AdamW's memory. 0.95 and not 0.999: runs are hundreds of steps, and in bf16 an average over
a thousand steps would stand still, because its changes are smaller than its last bit."""

MOMENTUM = 0.9
"""Of `sgd`."""

NUM_KEPT = {"adamw": 2, "sgd": 1, "adafactor": 0}
"""Numbers kept beside each weight; Adafactor's few for each row and column count nothing."""


def build_optimizer(
    parameters: Mapping[str, nn.Parameter], train: TrainConfig
) -> torch.optim.Optimizer:
    """The optimizer that `train.optimizer` names; weight decay is on matrices only.

    Bytes kept beside each float32 weight: 8 (adamw), 4 (sgd), near 0 (adafactor).

    Source:
        Loshchilov and Hutter (2019), "Decoupled Weight Decay Regularization",
        arXiv:1711.05101. Shazeer and Stern (2018), "Adafactor: Adaptive Learning Rates with
        Sublinear Memory Cost", arXiv:1804.04235.
    """
    matrices = [p for p in parameters.values() if p.ndim >= 2]
    vectors = [p for p in parameters.values() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": train.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if train.optimizer == "adafactor":
        return torch.optim.Adafactor(groups, lr=train.learning_rate)
    fused = all(p.device.type in ("cpu", "cuda") for p in parameters.values())
    if train.optimizer == "sgd":
        # torch's fused SGD does not know weights that are shared out.
        fused = fused and not train.shard
        return torch.optim.SGD(groups, lr=train.learning_rate, momentum=MOMENTUM, fused=fused)
    return torch.optim.AdamW(groups, lr=train.learning_rate, betas=BETAS, fused=fused)
