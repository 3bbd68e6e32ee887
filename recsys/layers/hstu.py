"""The unit of HSTU (Zhai et al. 2024): attention without a softmax, biased by place and by time."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.layers.attention import empty_ring, push_to_ring
from recsys.layers.dropout import Dropout
from recsys.layers.mixer import Mixer, State

NUM_BUCKETS = 128
"""Of time gaps. Each is 35 % longer than the one before: all gaps up to 10^16 units are told apart,
1.3 years in nanoseconds and more than a human life in microseconds."""
HIDDEN = -1e4
"""A score whose SiLU and the slope of it are 0 to the bit, in each precision."""
UNTIMED = 2**62
"""In the place of a time that is not known: behind every time, from which no time has passed."""
ROWS = 64
"""Queries that are scored together. No product is formed with keys behind the last of them."""


def gap_buckets(later: Tensor, earlier: Tensor) -> Tensor:
    """int32, the bucket floor(ln(max(1, gap)) / 0.301) of later - earlier, int64 times.

    Gaps of less than one unit, and events out of order, are in bucket 0.
    """
    gap = (later - earlier).clamp_(min=1).float()
    return gap.log_().div_(0.301).clamp_(max=NUM_BUCKETS - 1).to(torch.int32)


class HSTUBlock(Mixer):
    """x + f2(norm(A V) * U), where A weighs what came before by SiLU instead of a softmax.

    U, V, Q, K = SiLU(f1(norm(x))) (eq. 1), A = SiLU(Q K^T + rab) / n (eq. 2), and the output
    (eq. 3). n is `window`, the longest history. rab, the relative attention bias, is one number for
    each distance in places and one for each bucket of the time between two events, for all heads
    alike. No time has passed between an event whose time is not known and any other, and a block
    that was trained without times takes no notice of them. Its state is a ring of keys, values and
    times: window (8 dim + 8) bytes.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float, window: int):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim must be a multiple of num_heads, got {dim} and {num_heads}")
        self.num_heads = num_heads
        self.window = window
        self.norm = nn.LayerNorm(dim)
        self.project_in = nn.Linear(dim, 4 * dim)
        self.place_bias = nn.Parameter(torch.zeros(window))
        self.time_bias = nn.Parameter(torch.zeros(NUM_BUCKETS))
        # A / n may be tiny in short histories: it is for the norm to bring it up again.
        self.mixed_norm = nn.LayerNorm(dim, eps=1e-12)
        self.dropout = Dropout(dropout)
        self.project_out = nn.Linear(dim, dim)

    def forward(self, x_BTD: Tensor, times_BT: Tensor | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D], T at most `window`."""
        batch, steps, dim = x_BTD.shape
        u_BTD, v_BTD, q_BTD, k_BTD = self._project(x_BTD)
        q_NTK, k_NTK, v_NTK = (self._heads(x) for x in (q_BTD, k_BTD, v_BTD / self.window))
        times_BT = self._meant(times_BT)
        mixed = []
        for first in range(0, steps, ROWS):
            rows = slice(first, min(first + ROWS, steps))
            score_NRC = torch.bmm(q_NTK[:, rows], k_NTK[:, : rows.stop].mT)
            bias = self._bias(rows, times_BT)
            score_NRC.view(batch, self.num_heads, *score_NRC.shape[1:]).add_(bias)
            mixed.append(torch.bmm(F.silu(score_NRC), v_NTK[:, : rows.stop]))
        mixed_BHTK = torch.cat(mixed, dim=1).view(batch, self.num_heads, steps, -1)
        mixed_BTD = mixed_BHTK.transpose(1, 2).reshape(batch, steps, dim)
        return x_BTD + self._gated(mixed_BTD, u_BTD)

    def init_state(self, batch_size: int) -> State:
        """(a ring of keys and values [B, H, W, K], their times int64 [B, W])."""
        ring = empty_ring(batch_size, self.num_heads, self.window, self.project_out)
        return ring, ring[2].new_zeros(batch_size, self.window)

    def step(
        self, x_BD: Tensor, state: State, times_B: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """([B, D], the state behind the event)."""
        ring, times_BW = state
        times_B = self._meant(times_B)
        u_BD, v_BD, q_BD, k_BD = self._project(x_BD)
        q_BHK, k_BHK, v_BHK = (x.view(len(x), self.num_heads, -1) for x in (q_BD, k_BD, v_BD))
        places_W = torch.arange(self.window, device=x_BD.device)
        distance_BW = (ring[2][:, None] - places_W).remainder(self.window)
        k_BHWK, v_BHWK, _, ring = push_to_ring(ring, k_BHK, v_BHK / self.window)
        bias_BW = self.place_bias[distance_BW]
        now_B1 = times_BW.new_tensor(UNTIMED) if times_B is None else times_B[:, None]
        times_BW = torch.where(distance_BW == 0, now_B1, times_BW)
        if times_B is None:
            bias_BW = bias_BW + self.time_bias[0]
        else:
            bias_BW = bias_BW + self.time_bias[gap_buckets(now_B1, times_BW)]
        score_BH1W = q_BHK[:, :, None] @ k_BHWK.mT + bias_BW[:, None, None]
        # The values of places that are not filled are 0: without a softmax that is mask enough.
        mixed_BD = (F.silu(score_BH1W) @ v_BHWK).flatten(1)
        return x_BD + self._gated(mixed_BD, u_BD), (ring, times_BW)

    @property
    def knows_times(self) -> bool:
        """Whether gaps between events have been learned: those that no training has met weigh 0."""
        return bool(self.time_bias[1:].any())

    def _meant(self, times: Tensor | None) -> Tensor | None:
        return times if self.training or self.knows_times else None

    def _project(self, x: Tensor) -> tuple[Tensor, ...]:
        return F.silu(self.project_in(self.norm(x))).chunk(4, dim=-1)

    def _heads(self, x_BTD: Tensor) -> Tensor:
        batch, steps, _ = x_BTD.shape
        x_BTHK = x_BTD.view(batch, steps, self.num_heads, -1)
        return x_BTHK.transpose(1, 2).reshape(batch * self.num_heads, steps, -1)

    def _bias(self, rows: slice, times_BT: Tensor | None) -> Tensor:
        """[R, C] or, with times, [B, 1, R, C]: for queries `rows` and keys up to the last of them,
        HIDDEN where the key comes behind the query."""
        places_C = torch.arange(rows.stop, device=self.place_bias.device)
        distance_RC = places_C[rows, None] - places_C
        bias_RC = torch.where(distance_RC >= 0, self.place_bias[distance_RC.clamp_min(0)], HIDDEN)
        if times_BT is None:
            return bias_RC + self.time_bias[0]
        buckets = gap_buckets(times_BT[:, rows, None], times_BT[:, None, : rows.stop])
        # index_select on a flat int32 index is the fastest of torch's lookups on a CPU.
        time_bias = self.time_bias.index_select(0, buckets.flatten()).view(buckets.shape)
        return (bias_RC + time_bias)[:, None]

    def _gated(self, mixed: Tensor, u: Tensor) -> Tensor:
        return self.project_out(self.dropout(self.mixed_norm(mixed) * u))
