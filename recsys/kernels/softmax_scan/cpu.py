"""softmax_scan on the CPU: the weights of a whole sequence first, then rows of channels.

The weights have loops of their own so that the exponentials vectorise over time: in one loop
with the steps each would wait for the last.
"""

import math

import numpy as np
import torch
from torch import Tensor

from recsys.kernels.compiled import arrays, exp, inlined, kernel, mask, over_sequences, summing
from recsys.kernels.packing import check_cu_seqlens


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
    dtype = lse_NH.dtype
    y_THK = torch.empty(v_THK.shape, dtype=dtype)
    p_TH, kept_TH = (torch.empty(s_TH.shape, dtype=dtype) for _ in range(2))
    final_NH, final_NHK = (torch.empty(x.shape, dtype=dtype) for x in (lse_NH, o_NHK))
    over_sequences(
        _walk,
        *arrays(dtype, s_TH, v_THK, lse_NH, o_NHK),
        *(mask(reset_T), mask(valid_T)),
        *(x.numpy() for x in (p_TH, kept_TH, y_THK, final_NH, final_NHK)),
        cu_seqlens=cu_seqlens.numpy(),
        options=(reverse, _lowest(p_TH.numpy().dtype)),
    )
    return y_THK.to(v_THK.dtype), p_TH, kept_TH, final_NH, final_NHK


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
    dtype = p_TH.dtype
    ds_TH, dv_THK, dlse0_NH, do0_NHK = (
        torch.empty(x.shape, dtype=dtype) for x in (p_TH, v_THK, dlse_NH, do_NHK)
    )
    over_sequences(
        _back,
        *arrays(dtype, dy_THK, dlse_NH, do_NHK, v_THK, y_THK, o_NHK, p_TH, kept_TH),
        *(x.numpy() for x in (ds_TH, dv_THK, dlse0_NH, do0_NHK)),
        cu_seqlens=cu_seqlens.numpy(),
        options=(reverse,),
    )
    return ds_TH, dv_THK.to(v_THK.dtype), dlse0_NH, do0_NHK


def _lowest(dtype: np.dtype) -> np.floating:
    """The lowest exponent of e that gives a normal number: below it a weight is 0."""
    return dtype.type(math.log(np.finfo(dtype).tiny) + 1e-2)


# Loops over time go head by head, so that what a step hands to the next stays in a register.


@kernel
def _exponents(s, lse0, reset, valid, p, kept, lse, start, end, reverse):
    """p and kept of logarithms of their numerators; lse [H] of the largest score."""
    lowest = np.full(1, -np.inf, dtype=s.dtype)[0]
    zero = np.zeros(1, dtype=s.dtype)[0]
    step = -1 if reverse else 1
    for h in range(s.shape[1]):
        highest = lse0[h]
        t = end - 1 if reverse else start
        for _ in range(end - start):
            before = lowest if len(reset) > 0 and reset[t] else highest
            score = lowest if len(valid) > 0 and not valid[t] else s[t, h]
            # Not the other way round: a NaN must not be taken for the lower one.
            highest = before if before >= score else score
            base = zero if highest == lowest else highest
            p[t, h] = score - base
            kept[t, h] = before - base
            t += step
        lse[h] = highest


@kernel
def _exponentials(x, lowest):
    zero = np.zeros(1, dtype=x.dtype)[0]
    for i in range(len(x)):
        e = exp(x[i])
        x[i] = zero if x[i] < lowest else e


@inlined
def _shares(p_t, kept_t, total, forgets, zero, one):
    """p_t and what is left of a step's sums over the new sum; 0 and 1 while nothing has come."""
    for h in range(len(total)):
        old = zero if forgets else total[h] * kept_t[h]
        new = p_t[h]
        whole = old + new
        total[h] = whole
        nothing = whole == zero
        p_t[h] = zero if nothing else new / whole
        kept_t[h] = (zero if forgets else one) if nothing else old / whole


@kernel
def _clear(o):
    for h in range(o.shape[0]):
        for d in range(o.shape[1]):
            o[h, d] = 0


