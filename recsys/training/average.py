"""A running mean of a model's weights, which ranks better than the weights of the last step."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

FIRST_STEPS = 10
"""How slowly the share of the past rises at the beginning: half after about so many steps."""


class RunningMean:
    """m <- d m + (1 - d) w after each step (Polyak & Juditsky 1992, with exponential weights).

    d is `decay`, and (1 + step) / (10 + step) while that is less, so that the random weights of the
    beginning are soon forgotten. What a model holds beside its parameters is not averaged.
    """

    def __init__(self, model: nn.Module, decay: float):
        self._decay = decay
        self._weights = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._mean = {name: p.detach().clone() for name, p in self._weights.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimizer step `step`, counted from 1."""
        decay = min(self._decay, (1 + step) / (FIRST_STEPS + step))
        weights: list[Tensor] = list(self._weights.values())
        torch._foreach_lerp_(list(self._mean.values()), weights, 1.0 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the mean for its weights, until the end of the block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, p in self._weights.items():
            p.data, self._mean[name] = self._mean[name], p.data

    def state(self) -> dict[str, Tensor]:
        """The mean of each parameter by its name."""
        return self._mean

    def load_state(self, mean: dict[str, Tensor]) -> None:
        """Go on from what `state` gave. ValueError where it is of another model."""
        if mean.keys() != self._mean.keys():
            raise ValueError("the state has no mean of these weights")
        for name, tensor in mean.items():
            self._mean[name].copy_(tensor)
