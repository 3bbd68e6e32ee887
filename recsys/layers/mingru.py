"""minGRU and minLSTM (Feng et al. 2024): gates that see the event and not the state."""

import torch
from torch import Tensor, nn

from recsys.kernels import linear_scan, linear_scan_step
from recsys.layers.mixer import Mixer, State


class MinGRU(nn.Module):
    """h_t = (1 - z_t) h_{t-1} + z_t h~_t with z_t = sigmoid(W_z x_t + b_z), h~_t = W_h x_t + b_h
    (Feng et al. 2024, section 3.1)."""

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.hidden_dim = hidden_dim
        self.project = nn.Linear(dim, 2 * hidden_dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(share of the state that is kept, what is added to it), both [..., hidden_dim]."""
        update, candidate = _precise(self.project, x).chunk(2, dim=-1)
        z = torch.sigmoid(update)
        return 1 - z, z * candidate


class MinLSTM(nn.Module):
    """h_t = f'_t h_{t-1} + i'_t h~_t with f' = f / (f + i), i' = i / (f + i) of the gates
    f_t = sigmoid(W_f x_t + b_f), i_t = sigmoid(W_i x_t + b_i), and h~_t = W_h x_t + b_h
    (Feng et al. 2024, section 3.2)."""

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.hidden_dim = hidden_dim
        self.project = nn.Linear(dim, 3 * hidden_dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(share of the state that is kept, what is added to it), both [..., hidden_dim]."""
        forget, enter, candidate = _precise(self.project, x).chunk(3, dim=-1)
        # f / (f + i) = sigmoid(log f - log i), which is a number where both gates are shut.
        keep = torch.sigmoid(nn.functional.logsigmoid(forget) - nn.functional.logsigmoid(enter))
        return keep, (1 - keep) * candidate


def _precise(project: nn.Linear, x: Tensor) -> Tensor:
    """project(x) in the precision of its weights even under autocast: of 8 bits too few are left
    for a share of the state near 1."""
    return project(x).to(project.weight.dtype)


class MinimalRNN(Mixer):
    """A cell over time and a projection back to dim.

    The state is a running mean of the candidates, whatever is learned: it never grows with the
    length of a history. The walk of `linear_scan` multiplies and adds step by step, which needs
    neither the logarithms of the paper's parallel scan nor the positive candidates that they ask
    for (its appendix B). State hidden_dim float32.
    """

    def __init__(self, dim: int, cell: MinGRU | MinLSTM):
        super().__init__()
        self.cell = cell
        self.project_out = nn.Linear(cell.hidden_dim, dim)

    def forward(self, x_BTD: Tensor, times_BT: Tensor | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        keep_BTC, new_BTC = self.cell(x_BTD)
        return self.project_out(linear_scan(keep_BTC, new_BTC))

    def init_state(self, batch_size: int) -> State:
        """(h float32 [B, hidden_dim],)."""
        return (self.project_out.weight.new_zeros(batch_size, self.cell.hidden_dim),)

    def step(
        self, x_BD: Tensor, state: State, times_B: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """([B, D], the state behind the event)."""
        keep_BC, new_BC = self.cell(x_BD)
        h_BC, after_BC = linear_scan_step(keep_BC, new_BC, state[0])
        return self.project_out(h_BC), (after_BC,)
