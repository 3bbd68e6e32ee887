"""Layers over time as graphs of plain torch operations, for an export that knows no kernel.

Each class computes what its parent does from the same parameters, for any length T up to `longest`,
and no step of it depends on T: a linear recurrence doubles the steps that it has summed up (Hillis
& Steele 1986), attention with a state is written as attention over all pairs of events, and a
nonlinear recurrence is torch's `scan`, one node of the graph. They are slower than the kernels and
take more memory; nothing trains through them.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.kernels.rnn_scan.cells import Tensors
from recsys.layers.aaren import Aaren
from recsys.layers.convolution import CausalConvolution
from recsys.layers.diagonal_rnn import DiagonalRNN
from recsys.layers.hstu import HSTUBlock
from recsys.layers.item_encoder import ItemEncoder, ItemTable
from recsys.layers.lru import LRU
from recsys.layers.lssl import EventSSM, GapSSM, known_times
from recsys.layers.mingru import MinimalRNN
from recsys.layers.mixer import Mixer
from recsys.layers.recurrence import GRULayer, LSTMLayer
from recsys.layers.ssm import Mamba, Mamba2

Model = TypeVar("Model", bound=nn.Module)
Product = Callable[[Tensor, Tensor], Tensor]
"""Of real numbers, or of complex ones as [..., 2], since few formats of graphs know those."""


def in_plain_operations(model: Model, longest: int) -> Model:
    """A copy of a model, of plain operations for histories of up to `longest` items.

    Items are read from a table of the vectors that the model has for them now.
    """
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        if isinstance(parent, ItemEncoder):
            continue
        for name, child in list(parent.named_children()):
            if isinstance(child, ItemEncoder) and not isinstance(child, ItemTable):
                parent.register_module(name, _as_table(child))
            elif plain := PLAIN.get(type(child)):
                # The twin has the parameters and the methods of its parent, and another `forward`.
                child.__class__ = plain
                cast(Plain, child).prepare(longest)
    return model.requires_grad_(False)


def sees_time(model: nn.Module) -> bool:
    """Whether the times of events change what a model with these weights answers."""
    return any(
        isinstance(layer, GapSSM) or (isinstance(layer, HSTUBlock) and layer.knows_times)
        for layer in model.modules()
    )


class Plain(Mixer):
    """What is plain may need constants that follow from the parameters."""

    longest: int
    """Items of the longest history."""

    def prepare(self, longest: int) -> None:
        """Compute the constants."""
        self.longest = longest


class PlainConvolution(Plain, CausalConvolution):
    """Shifted products, padded with zeros."""

    def forward(self, x_BTD: Tensor, times_BT: Tensor | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        y_BTD = torch.addcmul(self.bias, x_BTD, self.weight[0])
        for lag in range(1, len(self.weight)):
            y_BTD = torch.addcmul(y_BTD, _later(x_BTD, lag), self.weight[lag])
        return y_BTD


class PlainHSTUBlock(Plain, HSTUBlock):
    """All queries at once."""

    def forward(self, x_BTD: Tensor, times_BT: Tensor | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D], T at most `window`."""
        u_BTD, v_BTD, q_BTD, k_BTD = self._project(x_BTD)
        q_BHTK, k_BHTK, v_BHTK = (
            x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for x in (q_BTD, k_BTD, v_BTD / self.window)
        )
        bias = self._bias(slice(0, x_BTD.shape[1]), times_BT)
        mixed_BHTK = F.silu(q_BHTK @ k_BHTK.mT + bias) @ v_BHTK
        return x_BTD + self._gated(mixed_BHTK.transpose(1, 2).flatten(2), u_BTD)


