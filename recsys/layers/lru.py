"""The linear recurrent unit (Orvieto et al. 2023): complex decays, one for each channel."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.kernels import linear_scan, linear_scan_step
from recsys.layers.mixer import Mixer, State


class LRU(Mixer):
    """h_t = lambda h_{t-1} + gamma (B x_t + b), y_t = Re(C h_t) + c, with N complex channels.

    lambda = exp(-exp(nu_log) + i exp(theta_log)) (Orvieto et al. 2023, section 3.3) has a modulus
    below 1 whatever is learned: no history is too long for it. gamma starts at sqrt(1 - |lambda|^2)
    (section 3.4), at which a slow channel is not louder than a fast one. State N complex64.
    """

    def __init__(self, dim: int, state_dim: int, min_radius: float, max_radius: float):
        super().__init__()
        # At radius 0 alone, nu is infinite and learns nothing.
        if not (0 <= min_radius <= max_radius < 1 and max_radius > 0):
            raise ValueError(f"radii must rise within [0, 1), got {min_radius} and {max_radius}")
        nu_N, theta_N = ring(state_dim, min_radius, max_radius)
        self.nu_log = nn.Parameter(nu_N.log())
        self.theta_log = nn.Parameter(theta_N.log())
        self.gamma_log = nn.Parameter(torch.log1p(-torch.exp(-2 * nu_N)) / 2)
        # Real and imaginary parts lie side by side: one real product instead of four complex ones.
        self.project_in = nn.Linear(dim, 2 * state_dim)
        self.project_out = nn.Linear(2 * state_dim, dim)
        # Appendix A: white input gives outputs of its own variance.
        nn.init.normal_(self.project_in.weight, std=(2 * dim) ** -0.5)
        nn.init.normal_(self.project_out.weight, std=state_dim**-0.5)
        nn.init.zeros_(self.project_in.bias)
        nn.init.zeros_(self.project_out.bias)

    def forward(self, x_BTD: Tensor, times_BT: Tensor | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        h_BTN = linear_scan(self._decay(), self._drive(x_BTD))
        assert isinstance(h_BTN, Tensor)
        return self.project_out(torch.view_as_real(h_BTN).flatten(2))

    def init_state(self, batch_size: int) -> State:
        """(h complex64 [B, N],)."""
        shape = (batch_size, len(self.nu_log), 2)
        return (torch.view_as_complex(self.nu_log.new_zeros(shape)),)

    def step(
        self, x_BD: Tensor, state: State, times_B: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """([B, D], the state behind the event)."""
        h_BN, after_BN = linear_scan_step(self._decay(), self._drive(x_BD), state[0])
        return self.project_out(torch.view_as_real(h_BN).flatten(1)), (after_BN,)

    def _decay(self) -> Tensor:
        return torch.polar(torch.exp(-self.nu_log.exp()), self.theta_log.exp())

    def _drive(self, x: Tensor) -> Tensor:
        """[..., N] complex: gamma (B x + b), gamma laid on the weights and not on every event."""
        gamma_C = self.gamma_log.exp().repeat_interleave(2)
        weight, bias = self.project_in.weight, self.project_in.bias
        driven = F.linear(x, weight * gamma_C[:, None], bias * gamma_C)
        return torch.view_as_complex(driven.to(self.nu_log.dtype).unflatten(-1, (-1, 2)))


def ring(size: int, min_radius: float, max_radius: float) -> tuple[Tensor, Tensor]:
    """(nu, theta) of `size` numbers exp(-nu + i theta), even over the area between two circles
    (Orvieto et al. 2023, Lemma 3.2)."""
    # 1 - u, which is never 0 and so has a logarithm.
    share_N, turn_N = 1 - torch.rand(size), 1 - torch.rand(size)
    square_N = share_N * (max_radius**2 - min_radius**2) + min_radius**2
    return -square_N.log() / 2, 2 * math.pi * turn_N
