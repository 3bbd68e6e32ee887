"""The definition of linear_scan, in any floating or complex dtype."""

import torch
from torch import Tensor


def linear_scan_reference(a: Tensor, b: Tensor, state: Tensor) -> tuple[Tensor, tuple[Tensor]]:
    """h_t = a_t * h_{t-1} + b_t. a, b [N, L, …] that broadcast; state [N, …] is h before t = 0."""
    h, steps = state, []
    for a_t, b_t in zip(a.unbind(1), b.unbind(1), strict=True):
        h = a_t * h + b_t
        steps.append(h)
    return torch.stack(steps, dim=1) if steps else b, (h,)
