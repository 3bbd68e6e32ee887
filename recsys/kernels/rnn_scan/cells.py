"""Recurrent cells whose recurrence is diagonal, so that every channel walks by itself.

The diagonal GRU and LSTM are those of ParaRNN (Danieli et al., 2025): Cho et al. (2014) and
Hochreiter & Schmidhuber (1997) with their recurrent matrices cut down to the diagonal.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

Tensors = tuple[Tensor, ...]


class Cell(ABC):
    """One step of a recurrent network, channel by channel.

    A cell holds no tensors. Its step must be elementwise: channel d of a new state depends on
    channel d of the state, the gates and the parameters alone.
    """

    num_gates: ClassVar[int]
    """G: how many pre-activations and how many recurrent parameters a channel has."""
    num_states: ClassVar[int]
    """S: how many numbers a channel remembers; the first is the output h."""

    @abstractmethod
    def step(self, state: Tensors, u: Tensors, params: Tensors) -> Tensors:
        """The next state, S tensors [..., D] of S states and G gates [..., D]; G params [D]."""

    def vjp(
        self, state: Tensors, u: Tensors, params: Tensors, gradient: Tensors
    ) -> tuple[Tensors, Tensors, Tensors]:
        """Gradients of a step's state, u and params, each [..., D], given that of its result.

        By autograd; a cell may write its own.
        """
        with torch.enable_grad():
            inputs = [x.detach().requires_grad_() for x in (*state, *u)]
            inputs += [a.detach().expand_as(state[0]).clone().requires_grad_() for a in params]
            S, G = self.num_states, self.num_gates
            after = self.step(tuple(inputs[:S]), tuple(inputs[S : S + G]), tuple(inputs[S + G :]))
            # A state that depends on none of the inputs has no gradient to give.
            joined = [(y, g) for y, g in zip(after, gradient, strict=True) if y.requires_grad]
            if not joined:
                got: Tensors = tuple(torch.zeros_like(x) for x in inputs)
            else:
                outputs, weights = zip(*joined, strict=True)
                got = torch.autograd.grad(
                    outputs, inputs, weights, allow_unused=True, materialize_grads=True
                )
        return got[:S], got[S : S + G], got[S + G :]


@dataclass(frozen=True)
class GRUCell(Cell):
    """Gates z, r, c; h' = (1 - z) h + z c with c = tanh(a_c (r h) + u_c).

    As Cho et al. write it: the reset gate r acts before the recurrent weight and z weighs what is
    new. (torch.nn.GRU has r behind the recurrent product with its bias, and 1 - z for z.)
    """

    num_gates: ClassVar[int] = 3
    num_states: ClassVar[int] = 1

    def step(self, state: Tensors, u: Tensors, params: Tensors) -> Tensors:
        (h,) = state
        z, _, c = _gru_gates(h, u, params)
        return (h + z * (c - h),)

    def vjp(
        self, state: Tensors, u: Tensors, params: Tensors, gradient: Tensors
    ) -> tuple[Tensors, Tensors, Tensors]:
        (h,), (g,), (a_z, a_r, a_c) = state, gradient, params
        z, r, c = _gru_gates(h, u, params)
        du_z = g * (c - h) * z * (1 - z)
        du_c = g * z * (1 - c * c)
        d_rh = du_c * a_c
        du_r = d_rh * h * r * (1 - r)
        dh = g * (1 - z) + du_z * a_z + du_r * a_r + d_rh * r
        return (dh,), (du_z, du_r, du_c), (du_z * h, du_r * h, du_c * r * h)


@dataclass(frozen=True)
class LSTMCell(Cell):
    """Gates i, f, g, o; c' = f c + i g and h' = o tanh(c'). The state is h, then c."""

    num_gates: ClassVar[int] = 4
    num_states: ClassVar[int] = 2

    def step(self, state: Tensors, u: Tensors, params: Tensors) -> Tensors:
        h, c = state
        i, f, g, o = _lstm_gates(h, u, params)
        c = f * c + i * g
        return o * torch.tanh(c), c

    def vjp(
        self, state: Tensors, u: Tensors, params: Tensors, gradient: Tensors
    ) -> tuple[Tensors, Tensors, Tensors]:
        (h, c), (dh_next, dc_next) = state, gradient
        i, f, g, o = _lstm_gates(h, u, params)
        out = torch.tanh(f * c + i * g)
        dc = dc_next + dh_next * o * (1 - out * out)
        du = (
            dc * g * i * (1 - i),
            dc * c * f * (1 - f),
            dc * i * (1 - g * g),
            dh_next * out * o * (1 - o),
        )
        dh = sum((du_k * a_k for du_k, a_k in zip(du, params, strict=True)), torch.zeros_like(h))
        return (dh, dc * f), du, tuple(du_k * h for du_k in du)


def _gru_gates(h: Tensor, u: Tensors, params: Tensors) -> tuple[Tensor, Tensor, Tensor]:
    (u_z, u_r, u_c), (a_z, a_r, a_c) = u, params
    z, r = torch.sigmoid(a_z * h + u_z), torch.sigmoid(a_r * h + u_r)
    return z, r, torch.tanh(a_c * (r * h) + u_c)


def _lstm_gates(h: Tensor, u: Tensors, params: Tensors) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    i, f, g, o = (a_k * h + u_k for a_k, u_k in zip(params, u, strict=True))
    return torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)


GRU = GRUCell()
LSTM = LSTMCell()

COMPILED: dict[str, Cell] = {"gru": GRU, "lstm": LSTM}
"""Cells that have kernels, by the name that a torch operator calls them by."""


def compiled_name(cell: Cell) -> str | None:
    """The cell's name in COMPILED, None if it has no kernels."""
    return next((name for name, known in COMPILED.items() if cell == known), None)


def jacobian(cell: Cell, state: Tensors, u: Tensors, params: Tensors) -> tuple[Tensors, ...]:
    """J[i][j] [..., D]: the derivative of state i after a step by state j before it."""
    one, zero = torch.ones_like(state[0]), torch.zeros_like(state[0])
    units = [
        tuple(one if i == k else zero for k in range(cell.num_states))
        for i in range(cell.num_states)
    ]
    return tuple(cell.vjp(state, u, params, unit)[0] for unit in units)
