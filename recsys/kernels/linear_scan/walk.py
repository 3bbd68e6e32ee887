"""linear_scan in plain torch: in-place steps over [N, D], on any device.

The gradient is written by hand, since autograd's own of a loop over `a[:, t]` allocates a whole
tensor for every step.
"""

import torch
from torch import Tensor

from recsys.kernels.packing import Padded, check_cu_seqlens


def forward(
    a_TG: Tensor,
    b_TD: Tensor,
    h_ND: Tensor,
    cu_seqlens: Tensor,
    reset_T: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """(y [T, D] in the dtype of b, final [N, D])."""
    rows = _rows(cu_seqlens, len(b_TD), reverse)
    groups = a_TG.shape[1]
    a_NLG1 = _padded_coefficients(rows, a_TG.to(h_ND.dtype), reset_T)
    b_NLGK = _grouped(rows.pad(b_TD.to(h_ND.dtype)), groups)
    y_NLGK = torch.empty_like(b_NLGK)
    previous = _grouped(h_ND, groups)
    for t in range(rows.length):
        previous = torch.addcmul(b_NLGK[:, t], a_NLG1[:, t], previous, out=y_NLGK[:, t])
    y_TD = rows.unpad(y_NLGK.flatten(2)).to(b_TD.dtype)
    return y_TD.contiguous(), previous.flatten(1).clone()


def backward(
    dy_TD: Tensor,
    dfinal_ND: Tensor,
    a_TG: Tensor,
    y_TD: Tensor,
    h_ND: Tensor,
    cu_seqlens: Tensor,
    reset_T: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(da [T or 1, G], db [T, D], dh [N, D]) of `forward`."""
    rows = _rows(cu_seqlens, len(y_TD), reverse)
    dtype, groups = h_ND.dtype, a_TG.shape[1]
    a_NLG1 = _padded_coefficients(rows, a_TG.to(dtype), reset_T).conj()
    y_NLGK, dy_NLGK = (_grouped(rows.pad(x.to(dtype)), groups) for x in (y_TD, dy_TD))
    g_NLGK = torch.empty_like(y_NLGK)
    carry = _grouped(dfinal_ND, groups)
    for t in range(rows.length - 1, -1, -1):
        torch.add(dy_NLGK[:, t], carry, out=g_NLGK[:, t])
        carry = a_NLG1[:, t] * g_NLGK[:, t]
    previous = torch.cat([_grouped(h_ND, groups)[:, None], y_NLGK], dim=1)[:, :-1]
    da_NLG = (g_NLGK * previous.conj()).sum(dim=-1)
    da_TG = rows.unpad(da_NLG)
    if reset_T is not None:
        da_TG = da_TG.masked_fill(reset_T[:, None], 0)
    if len(a_TG) == 1 != len(y_TD):
        da_TG = da_TG.sum(dim=0, keepdim=True)
    db_TD = rows.unpad(g_NLGK.flatten(2))
    return (
        da_TG.to(a_TG.dtype).contiguous(),
        db_TD.to(y_TD.dtype).contiguous(),
        carry.flatten(1).clone(),
    )


def _rows(cu_seqlens: Tensor, total: int, reverse: bool) -> Padded:
    check_cu_seqlens(cu_seqlens, total)
    return Padded(cu_seqlens, total, reverse)


def _padded_coefficients(rows: Padded, a_TG: Tensor, reset_T: Tensor | None) -> Tensor:
    """[N, L, G, 1], 1 behind the end of a row so that its state stays."""
    if len(a_TG) == 1 and rows.equal and reset_T is None:
        return a_TG.expand(rows.num_rows, rows.length, -1)[..., None]
    if reset_T is not None:
        a_TG = a_TG.expand(len(reset_T), -1).masked_fill(reset_T[:, None], 0)
    return rows.pad(a_TG.expand(rows.total, -1), fill=1.0)[..., None]


def _grouped(x: Tensor, groups: int) -> Tensor:
    """[…, G, D / G] of […, D]."""
    return x.unflatten(-1, (groups, x.shape[-1] // max(1, groups)))
