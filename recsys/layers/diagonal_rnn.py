"""A GRU or an LSTM whose recurrence is diagonal, as a mixer (ParaRNN; Danieli et al. 2025)."""

import torch
from torch import Tensor, nn

from recsys.kernels.rnn_scan import GRU, LSTM, Cell, rnn_scan, rnn_scan_step
from recsys.layers.mixer import Mixer, State


class DiagonalRNN(Mixer):
    """Channels that read the whole input, and of the past each its own state alone.

    Maps to the gates, `rnn_scan`, and a map back. bias_GD [G, D'] is that of the gates at first; D'
    is how many channels there are.
    """

    def __init__(self, dim: int, cell: Cell, bias_GD: Tensor):
        super().__init__()
        self.cell = cell
        self.state_dim = bias_GD.shape[1]
        self.project_in = nn.Linear(dim, bias_GD.numel())
        self.recurrent_GD = nn.Parameter(torch.empty_like(bias_GD))
        self.project_out = nn.Linear(self.state_dim, dim)
        nn.init.xavier_uniform_(self.project_in.weight)
        # Small: gates begin near their bias, and the recurrence contracts, which is what Newton's
        # method needs to converge.
        nn.init.normal_(self.recurrent_GD, std=0.1)
        with torch.no_grad():
            self.project_in.bias.copy_(bias_GD.flatten())

    def forward(self, x_BTD: Tensor, times_BT: Tensor | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D].

        All steps at once by Newton's method on a GPU, one after the other on a CPU.
        """
        y_BTD = rnn_scan(
            self.cell,
            self._gates(x_BTD),
            self.recurrent_GD,
            method="newton" if x_BTD.is_cuda else "walk",
        )
        return self.project_out(y_BTD)

    def init_state(self, batch_size: int) -> State:
        """[B, S, D'] zeros, S = 1 (GRU) or 2 (LSTM): 4 S D' bytes a history."""
        shape = (batch_size, self.cell.num_states, self.state_dim)
        return (torch.zeros(shape, device=self.recurrent_GD.device),)

    def step(
        self, x_BD: Tensor, state: State, times_B: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """([B, D], the state behind the event)."""
        y_BD, after = rnn_scan_step(self.cell, self._gates(x_BD), self.recurrent_GD, state[0])
        return self.project_out(y_BD), (after,)

    def _gates(self, x: Tensor) -> Tensor:
        return self.project_in(x).unflatten(-1, (self.cell.num_gates, self.state_dim))


def diagonal_gru(dim: int, state_dim: int, longest: int) -> DiagonalRNN:
    """A DiagonalRNN of GRU cells, which at first forget within 2 to `longest` events.

    Channel by channel on a logarithmic scale; the update gate weighs what is new.
    """
    bias_GD = torch.zeros(GRU.num_gates, state_dim)
    bias_GD[0] = -_keep_bias(state_dim, longest)
    return DiagonalRNN(dim, GRU, bias_GD)


def diagonal_lstm(dim: int, state_dim: int, longest: int) -> DiagonalRNN:
    """A DiagonalRNN of LSTM cells, which at first forget within 2 to `longest` events.

    Channel by channel on a logarithmic scale; the input gate opens as far as the forget gate lets
    go.
    """
    bias_GD = torch.zeros(LSTM.num_gates, state_dim)
    bias_GD[1] = _keep_bias(state_dim, longest)
    bias_GD[0] = -bias_GD[1]
    return DiagonalRNN(dim, LSTM, bias_GD)


def _keep_bias(state_dim: int, longest: int) -> Tensor:
    """[D'] biases b of gates that keep a share sigmoid(b) = 1 - 1 / t, t from 2 to `longest`.

    What is kept has faded to 1/e after some t events (chrono initialisation; Tallec & Ollivier
    2018).
    """
    exponents_D = torch.linspace(0, 1, state_dim)
    return (2 * (max(longest, 2) / 2) ** exponents_D - 1).log()
