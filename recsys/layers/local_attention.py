"""Attention over long texts, linear in their length (Beltagy et al. 2020, Longformer).

A token sees the tokens at most window // 2 places away from it and the first token; the first
token, [CLS], sees all and is seen by all. Letters: B batch, L tokens of a text, D width, H heads,
K width of a head, C blocks of a text, R tokens of a block, S tokens that a block sees.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.layers.dropout import Dropout


class LocalAttention(nn.Module):
    """Multi-head attention within a window, and of all tokens with the first one."""

    def __init__(self, dim: int, num_heads: int, window: int, dropout: float):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim must be a multiple of num_heads, got {dim} and {num_heads}")
        if window < 2:
            raise ValueError(f"window must be at least 2 tokens, got {window}")
        self.num_heads = num_heads
        self.reach = window // 2
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.project_out = nn.Linear(dim, dim)
        self.dropout = Dropout(dropout)

    def forward(self, x_BLD: Tensor, real_BL: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D].

        real_BL is bool, True for tokens that are not padding; the first of each text is real.
        What stands at padding afterwards means nothing.
        """
        q_BLHK, k_BLHK, v_BLHK = (
            self._heads(project(x_BLD)) for project in (self.query, self.key, self.value)
        )
        near = attend_near(q_BLHK, k_BLHK, v_BLHK, real_BL, self.reach, self.dropout)
        first = attend(
            *self._of_first(x_BLD, q_BLHK, k_BLHK, v_BLHK), real_BL[:, None], self.dropout
        )
        mixed_BLHK = torch.cat([first, near[:, 1:]], dim=1)
        return self.project_out(mixed_BLHK.flatten(2))

    def _of_first(
        self, x_BLD: Tensor, q_BLHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The query [B, 1, H, K] of the first token, and the keys and values that it sees."""
        return q_BLHK[:, :1], k_BLHK, v_BLHK

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1))


class LocalAttentionWithGlobal(LocalAttention):
    """The same, where the first token reads the text through projections of its own.

    As in Longformer. What the others see of the first token goes through those of all tokens.
    """

    def __init__(self, dim: int, num_heads: int, window: int, dropout: float):
        super().__init__(dim, num_heads, window, dropout)
        self.query_global = nn.Linear(dim, dim)
        self.key_global = nn.Linear(dim, dim)
        self.value_global = nn.Linear(dim, dim)

    def _of_first(
        self, x_BLD: Tensor, q_BLHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        return (
            self._heads(self.query_global(x_BLD[:, :1])),
            self._heads(self.key_global(x_BLD)),
            self._heads(self.value_global(x_BLD)),
        )


def attend_near(
    q_BLHK: Tensor,
    k_BLHK: Tensor,
    v_BLHK: Tensor,
    real_BL: Tensor,
    reach: int,
    dropout: Dropout,
) -> Tensor:
    """[B, L, H, K]: each token attends to the first one and to the real ones at most reach away."""
    # Below three blocks the blocks see as much as there is: one product over all is no more work.
    if real_BL.shape[1] <= 3 * reach:
        seen_BLL = real_BL[:, None] & seen_reference(real_BL.shape[1], reach, real_BL.device)
        return attend(q_BLHK, k_BLHK, v_BLHK, seen_BLL, dropout)
    batch, length = real_BL.shape
    places_L = torch.arange(length, device=real_BL.device)
    q_NRHK = _blocks(q_BLHK, reach).flatten(0, 1)
    k_NSHK, v_NSHK = (
        torch.cat([_first_for_each(x, reach), _neighbours(x, reach)], dim=2).flatten(0, 1)
        for x in (k_BLHK, v_BLHK)
    )
    # The first token stands in a column of its own, and must not count a second time in a window.
    real_BCS = _neighbours(real_BL & (places_L > 0), reach)
    ahead_RS = torch.arange(3 * reach, device=real_BL.device) - torch.arange(
        reach, device=real_BL.device
    ).unsqueeze(1)
    window_RS = (ahead_RS >= 0) & (ahead_RS <= 2 * reach)
    seen_NRS = (real_BCS[:, :, None] & window_RS).flatten(0, 1)
    mixed_NRHK = attend(q_NRHK, k_NSHK, v_NSHK, F.pad(seen_NRS, (1, 0), value=True), dropout)
    return mixed_NRHK.unflatten(0, (batch, -1)).flatten(1, 2)[:, :length]


def seen_reference(length: int, reach: int, device: torch.device | None = None) -> Tensor:
    """bool [L, L], True where the token of the row may see the token of the column.

    The definition, the first token's own row included.
    """
    places_L = torch.arange(length, device=device)
    near_LL = (places_L[:, None] - places_L).abs() <= reach
    return near_LL | (places_L == 0) | (places_L == 0)[:, None]


def attend(
    q_NMHK: Tensor, k_NSHK: Tensor, v_NSHK: Tensor, seen_NMS: Tensor, dropout: Dropout
) -> Tensor:
    """[N, M, H, K] attention; seen_NMS [N, M or 1, S] bool has a True in each row."""
    q_NHMK, k_NHSK, v_NHSK = (x.transpose(1, 2) for x in (q_NMHK, k_NSHK, v_NSHK))
    seen_NHMS = seen_NMS[:, None]
    p = dropout.p if dropout.training else 0.0
    if p and q_NHMK.device.type == "cpu":
        # Torch has no fused form with dropout for a CPU, and its general one is slower than this.
        score_NHMS = (q_NHMK * q_NHMK.shape[-1] ** -0.5) @ k_NHSK.mT
        score_NHMS = score_NHMS.masked_fill(~seen_NHMS, -math.inf)
        mixed_NHMK = dropout(score_NHMS.softmax(dim=-1)) @ v_NHSK
    else:
        mixed_NHMK = F.scaled_dot_product_attention(
            q_NHMK, k_NHSK, v_NHSK, attn_mask=seen_NHMS, dropout_p=p
        )
    return mixed_NHMK.transpose(1, 2)


def _blocks(x: Tensor, size: int) -> Tensor:
    """[B, L, ...] -> [B, C, size, ...], zeros (False) behind the end."""
    missing = -x.shape[1] % size
    padding = (0, 0) * (x.dim() - 2) + (0, missing)
    return F.pad(x, padding).unflatten(1, (-1, size))


def _neighbours(x: Tensor, size: int) -> Tensor:
    """[B, L, ...] -> [B, C, 3 size, ...]: each block with the one before and the one behind it."""
    own = _blocks(x, size)
    nothing = torch.zeros_like(own[:, :1])
    before = torch.cat([nothing, own[:, :-1]], dim=1)
    behind = torch.cat([own[:, 1:], nothing], dim=1)
    return torch.cat([before, own, behind], dim=2)


def _first_for_each(x_BLHK: Tensor, size: int) -> Tensor:
    """[B, C, 1, H, K] the first token, beside each block."""
    blocks = -(-x_BLHK.shape[1] // size)
    return x_BLHK[:, None, :1].expand(-1, blocks, -1, -1, -1)