@kernel
def _copy(o, y_t):
    for h in range(o.shape[0]):
        for d in range(o.shape[1]):
            y_t[h, d] = o[h, d]


@kernel
def _walk(s, v, lse0, o0, reset, valid, p, kept, y, lse, o, cu, first, last, reverse, lowest):
    heads, dim = v.shape[1], v.shape[2]
    step = -1 if reverse else 1
    total = np.empty(heads, dtype=p.dtype)
    zero, one = np.zeros(1, dtype=p.dtype)[0], np.ones(1, dtype=p.dtype)[0]
    for n in range(first, last):
        start, end = cu[n], cu[n + 1]
        numbers = (end - start) * heads
        p_n, kept_n = p[start:end].reshape(numbers), kept[start:end].reshape(numbers)
        _exponents(s, lse0[n], reset, valid, p, kept, lse[n], start, end, reverse)
        _exponentials(p_n, lowest)
        _exponentials(kept_n, lowest)
        for h in range(heads):
            total[h] = zero if lse0[n, h] == -np.inf else one
        _copy(o0[n], o[n])
        t = end - 1 if reverse else start
        for _ in range(end - start):
            forgets = len(reset) > 0 and reset[t]
            # Among the rows, whose memory is waited for, what each sum waits for costs nothing.
            _shares(p[t], kept[t], total, forgets, zero, one)
            if forgets:
                _clear(o[n])
            if len(valid) > 0 and not valid[t]:
                _copy(o[n], y[t])
            else:
                for h in range(heads):
                    p_t, kept_t = p[t, h], kept[t, h]
                    v_t, o_t, y_t = v[t, h], o[n, h], y[t, h]
                    for d in range(dim):
                        o_d = kept_t * o_t[d] + p_t * v_t[d]
                        o_t[d] = o_d
                        y_t[d] = o_d
            t += step
        for h in range(heads):
            lse[n, h] += np.log(total[h])


@summing
def _back_row(dy_t, v_t, before, dv_t, g, p_t, kept_t, total):
    """total + g . (v - before) of one step and head, in as many sums as the CPU has lanes."""
    # Channels in the direction of the walk, so that what is fetched ahead is what comes next.
    for d in range(len(g) - 1, -1, -1):
        g_d = g[d] + dy_t[d]
        dv_t[d] = p_t * g_d
        total += g_d * (v_t[d] - before[d])
        g[d] = kept_t * g_d
    return total


@kernel
def _back(dy, dlse, do, v, y, o0, p, kept, ds, dv, dlse0, do0, cu, first, last, reverse):
    heads, dim = v.shape[1], v.shape[2]
    step = -1 if reverse else 1
    zero = np.zeros(1, dtype=v.dtype)[0]
    for n in range(first, last):
        _copy(do[n], do0[n])
        for h in range(heads):
            dlse0[n, h] = dlse[n, h]
        t = cu[n] if reverse else cu[n + 1] - 1
        for left in range(cu[n + 1] - cu[n], 0, -1):
            for h in range(heads):
                p_t, kept_t = p[t, h], kept[t, h]
                g, dy_t, dv_t = do0[n, h], dy[t, h], dv[t, h]
                if p_t == zero:
                    # A step without weight; what v holds at a skipped one, be it NaN, is nothing.
                    for d in range(dim):
                        g[d] = kept_t * (g[d] + dy_t[d])
                        dv_t[d] = zero
                    ds[t, h] = zero
                    dlse0[n, h] *= kept_t
                else:
                    v_t = v[t, h]
                    before = y[t - step, h] if left > 1 else o0[n, h]
                    if kept_t == zero:
                        before = v_t  # what was forgotten, be it NaN, is nothing to s
                    dot = _back_row(dy_t, v_t, before, dv_t, g, p_t, kept_t, zero)
                    moved = p_t * kept_t * dot
                    ds[t, h] = moved + p_t * dlse0[n, h]
                    dlse0[n, h] = kept_t * dlse0[n, h] - moved
            t -= step
