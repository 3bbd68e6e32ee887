"""All states of a recurrent network at once, by Newton's method (ParaRNN; Danieli et al., 2025).

The states are the zero of r_t = f(h_{t-1}, u_t) - h_t. Each iteration linearises f, and so solves
delta_t = J_t delta_{t-1} + r_t, a linear scan, for all t in parallel (equations 5 and 6 of the
paper). It converges where the recurrence contracts; nothing says that it must elsewhere, and so a
solution is accepted only by its last step and its residual, never by a number of iterations.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from recsys.kernels.linear_scan.operator import scan
from recsys.kernels.packing import check_cu_seqlens
from recsys.kernels.rnn_scan.cells import Cell, jacobian


class Solution(NamedTuple):
    """What Newton's method came to."""

    states_TSD: Tensor
    """The last iterate; the states of the network only if `iterations` is a number."""
    iterations: int | None
    """How many linear scans it took, None if it did not converge."""
    residual: float
    """The largest |f(h_{t-1}, u_t) - h_t| of the last iterate."""


def solve(
    cell: Cell,
    u_TGD: Tensor,
    params_GD: Tensor,
    h_NSD: Tensor,
    cu_seqlens: Tensor,
    reset_T: Tensor | None,
    reverse: bool,
    max_iter: int,
    tol: float,
    asked: str = "",
) -> Solution:
    """The states [T, S, D] in the dtype of h, by at most `max_iter` linear scans on `asked`.

    Converged means: the last step at most `tol` of the largest state (or of 1), and the residual
    at most `tol`.
    """
    check_cu_seqlens(cu_seqlens.cpu(), len(u_TGD))
    if reverse:
        cu_seqlens = len(u_TGD) - cu_seqlens.flip(0)
        u_TGD, h_NSD = u_TGD.flip(0), h_NSD.flip(0)
        reset_T = None if reset_T is None else reset_T.flip(0)
    u = u_TGD.to(h_NSD.dtype).unbind(1)
    params = params_GD.to(h_NSD.dtype).unbind(0)
    before = _Before(h_NSD, cu_seqlens, reset_T, len(u_TGD))
    states_STD = h_NSD.new_zeros((cell.num_states, len(u_TGD), h_NSD.shape[2]))
    if states_STD.numel() == 0:
        return Solution(states_STD.transpose(0, 1).contiguous(), 0, 0.0)
    step = torch.full_like(states_STD[0, 0, 0], math.inf)
    converged = None
    for iteration in range(max_iter + 1):
        inputs = (before(states_STD).unbind(0), u, params)
        r_STD = torch.stack(cell.step(*inputs)) - states_STD
        sizes = torch.stack([r_STD.abs().max(), step, states_STD.abs().max()])
        residual, moved, largest = sizes.tolist()
        # Written so that a NaN is no convergence.
        if residual <= tol and moved <= tol * max(1.0, largest):
            converged = iteration
            break
        if iteration == max_iter or not (math.isfinite(residual) and math.isfinite(largest)):
            break
        J_SSTD = torch.stack([torch.stack(row) for row in jacobian(cell, *inputs)])
        J_SSTD.masked_fill_(~before.linked_T[:, None], 0)
        delta_STD = _linear_solution(J_SSTD, r_STD, cu_seqlens, asked)
        step = delta_STD.abs().max()
        states_STD += delta_STD
    states_TSD = states_STD.transpose(0, 1)
    states_TSD = states_TSD.flip(0) if reverse else states_TSD.contiguous()
    return Solution(states_TSD, converged, residual)


class _Before:
    """The state that each step begins with: the last one, the initial one or, reset, none."""

    def __init__(
        self, h_NSD: Tensor, cu_seqlens: Tensor, reset_T: Tensor | None, total: int
    ) -> None:
        some_N = cu_seqlens.diff() > 0
        self.starts, self.initial_SND = cu_seqlens[:-1][some_N], h_NSD[some_N].transpose(0, 1)
        self.reset_T = reset_T
        self.linked_T = torch.ones(total, dtype=torch.bool, device=h_NSD.device)
        self.linked_T[self.starts] = False
        if reset_T is not None:
            self.linked_T &= ~reset_T

    def __call__(self, states_STD: Tensor) -> Tensor:
        before_STD = states_STD.roll(1, dims=1)
        before_STD[:, self.starts] = self.initial_SND
        if self.reset_T is not None:
            before_STD.masked_fill_(self.reset_T[:, None], 0)
        return before_STD


def _linear_solution(J_SSTD: Tensor, r_STD: Tensor, cu_seqlens: Tensor, asked: str) -> Tensor:
    """delta_t = J_t delta_{t-1} + r_t, with J_t 0 where a sequence begins."""
    if len(r_STD) == 1:
        nothing_ND = r_STD.new_zeros((len(cu_seqlens) - 1, r_STD.shape[2]))
        delta_TD, _ = scan(J_SSTD[0, 0], r_STD[0], nothing_ND, cu_seqlens, None, False, asked)
        return delta_TD[None]
    # By doubling: (J, r)_t is the map of the last `window` steps together. Where it would reach
    # over the beginning of a sequence, the J_t = 0 that stands there cuts it.
    window, longest = 1, int(cu_seqlens.diff().max())
    while window < longest:
        J_late, J_early = J_SSTD[:, :, window:], J_SSTD[:, :, :-window]
        added_STD = (J_late * r_STD[None, :, :-window]).sum(dim=1)
        product_SSTD = (J_late[:, :, None] * J_early[None]).sum(dim=1)
        r_STD = torch.cat([r_STD[:, :window], r_STD[:, window:] + added_STD], dim=1)
        J_SSTD = torch.cat([J_SSTD[:, :, :window], product_SSTD], dim=2)
        window *= 2
    return r_STD
