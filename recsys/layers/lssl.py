"""Linear state-space layers (Gu et al. 2021) in diagonal form, over events and over real time.

The state obeys h' = lambda h + B x with N complex channels that all inputs and outputs share, as in
S5 (Smith et al. 2023): one scan over N channels, where S4D (Gu et al. 2022) scans N for each of D.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.errors import InputError
from recsys.kernels import linear_scan, linear_scan_step
from recsys.layers.mixer import Mixer, State

KNOTS = 32
"""Of `GapClock`, one every two octaves: enough for any gap in 63 bits."""
MAX_STRETCH = 64.0
"""How much faster or slower than one step an event's clock can run."""


class StateSpace(nn.Module):
    """lambda, dt, B, C and D, and what an event adds to the state and reads from it.

    lambda = -exp(log_decay) + i frequency never grows. It starts at -1/2 + i pi n, the S4D-Lin of
    Gu et al. 2022 (section 4), and dt, a time scale for each channel, log-uniform in
    [min_dt, max_dt] (Smith et al. 2023, appendix B.1).
    """

    def __init__(self, dim: int, state_dim: int, min_dt: float, max_dt: float):
        super().__init__()
        if not 0 < min_dt <= max_dt:
            raise ValueError(f"0 < min_dt <= max_dt is needed, got {min_dt} and {max_dt}")
        spread_N = torch.rand(state_dim) * math.log(max_dt / min_dt)
        self.log_decay = nn.Parameter(torch.full((state_dim,), math.log(0.5)))
        self.frequency = nn.Parameter(math.pi * torch.arange(state_dim, dtype=torch.float32))
        self.log_dt = nn.Parameter(math.log(min_dt) + spread_N)
        self.b_ND2 = nn.Parameter(torch.randn(state_dim, dim, 2) * (2 * dim) ** -0.5)
        self.skip_D = nn.Parameter(torch.randn(dim))
        # Real and imaginary parts lie side by side: y = Re(C h) is one real product.
        self.project_out = nn.Linear(2 * state_dim, dim, bias=False)
        nn.init.normal_(self.project_out.weight, std=state_dim**-0.5)

    def rate(self) -> Tensor:
        """[N] complex: lambda dt, the logarithm of what is left of the state after one step."""
        return torch.complex(-self.log_decay.exp(), self.frequency) * self.log_dt.exp()

    def drive(self, x: Tensor) -> Tensor:
        """[..., N] complex: (exp(lambda dt) - 1) / lambda B x, of x held for one step (the
        zero-order hold of Smith et al. 2023, section 3.2), of x [..., D]."""
        rate_N = self.rate()
        held_N = torch.expm1(rate_N) / rate_N * self.log_dt.exp()
        weight_ND = held_N[:, None] * torch.view_as_complex(self.b_ND2)
        # As real rows, real and imaginary by turns: the product of every event is a real one.
        weight_CD = torch.view_as_real(weight_ND).transpose(1, 2).flatten(0, 1)
        driven = F.linear(x, weight_CD).to(self.log_dt.dtype)
        return torch.view_as_complex(driven.unflatten(-1, (-1, 2)))

    def read(self, h: Tensor, x: Tensor) -> Tensor:
        """[..., D]: Re(C h) + D x, of h [..., N] complex and x [..., D]."""
        return self.project_out(torch.view_as_real(h).flatten(-2)) + self.skip_D * x

    def init_state(self, batch_size: int) -> Tensor:
        """[B, N] complex64 zeros."""
        return torch.view_as_complex(self.log_dt.new_zeros(batch_size, len(self.log_dt), 2))


