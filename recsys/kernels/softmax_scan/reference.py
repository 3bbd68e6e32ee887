"""The definition of softmax_scan, in any floating dtype."""

import math

import torch
from torch import Tensor


def softmax_scan_reference(
    s: Tensor, v: Tensor, reset: Tensor, lse: Tensor, o: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """o_t = sum over i <= t of softmax(s_<=t)_i v_i, one step after the other.

    s [N, L, H], v [N, L, H, K], reset [N, L] bool; lse [N, H] and o [N, H, K] before t = 0.
    """
    steps = []
    for s_t, v_t, reset_t in zip(s.unbind(1), v.unbind(1), reset.unbind(1), strict=True):
        lse = lse.masked_fill(reset_t[:, None], -math.inf)
        o = o.masked_fill(reset_t[:, None, None], 0)
        lse, o = advance(s_t, v_t, lse, o)
        steps.append(o)
    return torch.stack(steps, dim=1) if steps else v, (lse, o)


def advance(s_t: Tensor, v_t: Tensor, lse: Tensor, o: Tensor) -> tuple[Tensor, Tensor]:
    """lse' = log(e^lse + e^s) and o' = e^(lse - lse') o + e^(s - lse') v; s_t [N, H]."""
    # While only scores of -inf have come, zeros stand in for them: neither the unused branch of a
    # choice nor its gradient may be -inf - -inf.
    nothing = torch.maximum(s_t, lse) == -math.inf
    score, before = s_t.masked_fill(nothing, 0), lse.masked_fill(nothing, 0)
    after = torch.logaddexp(before, score)
    weight = torch.exp(score - after).masked_fill(nothing, 0)[..., None]
    kept = torch.exp(before - after).masked_fill(nothing, 1)[..., None]
    return after.masked_fill(nothing, -math.inf), kept * o + weight * v_t
