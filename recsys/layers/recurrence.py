"""Recurrent networks with full recurrent matrices, as mixers; and a history read from both ends.

Equations and names follow Lipton et al., A Critical Review of Recurrent Neural Networks for
Sequence Learning (2015). The walk over time is torch's own: on a CPU a walk written out here came
to the same time, and packed sequences took as long as padded ones or longer.
"""

import torch
from torch import Tensor, nn

from recsys.layers.dropout import Dropout
from recsys.layers.mixer import Mixer, State


class GRULayer(Mixer):
    """Gated recurrent unit (Cho et al. 2014), [B, T, dim_in] -> [B, T, dim_out].

    r, z = sigmoid(W x_t + U h_{t-1} + b); n = tanh(W x_t + b + r (U h_{t-1} + b));
    h_t = z h_{t-1} + (1 - z) n. As in torch, r stands behind the recurrent product and z weighs
    what is kept; equations 2 to 5 of GRU4Rec (Hidasi et al. 2016) have r before it and 1 - z for z.
    """

    def __init__(self, dim_in: int, dim_out: int, dropout: float = 0.0):
        super().__init__()
        self.rnn = nn.GRU(dim_in, dim_out, batch_first=True)
        self.dropout = Dropout(dropout)
        _initialise(self.rnn, num_gates=3)

    def forward(self, x_BTD: Tensor, times_BT: Tensor | None = None) -> Tensor:
        """[B, T, dim_out] the h of each step, under dropout; h itself is carried on whole."""
        return self.dropout(_walked(self.rnn, x_BTD))

    def init_state(self, batch_size: int) -> State:
        """h [B, dim_out] zeros: 4 dim_out bytes a history."""
        return (_zeros(self.rnn, batch_size),)

    def step(
        self, x_BD: Tensor, state: State, times_B: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """([B, dim_out], the state behind the event)."""
        (h_BD,) = state
        h_BD = torch.gru_cell(x_BD, h_BD, *self.rnn.all_weights[0])
        return self.dropout(h_BD), (h_BD,)


class LSTMLayer(Mixer):
    """Long short-term memory with forget gates, [B, T, dim_in] -> [B, T, dim_out].

    i, f, o = sigmoid(W x_t + U h_{t-1} + b); g = tanh(W x_t + U h_{t-1} + b);
    s_t = f s_{t-1} + i g; h_t = o tanh(s_t) (Lipton et al. 2015, section 4.1). The forget gate
    begins with a bias of one (Gers et al. 2000), so that memories last.
    """

    def __init__(self, dim_in: int, dim_out: int, dropout: float = 0.0):
        super().__init__()
        self.rnn = nn.LSTM(dim_in, dim_out, batch_first=True)
        self.dropout = Dropout(dropout)
        _initialise(self.rnn, num_gates=4)
        bias_4D = self.rnn.all_weights[0][2]
        nn.init.ones_(bias_4D.detach()[dim_out : 2 * dim_out])

    def forward(self, x_BTD: Tensor, times_BT: Tensor | None = None) -> Tensor:
        """[B, T, dim_out] the h of each step, under dropout; h itself is carried on whole."""
        return self.dropout(_walked(self.rnn, x_BTD))

    def init_state(self, batch_size: int) -> State:
        """h and s [B, dim_out] zeros: 8 dim_out bytes a history."""
        return _zeros(self.rnn, batch_size), _zeros(self.rnn, batch_size)

    def step(
        self, x_BD: Tensor, state: State, times_B: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """([B, dim_out], the state behind the event)."""
        h_BD, s_BD = torch.lstm_cell(x_BD, state, *self.rnn.all_weights[0])
        return self.dropout(h_BD), (h_BD, s_BD)


class Bidirectional(nn.Module):
    """Two readings side by side, one from each end (Schuster & Paliwal 1997). Not causal.

    Each history is turned round within its own length, so that padding, at the end, comes after
    the items in both readings.
    """

    def __init__(self, forward: Mixer, backward: Mixer):
        super().__init__()
        self.from_start = forward
        self.from_end = backward

    def forward(self, x_BTD: Tensor, lengths_B: Tensor) -> Tensor:
        """[B, T, D] and int64 [B] -> [B, T, both widths]; padding yields vectors without use."""
        onward_BTD = self.from_start(x_BTD)
        backward_BTD = self.from_end(turn_round(x_BTD, lengths_B))
        return torch.cat([onward_BTD, turn_round(backward_BTD, lengths_B)], dim=2)


def turn_round(x_BTD: Tensor, lengths_B: Tensor) -> Tensor:
    """[B, T, D] with the first lengths_B vectors of each row in reverse; the rest stays."""
    steps_T = torch.arange(x_BTD.shape[1], device=x_BTD.device)
    mirror_BT = lengths_B[:, None] - 1 - steps_T
    source_BT = torch.where(mirror_BT < 0, steps_T, mirror_BT)
    return x_BTD.take_along_dim(source_BT[:, :, None], dim=1)


def _walked(rnn: nn.GRU | nn.LSTM, x_BTD: Tensor) -> Tensor:
    """[B, T, D] the h of each step, in the precision of the weights even under autocast: of 8 bits
    too few are left for a share of the state near 1."""
    with torch.autocast(x_BTD.device.type, enabled=False):
        return rnn(x_BTD.to(rnn.all_weights[0][0].dtype))[0]


def _initialise(rnn: nn.GRU | nn.LSTM, num_gates: int) -> None:
    """Glorot & Bengio's uniform for each gate's matrices; no bias."""
    for parameter in rnn.parameters():
        if parameter.dim() == 1:
            nn.init.zeros_(parameter)
            continue
        for gate in parameter.detach().chunk(num_gates):
            nn.init.xavier_uniform_(gate)


def _zeros(rnn: nn.GRU | nn.LSTM, batch_size: int) -> Tensor:
    return rnn.all_weights[0][1].new_zeros(batch_size, rnn.hidden_size)
