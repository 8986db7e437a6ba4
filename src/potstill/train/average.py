"""A moving average of the weights: smoother than the last step, kept in float32."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import nn

from potstill.train.shard import local


class Average:
    """avg <- d * avg + (1 - d) * weights after each step, d = min(decay, (1 + step) / (10 + step)).

    The first steps count less than `decay` says, so that the untrained weights are soon
    forgotten.

    Source:
        Polyak and Juditsky (1992), "Acceleration of Stochastic Approximation by Averaging";
        the rise of the decay as in TensorFlow's ExponentialMovingAverage (`num_updates`).
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float):
        self.parameters, self.decay = parameters, decay
        self.values = {name: local(p.detach()).float().clone() for name, p in parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the weights after `step` steps."""
        share = 1.0 - min(self.decay, (1 + step) / (10 + step))
        for name, parameter in self.parameters.items():
            self.values[name].lerp_(local(parameter.detach()).float(), share)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the averaged weights inside, and its own again afterwards."""
        with torch.no_grad():
            own = {name: local(p.detach()).clone() for name, p in self.parameters.items()}
            try:
                for name, parameter in self.parameters.items():
                    local(parameter).copy_(self.values[name])
                yield
            finally:
                for name, parameter in self.parameters.items():
                    local(parameter).copy_(own[name])
