"""Aaren (Feng et al. 2024, "Attention as an RNN"): attention of a query that is learned."""

from typing import cast

import torch
from torch import Tensor, nn

from recsys.kernels import SoftmaxState, softmax_scan, softmax_scan_step
from recsys.layers.mixer import Mixer, State


class Aaren(Mixer):
    """Each head looks over all events so far with one query, the same for every history.

    o_t = sum over i <= t of softmax(s_<=t)_i v_i with s_i = q . k_i / sqrt(K) (Feng et al., section
    3.1). As q is a parameter, q . (W x_i) is (W' q) . x_i: only W' q is kept, scale and all, D
    numbers a head, in place of q and W.

    The paper's scores do not say how long ago an event was, and positions added to the input would
    end at the longest history. Here a head adds -m (t - i) to its score, which is ALiBi (Press et
    al. 2022, section 3) with m learned in (0, 1). A softmax does not see what is added to all
    scores, so m i does the same and the state stays that of the paper: lse and o, H + D numbers.
    With m = 0 it is the paper's: as good on MovieLens-100K (NDCG@10 0.121, and 0.123 with m), but a
    first layer then knows no order, and an event counts less the longer the history.
    """

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim must be a multiple of num_heads, got {dim} and {num_heads}")
        self.num_heads = num_heads
        self.score = nn.Linear(dim, num_heads, bias=False)
        self.value = nn.Linear(dim, dim)
        self.project_out = nn.Linear(dim, dim)
        # ALiBi's slopes to begin with: a geometric series that ends at 2^-8.
        slope_H = 2.0 ** (-8 * torch.arange(1, num_heads + 1) / num_heads)
        self.slope_logit = nn.Parameter(slope_H.logit())

    def forward(self, x_BTD: Tensor, times_BT: Tensor | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        # Below T in size: in float32 a weight is wrong by T / 2^24 of itself at most.
        steps_T = torch.arange(x_BTD.shape[1], device=x_BTD.device)
        score_BTH = self.score(x_BTD) + steps_T[:, None] * self.slope_logit.sigmoid()
        o_BTHK = cast(Tensor, softmax_scan(score_BTH, self._values(x_BTD)))
        return self.project_out(o_BTHK.flatten(-2))

    def init_state(self, batch_size: int) -> State:
        """The `SoftmaxState` (lse [B, H], o [B, H, K]), its scores those of the newest event."""
        weight = self.value.weight
        shape = (batch_size, self.num_heads, len(weight) // self.num_heads)
        return SoftmaxState(weight.new_full(shape[:2], -torch.inf), weight.new_zeros(shape))

    def step(
        self, x_BD: Tensor, state: State, times_B: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """([B, D], the state behind the event)."""
        lse_BH, o_BHK = state
        # An event later all that is known is m less. So no number grows with the history.
        aged = SoftmaxState(lse_BH - self.slope_logit.sigmoid(), o_BHK)
        o_BHK, state = softmax_scan_step(self.score(x_BD), self._values(x_BD), aged)
        return self.project_out(o_BHK.flatten(-2)), state

    def _values(self, x: Tensor) -> Tensor:
        """[..., H, K] of [..., D]."""
        return self.value(x).unflatten(-1, (self.num_heads, -1))
