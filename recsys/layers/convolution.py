"""Short causal convolutions over time."""

from typing import Any

import torch
from torch import Tensor, nn

from recsys.layers.mixer import Mixer, State


class CausalConvolution(Mixer):
    """Each channel on its own: y_t = bias + sum over lags j < width of weight_j x_{t-j}.

    What came before the first event is 0. Its state is the last width - 1 inputs.
    """

    def __init__(self, dim: int, width: int):
        super().__init__()
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width}")
        bound = width**-0.5
        self.weight = nn.Parameter(torch.empty(width, dim).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(dim).uniform_(-bound, bound))

    def forward(self, x_BTD: Tensor, times_BT: Tensor | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        return _Convolve.apply(x_BTD, self.weight, self.bias)

    def init_state(self, batch_size: int) -> State:
        """(the last inputs [B, width - 1, D], newest first)."""
        width, dim = self.weight.shape
        return (self.weight.new_zeros(batch_size, width - 1, dim),)

    def step(
        self, x_BD: Tensor, state: State, times_B: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """([B, D], the state behind the event)."""
        inputs_BWD = torch.cat([x_BD[:, None], state[0]], dim=1)
        return (inputs_BWD * self.weight).sum(dim=1) + self.bias, (inputs_BWD[:, :-1],)


class _Convolve(torch.autograd.Function):
    """Shifted products, added in place, in the layout that everything else here has.

    Forward and backward at [64, 200, 128], width 4, one thread: 11 ms; left to autograd 19, as
    torch's grouped conv1d 26, most of it for turning time and channels around.
    """

    @staticmethod
    def forward(ctx: Any, x_BTD: Tensor, weight_WD: Tensor, bias_D: Tensor) -> Tensor:
        ctx.save_for_backward(x_BTD, weight_WD)
        y_BTD = torch.addcmul(bias_D, x_BTD, weight_WD[0])
        for lag in range(1, min(len(weight_WD), x_BTD.shape[1])):
            y_BTD[:, lag:].addcmul_(x_BTD[:, :-lag], weight_WD[lag])
        return y_BTD

    @staticmethod
    def backward(ctx: Any, grad_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x_BTD, weight_WD = ctx.saved_tensors
        dx_BTD = grad_BTD * weight_WD[0]
        dweight_WD = torch.zeros_like(weight_WD)
        dweight_WD[0] = (grad_BTD * x_BTD).sum(dim=(0, 1))
        for lag in range(1, min(len(weight_WD), x_BTD.shape[1])):
            later = grad_BTD[:, lag:]
            dx_BTD[:, :-lag].addcmul_(later, weight_WD[lag])
            dweight_WD[lag] = (later * x_BTD[:, :-lag]).sum(dim=(0, 1))
        return dx_BTD, dweight_WD, grad_BTD.sum(dim=(0, 1))
