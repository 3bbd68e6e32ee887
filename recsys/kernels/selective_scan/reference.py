"""The definition of selective_scan, in any floating dtype."""

import torch
from torch import Tensor


def selective_scan_reference(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    state: Tensor,
    reset: Tensor | None = None,
) -> tuple[Tensor, tuple[Tensor]]:
    """h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t, y_t = C_t · h_t.

    u, dt [N, L, D]; A [D, S]; B, C [N, L, S]; state [N, D, S] is h before t = 0; a step of
    reset [N, L] forgets it.
    """
    h, steps = state, []
    for t, (u_t, dt_t, B_t, C_t) in enumerate(
        zip(u.unbind(1), dt.unbind(1), B.unbind(1), C.unbind(1), strict=True)
    ):
        if reset is not None:
            h = h.masked_fill(reset[:, t, None, None], 0)
        h = torch.exp(dt_t[..., None] * A) * h + (dt_t * u_t)[..., None] * B_t[:, None, :]
        steps.append((h * C_t[:, None, :]).sum(-1))
    return torch.stack(steps, dim=1) if steps else u, (h,)
