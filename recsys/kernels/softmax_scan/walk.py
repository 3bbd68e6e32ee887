"""softmax_scan in plain torch: in-place steps over [N, H, K], on any device.

The gradient is written by hand, since autograd's own of such a loop allocates a tensor or more
for every step.
"""

import math

import torch
from torch import Tensor

from recsys.kernels.packing import Padded, check_cu_seqlens


def forward(
    s_TH: Tensor,
    v_THK: Tensor,
    lse_NH: Tensor,
    o_NHK: Tensor,
    cu_seqlens: Tensor,
    reset_T: Tensor | None,
    valid_T: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(y [T, H, K] in the dtype of v, p and 1 - p [T, H], final lse [N, H] and o [N, H, K])."""
    check_cu_seqlens(cu_seqlens, len(v_THK))
    rows = Padded(cu_seqlens, len(v_THK), reverse)
    s_TH, v_scaled_THK = s_TH.to(lse_NH.dtype), v_THK.to(lse_NH.dtype)
    if valid_T is not None:
        s_TH = s_TH.masked_fill(~valid_T[:, None], -math.inf)
        v_scaled_THK = v_scaled_THK.masked_fill(~valid_T[:, None, None], 0)
    reset_NL = None if reset_T is None else rows.pad(reset_T, fill=False)
    p_NLH, kept_NLH, final_NH = _weights(rows.pad(s_TH, fill=-math.inf), lse_NH, reset_NL)
    y_NLHK = p_NLH[..., None] * rows.pad(v_scaled_THK)
    carry = o_NHK
    for t in range(rows.length):
        if reset_NL is not None:
            carry = carry.masked_fill(reset_NL[:, t, None, None], 0)
        carry = y_NLHK[:, t].addcmul_(kept_NLH[:, t, :, None], carry)
    return (
        rows.unpad(y_NLHK).to(v_THK.dtype).contiguous(),
        rows.unpad(p_NLH).contiguous(),
        rows.unpad(kept_NLH).contiguous(),
        final_NH,
        carry.clone(memory_format=torch.contiguous_format),
    )


def backward(
    dy_THK: Tensor,
    dlse_NH: Tensor,
    do_NHK: Tensor,
    v_THK: Tensor,
    y_THK: Tensor,
    o_NHK: Tensor,
    p_TH: Tensor,
    kept_TH: Tensor,
    cu_seqlens: Tensor,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(ds [T, H] in the dtype of p, dv [T, H, K], dlse [N, H], do [N, H, K]) of `forward`.

    y are its outputs and o its initial state.
    """
    rows = Padded(cu_seqlens, len(v_THK), reverse)
    v_NLHK, y_NLHK, dy_NLHK = (rows.pad(x.to(p_TH.dtype)) for x in (v_THK, y_THK, dy_THK))
    p_NLH, kept_NLH = rows.pad(p_TH), rows.pad(kept_TH, fill=1.0)
    g_NLHK = torch.empty_like(dy_NLHK)
    g = do_NHK
    for t in range(rows.length - 1, -1, -1):
        torch.add(dy_NLHK[:, t], g, out=g_NLHK[:, t])
        g = kept_NLH[:, t, :, None] * g_NLHK[:, t]
    weight_NLH = p_NLH * kept_NLH
    # Where nothing is mixed, what v or the state before it holds, be it NaN, is nothing to s.
    moved_NLH = weight_NLH * _dots(g_NLHK, v_NLHK, y_NLHK, o_NHK)
    moved_NLH.masked_fill_(weight_NLH == 0, 0)
    ds_NLH = torch.empty_like(moved_NLH)
    dlse = dlse_NH
    for t in range(rows.length - 1, -1, -1):
        torch.addcmul(moved_NLH[:, t], p_NLH[:, t], dlse, out=ds_NLH[:, t])
        dlse = kept_NLH[:, t] * dlse - moved_NLH[:, t]
    dv_NLHK = g_NLHK.mul_(p_NLH[..., None])
    return (
        rows.unpad(ds_NLH).contiguous(),
        rows.unpad(dv_NLHK).to(v_THK.dtype).contiguous(),
        dlse.clone(memory_format=torch.contiguous_format),
        g.clone(memory_format=torch.contiguous_format),
    )


def _dots(g_NLHK: Tensor, v_NLHK: Tensor, y_NLHK: Tensor, o_NHK: Tensor) -> Tensor:
    """[N, L, H] g_t . (v_t - o_{t-1})."""
    change_NLHK = torch.empty_like(g_NLHK)
    torch.sub(v_NLHK[:, 1:], y_NLHK[:, :-1], out=change_NLHK[:, 1:])
    torch.sub(v_NLHK[:, :1], o_NHK[:, None], out=change_NLHK[:, :1])
    return change_NLHK.mul_(g_NLHK).sum(-1)


def _weights(
    s_NLH: Tensor, lse_NH: Tensor, reset_NL: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """(p and 1 - p [N, L, H], final lse [N, H]).

    By the largest score so far, `top`, and the sum relative to it, `total`: of each, place t + 1
    is after step t.
    """
    num_rows, length, heads = s_NLH.shape
    top, total = (s_NLH.new_empty(num_rows, length + 1, heads) for _ in range(2))
    top[:, 0], total[:, 0] = lse_NH, (lse_NH != -math.inf).to(lse_NH.dtype)
    # Masked rather than multiplied by 0: what is forgotten may be NaN.
    forgets_NL1 = None if reset_NL is None else reset_NL[..., None]
    for t in range(length):
        before = top[:, t]
        if forgets_NL1 is not None:
            before = before.masked_fill(forgets_NL1[:, t], -math.inf)
        torch.maximum(before, s_NLH[:, t], out=top[:, t + 1])
    before_NLH, stays_NLH = top[:, :-1], top[:, 1:] == -math.inf
    if forgets_NL1 is not None:
        before_NLH = before_NLH.masked_fill(forgets_NL1, -math.inf)
        stays_NLH &= ~forgets_NL1
    # Zeros stand in for a largest score of -inf: e^(-inf - -inf) should be 0.
    base_NLH = top[:, 1:].masked_fill(top[:, 1:] == -math.inf, 0)
    new_NLH, decay_NLH = torch.exp(s_NLH - base_NLH), torch.exp(before_NLH - base_NLH)
    old_NLH = torch.empty_like(s_NLH)
    for t in range(length):
        old = torch.mul(decay_NLH[:, t], total[:, t], out=old_NLH[:, t])
        if forgets_NL1 is not None:
            old.masked_fill_(forgets_NL1[:, t], 0)
        torch.add(new_NLH[:, t], old, out=total[:, t + 1])
    whole_NLH = total[:, 1:].masked_fill(total[:, 1:] == 0, 1)
    kept_NLH = (old_NLH / whole_NLH).masked_fill(stays_NLH, 1)
    return new_NLH / whole_NLH, kept_NLH, top[:, -1] + total[:, -1].log()
