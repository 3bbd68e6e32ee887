"""linear_scan in Triton: tiles of time scanned inside one warp, the state carried between them.

A program walks one sequence for BLOCK_D neighbouring channels. One warp with its threads along
the channels keeps a tile's times inside a thread, so that the scan of a tile needs no exchange
between threads, and all loads of a tile are under way at once. Times are counted in walking
order, i = 0, 1, …; `t` is where that lies in memory.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from recsys.kernels.tiles import after, last_row

BLOCK_D = 32
FORWARD_TIMES, BACKWARD_TIMES = 32, 16
"""Steps of a tile in float32; half where numbers are complex or (backward) take two bytes.

As many as the registers of a thread hold without a stack, on sm_80 and sm_90.
"""


def forward(
    a_TG: Tensor,
    b_TD: Tensor,
    h_ND: Tensor,
    cu_seqlens: Tensor,
    reset_T: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """(y [T, D] in the dtype of b, final [N, D])."""
    a, b, h = (_parts(x) for x in (a_TG, b_TD, h_ND))
    y, final = torch.empty_like(b), torch.empty_like(h)
    dim = b_TD.shape[1]
    grid = (len(h_ND), triton.cdiv(dim, BLOCK_D))
    if len(h_ND) and dim:
        _forward[grid](
            *(a, b, h, cu_seqlens, reset_T, y, final, dim, *_layout(a_TG, b_TD)),
            REVERSE=reverse,
            COMPLEX=b_TD.is_complex(),
            RESET=reset_T is not None,
            BLOCK_T=FORWARD_TIMES // (2 if b_TD.is_complex() else 1),
            BLOCK_D=BLOCK_D,
            num_warps=1,
            num_stages=1,
            enable_fp_fusion=True,
        )
    return _whole(y, b_TD), _whole(final, h_ND)


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
    constant = len(a_TG) == 1 != len(y_TD)
    dy, dfinal, a, y, h = (_parts(x) for x in (dy_TD, dfinal_ND, a_TG, y_TD, h_ND))
    db, dh = torch.empty_like(y), torch.empty_like(h)
    # By channel; a sum over a group, or over sequences for a constant, follows in a fixed order.
    da = torch.empty(
        (len(h) if constant else len(y), *y.shape[1:]), dtype=torch.float32, device=y.device
    )
    dim = y_TD.shape[1]
    grid = (len(h_ND), triton.cdiv(dim, BLOCK_D))
    if len(h_ND) and dim:
        _backward[grid](
            *(dy, dfinal, a, y, h, cu_seqlens, reset_T, da, db, dh, dim, *_layout(a_TG, y_TD)),
            REVERSE=reverse,
            COMPLEX=y_TD.is_complex(),
            RESET=reset_T is not None,
            CONSTANT=constant,
            BLOCK_T=BACKWARD_TIMES // (1 if y_TD.dtype == torch.float32 else 2),
            BLOCK_D=BLOCK_D,
            num_warps=1,
            num_stages=1,
            enable_fp_fusion=True,
        )
    da_XD = torch.view_as_complex(da.unflatten(-1, (-1, 2))) if y_TD.is_complex() else da
    da_XG = da_XD.unflatten(1, (a_TG.shape[1], -1)).sum(-1)
    da_TG = da_XG.sum(0, keepdim=True) if constant else da_XG
    return da_TG.to(a_TG.dtype), _whole(db, y_TD), _whole(dh, h_ND)


def _parts(x: Tensor) -> Tensor:
    """Contiguous real numbers: [.., 2 D] with real and imaginary parts in turn for a complex x."""
    x = x.resolve_conj().contiguous()
    return torch.view_as_real(x).flatten(-2) if x.is_complex() else x


def _whole(x: Tensor, like: Tensor) -> Tensor:
    return torch.view_as_complex(x.unflatten(-1, (-1, 2))) if like.is_complex() else x


def _layout(a_TG: Tensor, b_TD: Tensor) -> tuple[int, int]:
    """(numbers of a from one step to the next, channels that share one a)."""
    groups = a_TG.shape[1]
    return (0 if len(a_TG) == 1 else groups), b_TD.shape[1] // max(1, groups)


@triton.jit
def _after_complex(ar, ai, br, bi, later_ar, later_ai, later_br, later_bi):
    return (
        later_ar * ar - later_ai * ai,
        later_ar * ai + later_ai * ar,
        later_ar * br - later_ai * bi + later_br,
        later_ar * bi + later_ai * br + later_bi,
    )


@triton.jit
def _load(pointer, places, mask, COMPLEX: tl.constexpr, other: tl.constexpr):
    """(real, imaginary) float32 tiles; the imaginary one is 0 where numbers are real."""
    if COMPLEX:
        real = tl.load(pointer + 2 * places, mask=mask, other=other).to(tl.float32)
        imaginary = tl.load(pointer + 2 * places + 1, mask=mask, other=0.0).to(tl.float32)
    else:
        real = tl.load(pointer + places, mask=mask, other=other).to(tl.float32)
        imaginary = tl.zeros_like(real)
    return real, imaginary


@triton.jit
def _store(pointer, places, mask, real, imaginary, COMPLEX: tl.constexpr):
    if COMPLEX:
        tl.store(pointer + 2 * places, real, mask=mask)
        tl.store(pointer + 2 * places + 1, imaginary, mask=mask)
    else:
        tl.store(pointer + places, real, mask=mask)


@triton.jit
def _scan_tile(ar, ai, br, bi, hr, hi, COMPLEX: tl.constexpr):
    """States of a tile that begins with state (hr, hi) [BLOCK_D]."""
    if COMPLEX:
        ar, ai, br, bi = tl.associative_scan((ar, ai, br, bi), 0, _after_complex)
        return ar * hr - ai * hi + br, ar * hi + ai * hr + bi
    else:
        ar, br = tl.associative_scan((ar, br), 0, after)
        return ar * hr + br, bi


@triton.jit(do_not_specialize=["dim"])
def _forward(
    a,
    b,
    h0,
    cu_seqlens,
    reset,
    y,
    final,
    dim,
    a_step,
    group,
    REVERSE: tl.constexpr,
    COMPLEX: tl.constexpr,
    RESET: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = d < dim
    start, end = tl.load(cu_seqlens + n), tl.load(cu_seqlens + n + 1)
    hr, hi = _load(h0, n * dim + d, inside, COMPLEX, 0.0)
    for first in range(0, end - start, BLOCK_T):
        i = first + tl.arange(0, BLOCK_T).to(tl.int64)
        t = end - 1 - i if REVERSE else start + i
        real = i < end - start
        mask = real[:, None] & inside[None, :]
        # Behind the end a = 1 and b = 0 keep the state, which so is a tile's last row.
        ar, ai = _load(a, t[:, None] * a_step + (d // group)[None, :], mask, COMPLEX, 1.0)
        br, bi = _load(b, t[:, None] * dim + d[None, :], mask, COMPLEX, 0.0)
        if RESET:
            keep = tl.load(reset + t, mask=real, other=0)[:, None] == 0
            ar, ai = tl.where(keep, ar, 0.0), tl.where(keep, ai, 0.0)
        yr, yi = _scan_tile(ar, ai, br, bi, hr[None, :], hi[None, :], COMPLEX)
        _store(y, t[:, None] * dim + d[None, :], mask, yr, yi, COMPLEX)
        hr, hi = last_row(yr, BLOCK_T), last_row(yi, BLOCK_T)
    _store(final, n * dim + d, inside, hr, hi, COMPLEX)


@triton.jit(do_not_specialize=["dim"])
def _backward(
    dy,
    dfinal,
    a,
    y,
    h0,
    cu_seqlens,
    reset,
    da,
    db,
    dh,
    dim,
    a_step,
    group,
    REVERSE: tl.constexpr,
    COMPLEX: tl.constexpr,
    RESET: tl.constexpr,
    CONSTANT: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """g_t = dy_t + conj(a_{t+1}) g_{t+1}; db = g; da_t = g_t conj(h_{t-1}). i is 0 at the end."""
    n = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = d < dim
    start, end = tl.load(cu_seqlens + n), tl.load(cu_seqlens + n + 1)
    length = end - start
    gr, gi = _load(dfinal, n * dim + d, inside, COMPLEX, 0.0)
    h0r, h0i = _load(h0, n * dim + d, inside, COMPLEX, 0.0)
    sum_r, sum_i = tl.zeros_like(gr), tl.zeros_like(gr)
    step = -1 if REVERSE else 1
    for first in range(0, length, BLOCK_T):
        i = first + tl.arange(0, BLOCK_T).to(tl.int64)
        t = start + i if REVERSE else end - 1 - i
        real = i < length
        mask = real[:, None] & inside[None, :]
        # The step before the last in time has the coefficient of the one behind it.
        later = mask & (i > 0)[:, None]
        a_d = (d // group)[None, :]
        ar, ai = _load(a, (t + step)[:, None] * a_step + a_d, later, COMPLEX, 1.0)
        if RESET:
            kept = tl.load(reset + t + step, mask=real & (i > 0), other=0)[:, None] == 0
            ar, ai = tl.where(kept, ar, 0.0), tl.where(kept, ai, 0.0)
        dyr, dyi = _load(dy, t[:, None] * dim + d[None, :], mask, COMPLEX, 0.0)
        gtr, gti = _scan_tile(ar, -ai, dyr, dyi, gr[None, :], gi[None, :], COMPLEX)
        before = mask & (i < length - 1)[:, None]
        pr, pi = _load(y, (t - step)[:, None] * dim + d[None, :], before, COMPLEX, 0.0)
        first_step = (i == length - 1)[:, None]
        pr, pi = tl.where(first_step, h0r[None, :], pr), tl.where(first_step, h0i[None, :], pi)
        if RESET:
            keep = tl.load(reset + t, mask=real, other=0)[:, None] == 0
            pr, pi = tl.where(keep, pr, 0.0), tl.where(keep, pi, 0.0)
        dar, dai = gtr * pr + gti * pi, gti * pr - gtr * pi
        _store(db, t[:, None] * dim + d[None, :], mask, gtr, gti, COMPLEX)
        if CONSTANT:
            sum_r += tl.sum(tl.where(mask, dar, 0.0), axis=0)
            sum_i += tl.sum(tl.where(mask, dai, 0.0), axis=0)
        else:
            _store(da, t[:, None] * dim + d[None, :], mask, dar, dai, COMPLEX)
        gr, gi = last_row(gtr, BLOCK_T), last_row(gti, BLOCK_T)
    if CONSTANT:
        _store(da, n * dim + d, inside, sum_r, sum_i, COMPLEX)
    # One more step back, to the state before the first event.
    t = end - 1 if REVERSE else start
    some = inside & (d - d < length)
    ar, ai = _load(a, t * a_step + d // group, some, COMPLEX, 1.0)
    if RESET:
        forget = tl.load(reset + t + (d - d), mask=some, other=0) != 0
        ar, ai = tl.where(forget, 0.0, ar), tl.where(forget, 0.0, ai)
    _store(dh, n * dim + d, inside, ar * gr + ai * gi, ar * gi - ai * gr, COMPLEX)
