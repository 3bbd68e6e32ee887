"""The definition of rnn_scan, in any floating dtype."""

import torch
from torch import Tensor

from recsys.kernels.rnn_scan.cells import Cell


def rnn_scan_reference(
    cell: Cell, u: Tensor, params: Tensor, state: Tensor, reset: Tensor | None = None
) -> tuple[Tensor, tuple[Tensor]]:
    """state_t = cell.step(state_{t-1}, u_t, params), of which h [N, L, D] is the first part.

    u [N, L, G, D], params [G, D], state [N, S, D], reset [N, L] bool. And the last state.
    """
    parts, weights, steps = state.unbind(1), params.unbind(0), []
    for t, u_t in enumerate(u.unbind(1)):
        if reset is not None:
            parts = tuple(part.masked_fill(reset[:, t, None], 0) for part in parts)
        parts = cell.step(parts, u_t.unbind(1), weights)
        steps.append(parts[0])
    return torch.stack(steps, dim=1) if steps else u[:, :, 0], (torch.stack(parts, dim=1),)
