"""rnn_scan in plain torch, for any elementwise cell and on any device.

Forward one step after the other over [N, D]. Backward with the states known: the derivatives of
all steps at once, the gradient of the states walked back through them, and from that everything
else at once again.
"""

import torch
from torch import Tensor

from recsys.kernels.packing import Padded, check_cu_seqlens
from recsys.kernels.rnn_scan.cells import Cell, Tensors, jacobian


def forward(
    cell: Cell,
    u_TGD: Tensor,
    params_GD: Tensor,
    h_NSD: Tensor,
    cu_seqlens: Tensor,
    reset_T: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(h [T, D], the rest of the states [T, S - 1, D], final [N, S, D]) in the dtype of h."""
    check_cu_seqlens(cu_seqlens, len(u_TGD))
    rows = Padded(cu_seqlens, len(u_TGD), reverse)
    u_NLGD = rows.pad(u_TGD.to(h_NSD.dtype))
    params = params_GD.to(h_NSD.dtype).unbind(0)
    reset_NL = None if reset_T is None else rows.pad(reset_T)
    states_NLSD = h_NSD.new_empty((rows.num_rows, rows.length, *h_NSD.shape[1:]))
    state: Tensors = h_NSD.unbind(1)
    for t in range(rows.length):
        before = state
        if reset_NL is not None:
            before = tuple(part.masked_fill(reset_NL[:, t, None], 0) for part in state)
        after = cell.step(before, u_NLGD[:, t].unbind(1), params)
        if not rows.equal:
            real_N1 = rows.real_NL[:, t, None]
            after = tuple(torch.where(real_N1, *pair) for pair in zip(after, state, strict=True))
        torch.stack(after, dim=1, out=states_NLSD[:, t])
        state = after
    states_TSD = rows.unpad(states_NLSD)
    final_NSD = torch.stack(state, dim=1)
    return states_TSD[:, 0].clone(), states_TSD[:, 1:].clone(), final_NSD


def backward(
    cell: Cell,
    dy_TD: Tensor,
    dfinal_NSD: Tensor,
    u_TGD: Tensor,
    params_GD: Tensor,
    h_NSD: Tensor,
    y_TD: Tensor,
    rest_TRD: Tensor,
    cu_seqlens: Tensor,
    reset_T: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(du [T, G, D], dparams [G, D], dh [N, S, D]) of `forward`."""
    rows = Padded(cu_seqlens, len(u_TGD), reverse)
    u_NLGD = rows.pad(u_TGD.to(h_NSD.dtype))
    params = params_GD.to(h_NSD.dtype).unbind(0)
    states_NLSD = torch.cat([rows.pad(y_TD)[:, :, None], rows.pad(rest_TRD)], dim=2)
    before_NLSD = torch.cat([h_NSD[:, None], states_NLSD], dim=1)[:, :-1]
    if reset_T is not None:
        before_NLSD = before_NLSD.masked_fill(rows.pad(reset_T)[..., None, None], 0)
    inputs = (before_NLSD.unbind(2), u_NLGD.unbind(2), params)
    through = jacobian(cell, *inputs)
    if reset_T is not None:
        forgets_NL1 = rows.pad(reset_T)[..., None]
        through = tuple(tuple(J.masked_fill(forgets_NL1, 0) for J in row) for row in through)
    g_SNLD, carry = _walk_back(through, rows, rows.pad(dy_TD), dfinal_NSD.unbind(1))
    _, du, dparams = cell.vjp(*inputs, g_SNLD.unbind(0))
    if not rows.equal:
        dparams = tuple(dparam.masked_fill(~rows.real_NL[..., None], 0) for dparam in dparams)
    dparams_GD = torch.stack([dparam.sum(dim=(0, 1)) for dparam in dparams])
    return rows.unpad(torch.stack(du, dim=2)), dparams_GD, torch.stack(carry, dim=1)


def _walk_back(
    through: tuple[Tensors, ...], rows: Padded, dy_NLD: Tensor, dfinal: Tensors
) -> tuple[Tensor, Tensors]:
    """g_t = dy_t + J_{t+1}' g_{t+1} of all states [S, N, L, D], and the initial state's."""
    g_SNLD = dy_NLD.new_empty((len(through), *dy_NLD.shape))
    carry = dfinal
    for t in range(rows.length - 1, -1, -1):
        g = (dy_NLD[:, t] + carry[0], *carry[1:])
        torch.stack(g, out=g_SNLD[:, :, t])
        earlier = []
        for j in range(len(through)):
            total = through[0][j][:, t] * g[0]
            for i in range(1, len(through)):
                total = torch.addcmul(total, through[i][j][:, t], g[i])
            earlier.append(total)
        if not rows.equal:
            real_N1 = rows.real_NL[:, t, None]
            earlier = [torch.where(real_N1, *pair) for pair in zip(earlier, carry, strict=True)]
        carry = tuple(earlier)
    return g_SNLD, carry
