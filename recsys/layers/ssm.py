"""Selective state spaces: the mixers of Mamba and of Mamba-2. E is their inner width."""

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.kernels import (
    AttentionState,
    linear_attention,
    linear_attention_step,
    selective_scan,
    selective_scan_step,
)
from recsys.layers.convolution import CausalConvolution
from recsys.layers.mixer import Mixer, State


@torch.no_grad()
def forget_faster(mixer: "Mamba | Mamba2", factor: float) -> None:
    """Raise every decay exp(dt A) of a trained mixer to the power `factor`, by A := factor A.

    A factor above 1 is the "forget more" of Chen et al. (2024, Stuffed Mamba, arXiv 2410.07145)
    against states that overflow on histories longer than those of training.
    """
    if not 0 < factor < math.inf:
        raise ValueError(f"factor must be above 0, got {factor}")
    mixer.log_rate.add_(math.log(factor))


class Mamba(Mixer):
    """The block of Mamba around its selective scan, S6 (Gu & Dao 2023, figure 3, algorithm 2).

    x and a gate z come from a projection; x goes through a short convolution and SiLU, and from it
    come dt, B and C. Then h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t, y_t = C_t h_t + D x_t
    (equations 2a and 2b), which z gates. Its state is that of the convolution and h: E (width - 1 +
    S) numbers for S states a channel.
    """

    def __init__(self, dim: int, state_dim: int, expand: int, conv_width: int):
        super().__init__()
        inner_dim = expand * dim
        self.sizes = (math.ceil(dim / 16), state_dim, state_dim)
        self.project_in = nn.Linear(dim, 2 * inner_dim, bias=False)
        self.convolution = CausalConvolution(inner_dim, conv_width)
        self.project_state = nn.Linear(inner_dim, sum(self.sizes), bias=False)
        self.project_dt = nn.Linear(self.sizes[0], inner_dim)
        self.project_dt.bias = nn.Parameter(_dt_bias(inner_dim))
        # S4D-real (section 3.6): A_ds = -s for s = 1..S. One axis, so that weight decay leaves it.
        self.log_rate = nn.Parameter(torch.arange(1.0, state_dim + 1).log().repeat(inner_dim))
        self.skip = nn.Parameter(torch.ones(inner_dim))
        self.project_out = nn.Linear(inner_dim, dim, bias=False)

    def forward(self, x_BTD: Tensor, times_BT: Tensor | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        x_BTE, z_BTE = self.project_in(x_BTD).chunk(2, dim=-1)
        x_BTE = F.silu(self.convolution(x_BTE))
        y_BTE = selective_scan(x_BTE, *self._selected(x_BTE), D=self.skip, z=z_BTE)
        return self.project_out(y_BTE)

    def init_state(self, batch_size: int) -> State:
        """(the convolution's, h [B, E, S])."""
        h_BES = self.log_rate.new_zeros(batch_size, len(self.skip), self.sizes[1])
        return self.convolution.init_state(batch_size), h_BES

    def step(
        self, x_BD: Tensor, state: State, times_B: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """([B, D], the state behind the event)."""
        inputs, h_BES = state
        x_BE, z_BE = self.project_in(x_BD).chunk(2, dim=-1)
        x_BE, inputs = self.convolution.step(x_BE, inputs)
        x_BE = F.silu(x_BE)
        y_BE, h_BES = selective_scan_step(x_BE, *self._selected(x_BE), h_BES, D=self.skip, z_t=z_BE)
        return self.project_out(y_BE), (inputs, h_BES)

    def _selected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """dt [..., E], A [E, S], B and C [..., S] of x [..., E]."""
        dt, B, C = self.project_state(x).split(self.sizes, dim=-1)
        A_ES = -self.log_rate.exp().view(len(self.skip), -1)
        return F.softplus(self.project_dt(dt)), A_ES, B, C


class Mamba2(Mixer):
    """The block of Mamba-2 around its state space dual, SSD (Dao & Gu 2024, figure 6).

    One projection gives z, x, B, C and dt; x, B and C go through a short convolution and SiLU. Each
    head has one decay: S_t = exp(dt_t A) S_{t-1} + dt_t B_t x_t', y_t = S_t' C_t + D x_t
    (equation 2 with a scalar times identity as A); all share B and C. z gates y before an RMS norm
    (section 7.1). Its state is that of the convolution and S: (E + 2 S) (width - 1) + E S numbers.
    """

    def __init__(self, dim: int, state_dim: int, num_heads: int, expand: int, conv_width: int):
        super().__init__()
        inner_dim = expand * dim
        if inner_dim % num_heads:
            raise ValueError(
                f"the inner width must be a multiple of num_heads, got {inner_dim} and {num_heads}"
            )
        self.num_heads = num_heads
        self.sizes = (inner_dim, state_dim, state_dim)
        mixed_dim = sum(self.sizes)
        self.project_in = nn.Linear(dim, inner_dim + mixed_dim + num_heads, bias=False)
        self.convolution = CausalConvolution(mixed_dim, conv_width)
        self.dt_bias = nn.Parameter(_dt_bias(num_heads))
        # As in the authors' code: A = -1 to -16.
        self.log_rate = nn.Parameter(torch.empty(num_heads).uniform_(1, 16).log())
        self.skip = nn.Parameter(torch.ones(num_heads))
        self.norm = nn.RMSNorm(inner_dim)
        self.project_out = nn.Linear(inner_dim, dim, bias=False)

    def forward(self, x_BTD: Tensor, times_BT: Tensor | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        z_BTE, mixed, dt_BTH = self._projected(x_BTD)
        x_BTHP, B_BTHS, C_BTHS = self._heads(self.convolution(mixed))
        v_BTHP = x_BTHP * dt_BTH[..., None]
        y_BTHP = cast(
            Tensor, linear_attention(C_BTHS, B_BTHS, v_BTHP, log_decay=self._log_decay(dt_BTH))
        )
        return self._gated(y_BTHP, x_BTHP, z_BTE)

    def init_state(self, batch_size: int) -> State:
        """(the convolution's, S [B, H, S, P])."""
        inner_dim, state_dim, _ = self.sizes
        shape = (batch_size, self.num_heads, state_dim, inner_dim // self.num_heads)
        return self.convolution.init_state(batch_size), self.log_rate.new_zeros(shape)

    def step(
        self, x_BD: Tensor, state: State, times_B: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """([B, D], the state behind the event)."""
        inputs, S_BHSP = state
        z_BE, mixed, dt_BH = self._projected(x_BD)
        mixed, inputs = self.convolution.step(mixed, inputs)
        x_BHP, B_BHS, C_BHS = self._heads(mixed)
        v_BHP, log_decay_BH = x_BHP * dt_BH[..., None], self._log_decay(dt_BH)
        y_BHP, after = linear_attention_step(
            C_BHS, B_BHS, v_BHP, AttentionState(S_BHSP), log_decay_t=log_decay_BH
        )
        return self._gated(y_BHP, x_BHP, z_BE), (inputs, after.S)

    def _projected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z [..., E], x with B and C [..., E + 2 S], dt [..., H] of an input [..., D]."""
        sizes = (self.sizes[0], sum(self.sizes), self.num_heads)
        z, mixed, dt = self.project_in(x).split(sizes, dim=-1)
        return z, mixed, F.softplus(dt + self.dt_bias)

    def _heads(self, mixed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [..., H, P], B and C [..., H, S], the same for all heads, behind the convolution."""
        x, B, C = F.silu(mixed).split(self.sizes, dim=-1)
        x, B, C = x.unflatten(-1, (self.num_heads, -1)), B[..., None, :], C[..., None, :]
        heads = (*x.shape[:-1], self.sizes[1])
        return x, B.expand(heads), C.expand(heads)

    def _log_decay(self, dt: Tensor) -> Tensor:
        return -dt * self.log_rate.exp()

    def _gated(self, y: Tensor, x: Tensor, z: Tensor) -> Tensor:
        """[..., D] of y and x [..., H, P] and the gate z [..., E]."""
        y = torch.addcmul(y, x, self.skip[:, None]).flatten(-2)
        return self.project_out(self.norm(y * F.silu(z)))


def _dt_bias(size: int) -> Tensor:
    """[size] what softplus makes log-uniform in [0.001, 0.1] (Gu & Dao 2023, section 3.6)."""
    dt = torch.empty(size).uniform_(math.log(0.001), math.log(0.1)).exp()
    return dt + torch.log(-torch.expm1(-dt))