class PlainAaren(Plain, Aaren):
    """Each event's softmax over all before it."""

    def forward(self, x_BTD: Tensor, times_BT: Tensor | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        steps_T = torch.arange(x_BTD.shape[1], device=x_BTD.device)
        score_BTH = self.score(x_BTD) + steps_T[:, None] * self.slope_logit.sigmoid()
        score_BH1T = score_BTH.transpose(1, 2)[:, :, None]
        weight_BHTT = score_BH1T.where(_causal(steps_T), -torch.inf).softmax(dim=-1)
        o_BTHK = (weight_BHTT @ self._values(x_BTD).transpose(1, 2)).transpose(1, 2)
        return self.project_out(o_BTHK.flatten(2))


class PlainMinimalRNN(Plain, MinimalRNN):
    """Doubled steps."""

    def forward(self, x_BTD: Tensor, times_BT: Tensor | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        keep_BTC, new_BTC = self.cell(x_BTD)
        return self.project_out(_doubled(new_BTC, _running(keep_BTC, self.longest)))


class PlainLRU(Plain, LRU):
    """Doubled steps."""

    def prepare(self, longest: int) -> None:
        """What enters the state, and the powers of the decays."""
        self.enter = _as_linear(self._drive, self.project_in.in_features)
        self.powers_LN2 = nn.Buffer(_powers(self._decay(), longest))

    def forward(self, x_BTD: Tensor, times_BT: Tensor | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        driven_BTN2 = self.enter(x_BTD).unflatten(-1, (-1, 2))
        h_BTN2 = _doubled(driven_BTN2, self.powers_LN2, _complex_product)
        return self.project_out(h_BTN2.flatten(-2))


class PlainEventSSM(Plain, EventSSM):
    """Doubled steps."""

    def prepare(self, longest: int) -> None:
        """What enters the state, and the powers of the decays."""
        self.enter = _as_linear(self.space.drive, len(self.space.skip_D))
        self.powers_LN2 = nn.Buffer(_powers(self.space.rate().exp(), longest))

    def forward(self, x_BTD: Tensor, times_BT: Tensor | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        driven_BTN2 = self.enter(x_BTD).unflatten(-1, (-1, 2))
        h_BTN2 = _doubled(driven_BTN2, self.powers_LN2, _complex_product)
        return self.space.project_out(h_BTN2.flatten(-2)) + self.space.skip_D * x_BTD


class PlainGapSSM(Plain, GapSSM):
    """Doubled steps."""

    def prepare(self, longest: int) -> None:
        """What enters the state, and the rates of the decays."""
        self.longest = longest
        self.enter = _as_linear(self.space.drive, len(self.space.skip_D))
        self.rate_N2 = nn.Buffer(torch.view_as_real(self.space.rate()).contiguous())

    def forward(self, x_BTD: Tensor, times_BT: Tensor | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D]. InputError without times."""
        times_BT = known_times(times_BT)
        # The first gap is any: before the first event there is nothing that it could change.
        gap_BT = times_BT - _later(times_BT, 1)
        rate_BTN2 = self.rate_N2 * self.clock(gap_BT)[..., None, None]
        angle_BTN = rate_BTN2[..., 1]
        circle_BTN2 = torch.stack([angle_BTN.cos(), angle_BTN.sin()], dim=-1)
        decay_BTN2 = rate_BTN2[..., :1].exp() * circle_BTN2
        driven_BTN2 = self.enter(x_BTD).unflatten(-1, (-1, 2))
        powers = _running(decay_BTN2, self.longest, _complex_product)
        h_BTN2 = _doubled(driven_BTN2, powers, _complex_product)
        return self.space.project_out(h_BTN2.flatten(-2)) + self.space.skip_D * x_BTD


class PlainMamba(Plain, Mamba):
    """Doubled steps over all states, [B, T, E, S] numbers."""

    def forward(self, x_BTD: Tensor, times_BT: Tensor | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        x_BTE, z_BTE = self.project_in(x_BTD).chunk(2, dim=-1)
        x_BTE = F.silu(self.convolution(x_BTE))
        dt_BTE, A_ES, B_BTS, C_BTS = self._selected(x_BTE)
        decay_BTES = torch.exp(dt_BTE[..., None] * A_ES)
        driven_BTES = (dt_BTE * x_BTE)[..., None] * B_BTS[:, :, None]
        h_BTES = _doubled(driven_BTES, _running(decay_BTES, self.longest))
        y_BTE = (h_BTES * C_BTS[:, :, None]).sum(dim=-1) + self.skip * x_BTE
        return self.project_out(y_BTE * F.silu(z_BTE))


class PlainMamba2(Plain, Mamba2):
    """Each event's sum over all before it (Dao & Gu 2024, the dual form)."""

    def forward(self, x_BTD: Tensor, times_BT: Tensor | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        z_BTE, mixed, dt_BTH = self._projected(x_BTD)
        x_BTHP, B_BTHS, C_BTHS = self._heads(self.convolution(mixed))
        v_BHTP = (x_BTHP * dt_BTH[..., None]).transpose(1, 2)
        score_BHTT = C_BTHS.transpose(1, 2) @ B_BTHS.permute(0, 2, 3, 1)
        kept_BHTT = _kept(self._log_decay(dt_BTH).transpose(1, 2))
        y_BTHP = ((score_BHTT * kept_BHTT) @ v_BHTP).transpose(1, 2)
        return self._gated(y_BTHP, x_BTHP, z_BTE)


class PlainGRULayer(Plain, GRULayer):
    """torch's scan."""

    def forward(self, x_BTD: Tensor, times_BT: Tensor | None = None) -> Tensor:
        """[B, T, dim_in] -> [B, T, dim_out]."""
        enter, again, bias, bias_again = self.rnn.all_weights[0]

        def step(state: Tensors, u_BC: Tensor) -> Tensors:
            (h_BD,) = state
            u_r, u_z, u_n = u_BC.chunk(3, dim=-1)
            w_r, w_z, w_n = F.linear(h_BD, again, bias_again).chunk(3, dim=-1)
            z = torch.sigmoid(u_z + w_z)
            n = torch.tanh(u_n + torch.sigmoid(u_r + w_r) * w_n)
            return (n + z * (h_BD - n),)

        return _walk(step, F.linear(x_BTD, enter, bias), 1, self.rnn.hidden_size)


class PlainLSTMLayer(Plain, LSTMLayer):
    """torch's scan."""

    def forward(self, x_BTD: Tensor, times_BT: Tensor | None = None) -> Tensor:
        """[B, T, dim_in] -> [B, T, dim_out]."""
        enter, again, bias, bias_again = self.rnn.all_weights[0]

        def step(state: Tensors, u_BC: Tensor) -> Tensors:
            h_BD, s_BD = state
            i, f, g, o = (u_BC + F.linear(h_BD, again, bias_again)).chunk(4, dim=-1)
            s_BD = torch.sigmoid(f) * s_BD + torch.sigmoid(i) * torch.tanh(g)
            return torch.sigmoid(o) * torch.tanh(s_BD), s_BD

        return _walk(step, F.linear(x_BTD, enter, bias), 2, self.rnn.hidden_size)


class PlainDiagonalRNN(Plain, DiagonalRNN):
    """torch's scan."""

    def forward(self, x_BTD: Tensor, times_BT: Tensor | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D]."""

        def step(state: Tensors, u_BGD: Tensor) -> Tensors:
            return self.cell.step(state, u_BGD.unbind(1), self.recurrent_GD.unbind(0))

        y_BTD = _walk(step, self._gates(x_BTD), self.cell.num_states, self.state_dim)
        return self.project_out(y_BTD)


PLAIN: dict[type[nn.Module], type[Plain]] = {
    CausalConvolution: PlainConvolution,
    HSTUBlock: PlainHSTUBlock,
    Aaren: PlainAaren,
    MinimalRNN: PlainMinimalRNN,
    LRU: PlainLRU,
    EventSSM: PlainEventSSM,
    GapSSM: PlainGapSSM,
    Mamba: PlainMamba,
    Mamba2: PlainMamba2,
    GRULayer: PlainGRULayer,
    LSTMLayer: PlainLSTMLayer,
    DiagonalRNN: PlainDiagonalRNN,
}
"""The twin of each layer that is not plain by itself."""


def _as_table(items: ItemEncoder) -> ItemTable:
    vectors_VD = items.vectors().detach()
    table = ItemTable(0, vectors_VD.shape[1])
    table.weight = nn.Parameter(vectors_VD.clone())
    return table


def _as_linear(drive: Callable[[Tensor], Tensor], dim: int) -> nn.Linear:
    """The map that `drive` is: [..., D] -> [..., 2 N], of N complex numbers side by side."""
    bias_C = torch.view_as_real(drive(torch.zeros(dim))).flatten()
    weight_DC = torch.view_as_real(drive(torch.eye(dim))).flatten(1) - bias_C
    linear = nn.Linear(*weight_DC.shape)
    linear.weight = nn.Parameter(weight_DC.T.contiguous())
    linear.bias = nn.Parameter(bias_C)
    return linear


def _powers(decay_N: Tensor, longest: int) -> Tensor:
    """[L, N, 2] decay_N complex to the powers of 1, 2, 4 … below `longest`."""
    exponents_L = 2 ** torch.arange((longest - 1).bit_length())
    powers_LN = decay_N.to(torch.complex128) ** exponents_L[:, None]
    return torch.view_as_real(powers_LN).float()


def _running(a: Tensor, longest: int, product: Product = torch.mul) -> Iterator[Tensor]:
    """Products of the last 1, 2, 4 … a, [B, T, ...] each, below `longest`."""
    for place in range((longest - 1).bit_length()):
        yield a
        a = product(a, _later(a, 2**place))


def _doubled(x: Tensor, powers: Iterable[Tensor], product: Product = torch.mul) -> Tensor:
    """h_t = a_t h_{t-1} + x_t, [B, T, ...], from the products of the last 1, 2, 4 … a.

    What the last 2^k events add to h is known after k steps.
    """
    for place, a in enumerate(powers):
        x = x + product(a, _later(x, 2**place))
    return x


def _later(x: Tensor, steps: int) -> Tensor:
    """[B, T, ...] x some steps later, zeros before it."""
    padding = (0, 0) * (x.dim() - 2) + (steps, 0)
    return F.pad(x, padding)[:, : x.shape[1]]


def _complex_product(a: Tensor, b: Tensor) -> Tensor:
    """[..., 2] of [..., 2]."""
    (a_real, a_imag), (b_real, b_imag) = a.unbind(-1), b.unbind(-1)
    real, imag = a_real * b_real - a_imag * b_imag, a_real * b_imag + a_imag * b_real
    return torch.stack([real, imag], dim=-1)


def _causal(steps_T: Tensor) -> Tensor:
    """bool [T, T], True where the event of the column is not later than that of the row."""
    return steps_T <= steps_T[:, None]


def _kept(log_decay_BHT: Tensor) -> Tensor:
    """[B, H, T, T] what the event of the row keeps of that of the column: the product of the decays
    between them, 0 for later events."""
    steps_T = torch.arange(log_decay_BHT.shape[2], device=log_decay_BHT.device)
    # Sums of their own for each column: differences of long sums would lose what they have in
    # common.
    after_TT = steps_T < steps_T[:, None]
    between_BHTT = torch.where(after_TT, log_decay_BHT[..., None], 0.0).cumsum(dim=2)
    return between_BHTT.exp().where(_causal(steps_T), 0.0)


def _walk(step: Callable[[Tensors, Tensor], Tensors], u: Tensor, states: int, dim: int) -> Tensor:
    """[B, T, D] the first part of each state, S tensors [B, D] that begin with zeros, over the
    events u [B, T, ...]."""
    from torch._higher_order_ops.scan import scan  # imports torch's compiler

    def one(state: Tensors, u_t: Tensor) -> tuple[Tensors, Tensor]:
        after = step(state, u_t)
        return after, after[0].clone()

    zeros = tuple(u.new_zeros(u.shape[0], dim) for _ in range(states))
    _, h_TBD = scan(one, zeros, u.transpose(0, 1))
    return h_TBD.transpose(0, 1)
