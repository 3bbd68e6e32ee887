"""Softmax attention over a history."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.layers.dropout import Dropout
from recsys.layers.mixer import Mixer, State


class CausalSelfAttention(Mixer):
    """Multi-head attention in which a position sees itself and what came before it.

    With right padding no mask is needed: padding lies behind every real position. Its state is a
    ring of the last `window` keys and values: 2 window dim numbers.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float, window: int):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim must be a multiple of num_heads, got {dim} and {num_heads}")
        self.num_heads = num_heads
        self.window = window
        self.dropout = Dropout(dropout)
        self.project_in = nn.Linear(dim, 3 * dim)
        self.project_out = nn.Linear(dim, dim)

    def forward(self, x_BTD: Tensor, times_BT: Tensor | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        batch, steps, dim = x_BTD.shape
        heads = self.project_in(x_BTD).view(batch, steps, 3, self.num_heads, dim // self.num_heads)
        q_BHTK, k_BHTK, v_BHTK = heads.permute(2, 0, 3, 1, 4).unbind(0)
        p = self.dropout.p if self.training else 0.0
        if p and x_BTD.device.type == "cpu":
            mixed = attend_with_dropout(q_BHTK, k_BHTK, v_BHTK, self.dropout)
        else:
            mixed = F.scaled_dot_product_attention(
                q_BHTK, k_BHTK, v_BHTK, dropout_p=p, is_causal=True
            )
        return self.project_out(mixed.transpose(1, 2).reshape(batch, steps, dim))

    def init_state(self, batch_size: int) -> State:
        """(keys and values [B, H, W, K], events so far int64 [B])."""
        return empty_ring(batch_size, self.num_heads, self.window, self.project_in)

    def step(
        self, x_BD: Tensor, state: State, times_B: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """([B, D], the state behind the event)."""
        heads = self.project_in(x_BD).view(len(x_BD), 3, self.num_heads, -1)
        q_BHK, k_BHK, v_BHK = heads.unbind(1)
        k_BHWK, v_BHWK, real_BW, state = push_to_ring(state, k_BHK, v_BHK)
        mixed_BH1K = F.scaled_dot_product_attention(
            q_BHK[:, :, None], k_BHWK, v_BHWK, attn_mask=real_BW[:, None, None]
        )
        return self.project_out(mixed_BH1K.flatten(1)), state


class SelfAttention(nn.Module):
    """Multi-head attention in which a position sees all real ones, before and behind it."""

    def __init__(self, dim: int, num_heads: int, dropout: float):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim must be a multiple of num_heads, got {dim} and {num_heads}")
        self.num_heads = num_heads
        self.dropout = Dropout(dropout)
        self.project_query = nn.Linear(dim, dim)
        self.project_memory = nn.Linear(dim, 2 * dim)
        self.project_out = nn.Linear(dim, dim)

    def forward(self, asking_BMD: Tensor, x_BTD: Tensor, real_BT: Tensor) -> Tensor:
        """[B, M, D] what the places `asking_BMD` of x read from it: all of them, or a few.

        real_BT is True where x is not padding; each row has such a place.
        """
        batch, steps, dim = x_BTD.shape
        head_dim = dim // self.num_heads
        q_BHMK = self.project_query(asking_BMD).view(batch, -1, self.num_heads, head_dim)
        memory = self.project_memory(x_BTD).view(batch, steps, 2, self.num_heads, head_dim)
        k_BHTK, v_BHTK = memory.permute(2, 0, 3, 1, 4).unbind(0)
        q_BHMK = q_BHMK.transpose(1, 2)
        p = self.dropout.p if self.training else 0.0
        if p and x_BTD.device.type == "cpu":
            bias_BT = x_BTD.new_zeros(batch, steps).masked_fill(~real_BT, -math.inf)
            bias_N1T = bias_BT.repeat_interleave(self.num_heads, dim=0)[:, None]
            mixed = _attend(q_BHMK, k_BHTK, v_BHTK, bias_N1T, self.dropout)
        else:
            mixed = F.scaled_dot_product_attention(
                q_BHMK, k_BHTK, v_BHTK, attn_mask=real_BT[:, None, None], dropout_p=p
            )
        return self.project_out(mixed.transpose(1, 2).flatten(2))


def empty_ring(batch_size: int, num_heads: int, window: int, projection: nn.Linear) -> State:
    """Room for `window` keys and values [B, H, W, K] of a projection from D, and a count of 0."""
    weight = projection.weight
    shape = (batch_size, num_heads, window, weight.shape[1] // num_heads)
    count_B = torch.zeros(batch_size, dtype=torch.int64, device=weight.device)
    return weight.new_zeros(shape), weight.new_zeros(shape), count_B


def push_to_ring(
    state: State, k_BHK: Tensor, v_BHK: Tensor
) -> tuple[Tensor, Tensor, Tensor, State]:
    """(keys, values [B, H, W, K], bool [B, W] True for those that are filled, the new state).

    The newest key takes the place of the oldest one once all places are filled.
    """
    k_BHWK, v_BHWK, count_B = state
    window = k_BHWK.shape[2]
    places_W = torch.arange(window, device=count_B.device)
    here_B1W1 = (places_W == (count_B % window)[:, None])[:, None, :, None]
    k_BHWK = torch.where(here_B1W1, k_BHK[:, :, None], k_BHWK)
    v_BHWK = torch.where(here_B1W1, v_BHK[:, :, None], v_BHWK)
    return k_BHWK, v_BHWK, places_W <= count_B[:, None], (k_BHWK, v_BHWK, count_B + 1)


def attend_with_dropout(
    q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, dropout: nn.Module
) -> Tensor:
    """[B, H, T, K] causal attention with `dropout` on its weights.

    Torch has no fused form of it for a CPU. Its general one takes 40 ms forward and backward at
    [256, 2, 50, 32] on two cores, these products with `Dropout` 20 to 24, in the same memory.
    """
    steps = q_BHTK.shape[2]
    future_TT = q_BHTK.new_full((steps, steps), -math.inf).triu(1)
    return _attend(q_BHTK, k_BHTK, v_BHTK, future_TT, dropout)


def _attend(
    q_BHMK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, bias: Tensor, dropout: nn.Module
) -> Tensor:
    """[B, H, M, K] attention; `bias`, added to its scores, broadcasts to [B H, M, T]."""
    head_dim = q_BHMK.shape[3]
    q_NMK, k_NTK, v_NTK = (x.reshape(-1, *x.shape[2:]) for x in (q_BHMK, k_BHTK, v_BHTK))
    score_NMT = torch.baddbmm(bias, q_NMK, k_NTK.mT, alpha=head_dim**-0.5)
    return torch.bmm(dropout(score_NMT.softmax(dim=2)), v_NTK).view(q_BHMK.shape)