class EventSSM(Mixer):
    """A state space in which every event is one step: h_t = exp(lambda dt) h_{t-1} + drive(x_t).

    State N complex64.
    """

    def __init__(self, dim: int, state_dim: int, min_dt: float, max_dt: float):
        super().__init__()
        self.space = StateSpace(dim, state_dim, min_dt, max_dt)

    def forward(self, x_BTD: Tensor, times_BT: Tensor | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        h_BTN = linear_scan(self.space.rate().exp(), self.space.drive(x_BTD))
        assert isinstance(h_BTN, Tensor)
        return self.space.read(h_BTN, x_BTD)

    def init_state(self, batch_size: int) -> State:
        """(h complex64 [B, N],)."""
        return (self.space.init_state(batch_size),)

    def step(
        self, x_BD: Tensor, state: State, times_B: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """([B, D], the state behind the event)."""
        decay_N, drive_BN = self.space.rate().exp(), self.space.drive(x_BD)
        h_BN, after_BN = linear_scan_step(decay_N, drive_BN, state[0])
        return self.space.read(h_BN, x_BD), (after_BN,)


class GapClock(nn.Module):
    """How many steps a gap between two events counts, learned: 1 for every gap at first.

    A piecewise linear function of log2(1 + gap), kept within 1 / MAX_STRETCH and MAX_STRETCH. It
    knows no unit: another one moves the logarithm along, and what the gaps mean is learned.
    """

    knots_K: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.bend_K = nn.Parameter(torch.zeros(KNOTS))
        self.register_buffer("knots_K", torch.arange(KNOTS, dtype=torch.float32), persistent=False)

    def forward(self, gap: Tensor) -> Tensor:
        """[...] of gaps int64 [...] in the unit of the data set; those below 0 count as 0."""
        place = torch.log2(gap.clamp_min(0).to(self.bend_K.dtype) + 1) / 2
        # A product with the two knots beside it and not a look-up: that has a gradient which is
        # slow, and on many threads not the same every time.
        near_K = (1 - (place[..., None] - self.knots_K).abs()).clamp_min(0)
        with torch.autocast(gap.device.type, enabled=False):  # its steps multiply whole turns
            bend = near_K @ self.bend_K
        return torch.exp(math.log(MAX_STRETCH) * torch.tanh(bend))


class GapSSM(Mixer):
    """A state space in real time: h_t = exp(lambda dt clock(gap_t)) h_{t-1} + drive(x_t).

    gap_t lies between event t and the one before it. The state runs on over the gap; the event
    itself is held for one step as in `EventSSM`, which this is until the clock has learned. (To
    hold it for the gap, as for samples of a signal, would make events louder after a pause.) State
    8 N + 8 bytes: N complex64 and the time of the last event.
    """

    def __init__(self, dim: int, state_dim: int, min_dt: float, max_dt: float):
        super().__init__()
        self.space = StateSpace(dim, state_dim, min_dt, max_dt)
        self.clock = GapClock()

    def forward(self, x_BTD: Tensor, times_BT: Tensor | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D]. InputError without times."""
        times_BT = known_times(times_BT)
        gap_BT = torch.diff(times_BT, dim=1, prepend=times_BT[:, :1])
        h_BTN = linear_scan(self._decay(gap_BT), self.space.drive(x_BTD))
        assert isinstance(h_BTN, Tensor)
        return self.space.read(h_BTN, x_BTD)

    def init_state(self, batch_size: int) -> State:
        """(h complex64 [B, N], time of the last event int64 [B])."""
        # Before the first event there is nothing in h that a gap could change: any time will do.
        last_B = torch.zeros(batch_size, dtype=torch.int64, device=self.space.log_dt.device)
        return self.space.init_state(batch_size), last_B

    def step(
        self, x_BD: Tensor, state: State, times_B: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """([B, D], the state behind the event). InputError without times."""
        times_B, (before_BN, last_B) = known_times(times_B), state
        decay_BN, drive_BN = self._decay(times_B - last_B), self.space.drive(x_BD)
        h_BN, after_BN = linear_scan_step(decay_BN, drive_BN, before_BN)
        return self.space.read(h_BN, x_BD), (after_BN, times_B)

    def _decay(self, gap: Tensor) -> Tensor:
        rate_N, steps = self.space.rate(), self.clock(gap)[..., None]
        return torch.polar(torch.exp(rate_N.real * steps), rate_N.imag * steps)


def known_times(times: Tensor | None) -> Tensor:
    """`times`, or InputError where there are none."""
    if times is None:
        raise InputError(
            "gaps between events need the times of the events, and these histories have none:"
            " give timestamps, or train with model.time=events"
        )
    return times
