"""rnn_scan in Triton: the GRU and the LSTM walked, a thread for every channel of a sequence.

A step waits for the step before it, but its loads do not: those of STEPS steps are under way
together. Times are counted in walking order, i = 0, 1, …; `t` is where that lies in memory.
"""

# In the bodies of kernels tuples grow, which is beyond Python's types:
import torch
import triton
import triton.language as tl
from torch import Tensor

from recsys.kernels.rnn_scan.cells import LSTM, Cell

BLOCK_D = 32
FORWARD_STEPS, BACKWARD_STEPS = 8, 4
"""Steps whose loads are under way together, at 130 registers of a thread's 255 or fewer."""


def forward(
    cell: Cell,
    u_TGD: Tensor,
    params_GD: Tensor,
    h_NSD: Tensor,
    cu_seqlens: Tensor,
    reset_T: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(h [T, D], the rest of the states [T, S - 1, D], final [N, S, D]) in float32."""
    inputs = [x.contiguous() for x in (u_TGD, params_GD.float(), h_NSD)]
    sequences, states, dim = h_NSD.shape
    y_TD = h_NSD.new_empty((len(u_TGD), dim))
    rest_TRD = h_NSD.new_empty((len(u_TGD), states - 1, dim))
    final_NSD = torch.empty_like(inputs[2])
    grid = (sequences, triton.cdiv(dim, BLOCK_D))
    if 0 not in grid:
        _forward[grid](
            *(*inputs, cu_seqlens, reset_T, y_TD, rest_TRD, final_NSD, dim),
            **_constants(cell, reset_T, reverse),
            STEPS=FORWARD_STEPS,
        )
    return y_TD, rest_TRD, final_NSD


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
    u, params, h = (x.contiguous() for x in (u_TGD, params_GD.float(), h_NSD))
    du_TGD, dh_NSD = torch.empty_like(u), torch.empty_like(h)
    sequences, _, dim = h.shape
    # By sequence; their sum follows in a fixed order.
    dparams_NGD = h.new_empty((sequences, *params.shape))
    grid = (sequences, triton.cdiv(dim, BLOCK_D))
    if 0 not in grid:
        _backward[grid](
            *(dy_TD, dfinal_NSD, u, params, h, y_TD, rest_TRD, cu_seqlens, reset_T),
            *(du_TGD, dparams_NGD, dh_NSD, dim),
            **_constants(cell, reset_T, reverse),
            STEPS=BACKWARD_STEPS,
        )
    return du_TGD, dparams_NGD.sum(0), dh_NSD


def _constants(cell: Cell, reset_T: Tensor | None, reverse: bool) -> dict:
    """What both kernels are compiled for."""
    return {
        "IS_LSTM": cell == LSTM,
        "REVERSE": reverse,
        "RESET": reset_T is not None,
        "BLOCK_D": BLOCK_D,
        "num_warps": 1,
        "num_stages": 1,
        "enable_fp_fusion": True,
    }


@triton.jit
def _tanh(x):
    """tanh to 4e-7 of itself however small, as Eigen's quotient of polynomials; NaN stays NaN."""
    end: tl.constexpr = 7.90531110763549805
    x = tl.where(x < -end, -end, tl.where(x > end, end, x))
    s = x * x
    p = -8.60467152213735e-11 + s * (2.00018790482477e-13 + s * -2.76076847742355e-16)
    p = 6.37261928875436e-04 + s * (1.48572235717979e-05 + s * (5.12229709037114e-08 + s * p))
    q = 1.18534705686654e-04 + s * 1.19825839466702e-06
    q = 4.89352518554385e-03 + s * (2.26843463243900e-03 + s * q)
    return x * (4.89352455891786e-03 + s * p) / q


@triton.jit
def _with(rows, row):
    return rows + (row,)  # noqa: RUF005 (Triton has no star in a tuple)


@triton.jit
def _row(pointer, place, mask):
    """[BLOCK_D] float32 numbers, 0 where the mask is False."""
    return tl.load(pointer + place, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _kept(reset, t, d, real):
    """[BLOCK_D] bool: the step forgets nothing."""
    return tl.load(reset + t + (d - d), mask=real, other=0) == 0


@triton.jit(do_not_specialize=["dim"])
def _forward(
    u,
    params,
    h0,
    cu_seqlens,
    reset,
    y,
    rest,
    final,
    dim,
    IS_LSTM: tl.constexpr,
    REVERSE: tl.constexpr,
    RESET: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STEPS: tl.constexpr,
):
    GATES: tl.constexpr = 4 if IS_LSTM else 3
    STATES: tl.constexpr = 2 if IS_LSTM else 1
    n = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = d < dim
    start, end = tl.load(cu_seqlens + n), tl.load(cu_seqlens + n + 1)
    length = end - start
    a = ()
    for k in tl.static_range(GATES):
        a = _with(a, _row(params, k * dim + d, inside))
    h = _row(h0, n * STATES * dim + d, inside)
    c = _row(h0, (n * STATES + STATES - 1) * dim + d, inside)
    for first in range(0, length, STEPS):
        us, keeps = (), ()
        for k in tl.static_range(STEPS):
            t = end - 1 - first - k if REVERSE else start + first + k
            real = inside & (first + k + (d - d) < length)
            for gate in tl.static_range(GATES):
                us = _with(us, _row(u, (t * GATES + gate) * dim + d, real))
            if RESET:
                keeps = _with(keeps, _kept(reset, t, d, real))
        for k in tl.static_range(STEPS):
            t = end - 1 - first - k if REVERSE else start + first + k
            real = inside & (first + k + (d - d) < length)
            if RESET:
                h, c = tl.where(keeps[k], h, 0.0), tl.where(keeps[k], c, 0.0)
            x0 = a[0] * h + us[k * GATES]
            x1 = a[1] * h + us[k * GATES + 1]
            if IS_LSTM:
                g = _tanh(a[2] * h + us[k * GATES + 2])
                o = tl.sigmoid(a[3] * h + us[k * GATES + 3])
                c_next = tl.sigmoid(x1) * c + tl.sigmoid(x0) * g
                h_next = o * _tanh(c_next)
                tl.store(rest + t * dim + d, c_next, mask=real)
                c = tl.where(real, c_next, c)
            else:
                new = _tanh(a[2] * (tl.sigmoid(x1) * h) + us[k * GATES + 2])
                h_next = h + tl.sigmoid(x0) * (new - h)
            tl.store(y + t * dim + d, h_next, mask=real)
            h = tl.where(real, h_next, h)
    tl.store(final + n * STATES * dim + d, h, mask=inside)
    if IS_LSTM:
        tl.store(final + (n * STATES + 1) * dim + d, c, mask=inside)


@triton.jit(do_not_specialize=["dim"])
def _backward(
    dy,
    dfinal,
    u,
    params,
    h0,
    y,
    rest,
    cu_seqlens,
    reset,
    du,
    dparams,
    dh0,
    dim,
    IS_LSTM: tl.constexpr,
    REVERSE: tl.constexpr,
    RESET: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STEPS: tl.constexpr,
):
    """From the last step to the first; the gates again from u and the state before."""
    GATES: tl.constexpr = 4 if IS_LSTM else 3
    STATES: tl.constexpr = 2 if IS_LSTM else 1
    n = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = d < dim
    start, end = tl.load(cu_seqlens + n), tl.load(cu_seqlens + n + 1)
    length = end - start
    back = -1 if REVERSE else 1
    a, da = (), ()
    for k in tl.static_range(GATES):
        a = _with(a, _row(params, k * dim + d, inside))
        da = _with(da, tl.zeros([BLOCK_D], dtype=tl.float32))
    place_h, place_c = n * STATES * dim + d, (n * STATES + STATES - 1) * dim + d
    h_first, c_first = _row(h0, place_h, inside), _row(h0, place_c, inside)
    carry, carry_c = _row(dfinal, place_h, inside), _row(dfinal, place_c, inside)
    for done in range(0, length, STEPS):
        us, dys, hs, cs, ends, keeps = (), (), (), (), (), ()
        for k in tl.static_range(STEPS):
            i = length - 1 - done - k
            t = end - 1 - i if REVERSE else start + i
            real, later = inside & (i + (d - d) >= 0), inside & (i + (d - d) > 0)
            for gate in tl.static_range(GATES):
                us = _with(us, _row(u, (t * GATES + gate) * dim + d, real))
            dys = _with(dys, _row(dy, t * dim + d, real))
            hs = _with(hs, tl.where(later, _row(y, (t - back) * dim + d, later), h_first))
            if IS_LSTM:
                cs = _with(cs, tl.where(later, _row(rest, (t - back) * dim + d, later), c_first))
                ends = _with(ends, _row(rest, t * dim + d, real))
            if RESET:
                keeps = _with(keeps, _kept(reset, t, d, real))
        for k in tl.static_range(STEPS):
            i = length - 1 - done - k
            t = end - 1 - i if REVERSE else start + i
            real = inside & (i + (d - d) >= 0)
            h = hs[k]
            if RESET:
                h = tl.where(keeps[k], h, 0.0)
            s0 = tl.sigmoid(a[0] * h + us[k * GATES])
            s1 = tl.sigmoid(a[1] * h + us[k * GATES + 1])
            dh = carry + dys[k]
            if IS_LSTM:
                c = cs[k]
                if RESET:
                    c = tl.where(keeps[k], c, 0.0)
                g = _tanh(a[2] * h + us[k * GATES + 2])
                o = tl.sigmoid(a[3] * h + us[k * GATES + 3])
                out = _tanh(ends[k])
                dc = carry_c + dh * o * (1 - out * out)
                d0 = dc * g * s0 * (1 - s0)
                d1 = dc * c * s1 * (1 - s1)
                d2 = dc * s0 * (1 - g * g)
                d3 = dh * out * o * (1 - o)
                before = d0 * a[0] + d1 * a[1] + d2 * a[2] + d3 * a[3]
                before_c = dc * s1
                # Behind the first step in time u, dy and with them all of these could be anything.
                dks = (d0, d1, d2, d3)
                da = (
                    da[0] + tl.where(real, d0 * h, 0.0),
                    da[1] + tl.where(real, d1 * h, 0.0),
                    da[2] + tl.where(real, d2 * h, 0.0),
                    da[3] + tl.where(real, d3 * h, 0.0),
                )
            else:
                new = _tanh(a[2] * (s1 * h) + us[k * GATES + 2])
                d0 = dh * (new - h) * s0 * (1 - s0)
                d2 = dh * s0 * (1 - new * new)
                d_rh = d2 * a[2]
                d1 = d_rh * h * s1 * (1 - s1)
                before = dh * (1 - s0) + d0 * a[0] + d1 * a[1] + d_rh * s1
                before_c = before
                dks = (d0, d1, d2)
                da = (
                    da[0] + tl.where(real, d0 * h, 0.0),
                    da[1] + tl.where(real, d1 * h, 0.0),
                    da[2] + tl.where(real, d2 * (s1 * h), 0.0),
                )
            for gate in tl.static_range(GATES):
                tl.store(du + (t * GATES + gate) * dim + d, dks[gate], mask=real)
            if RESET:
                before = tl.where(keeps[k], before, 0.0)
                before_c = tl.where(keeps[k], before_c, 0.0)
            carry = tl.where(real, before, carry)
            carry_c = tl.where(real, before_c, carry_c)
    for gate in tl.static_range(GATES):
        tl.store(dparams + (n * GATES + gate) * dim + d, da[gate], mask=inside)
    tl.store(dh0 + place_h, carry, mask=inside)
    if IS_LSTM:
        tl.store(dh0 + place_c, carry_c, mask=inside)
