"""linear_scan on the CPU: whole rows of channels, one step after the other, at memory speed.

A walk, since on a CPU every parallel scan is slower: it moves each number several times.
"""

import numpy as np
import torch
from torch import Tensor

from recsys.kernels.compiled import arrays, inlined, kernel, mask, over_sequences
from recsys.kernels.lanes import add, conjugate, load, multiply, multiply_add, per_vector, store
from recsys.kernels.packing import check_cu_seqlens


def forward(
    a_TG: Tensor,
    b_TD: Tensor,
    h_ND: Tensor,
    cu_seqlens: Tensor,
    reset_T: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """(y [T, D] in the dtype of b, final [N, D])."""
    check_cu_seqlens(cu_seqlens, len(b_TD))
    a, b, h = arrays(h_ND.dtype, a_TG, b_TD, h_ND)
    y_TD = torch.empty(b_TD.shape, dtype=h_ND.dtype)
    final_ND = torch.empty_like(h_ND, memory_format=torch.contiguous_format)
    over_sequences(
        _walk_groups if a.shape[1] != b.shape[1] else _walk,
        *(a, b, h, mask(reset_T), y_TD.numpy(), final_ND.numpy()),
        cu_seqlens=cu_seqlens.numpy(),
        options=(reverse,),
    )
    return y_TD.to(b_TD.dtype), final_ND


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
    dtype = h_ND.dtype
    dy, dfinal, a, y, h = arrays(dtype, dy_TD, dfinal_ND, a_TG, y_TD, h_ND)
    constant = len(a_TG) == 1 != len(y_TD)
    da = torch.empty((len(h_ND) if constant else len(y_TD), a.shape[1]), dtype=dtype)
    db_TD, dh_ND = torch.empty(y_TD.shape, dtype=dtype), torch.empty(h_ND.shape, dtype=dtype)
    grouped = a.shape[1] != y.shape[1]
    over_sequences(
        _back_groups if grouped else _back_constant if constant else _back,
        *(dy, dfinal, a, y, h, mask(reset_T), da.numpy(), db_TD.numpy(), dh_ND.numpy()),
        cu_seqlens=cu_seqlens.numpy(),
        options=(reverse,),
    )
    # By sequence first and in their order, so that threads do not change the sum.
    da_TG = da.sum(dim=0, keepdim=True) if constant else da
    return da_TG.to(a_TG.dtype), db_TD.to(y_TD.dtype), dh_ND


# Kernels of their own for a decay of every channel, of a group of channels, and one that is the
# same at every step: a choice inside the inner loops would cost half their speed. Rows are walked
# in the direction of time in memory, so that what the processor fetches ahead is what comes next:
# ascending channels in a walk that goes back through memory took three times as long.


@inlined
def _step(h, a_t, b_t, y_t, ascending):
    """h = y_t = a_t h + b_t."""
    size = per_vector(h)
    whole = len(h) // size * size
    for place in range(0, whole, size):
        d = place if ascending else whole - size - place
        h_d = multiply_add(load(a_t, d), load(h, d), load(b_t, d))
        store(h, d, h_d)
        store(y_t, d, h_d)
    for d in range(whole, len(h)):
        h[d] = a_t[d] * h[d] + b_t[d]
        y_t[d] = h[d]


@inlined
def _step_back(g, dy_t, a_t, previous, da_t, db_t):
    """db_t = g + dy_t; da_t = db_t conj(previous); g = conj(a_t) db_t, channels descending."""
    size = per_vector(g)
    whole = len(g) // size * size
    for d in range(len(g) - 1, whole - 1, -1):
        db_t[d] = g[d] + dy_t[d]
        da_t[d] = db_t[d] * np.conj(previous[d])
        g[d] = np.conj(a_t[d]) * db_t[d]
    for d in range(whole - size, -1, -size):
        total = add(load(g, d), load(dy_t, d))
        store(db_t, d, total)
        store(da_t, d, multiply(conjugate(load(previous, d)), total))
        store(g, d, multiply(conjugate(load(a_t, d)), total))


@kernel
def _walk(a, b, h0, reset, y, final, cu, first, last, reverse):
    dim = b.shape[1]
    moves = 0 if len(a) == 1 else 1
    for n in range(first, last):
        # The state lives in the row that it ends in, and so in the fastest cache.
        h = final[n]
        for d in range(dim):
            h[d] = h0[n, d]
        if reverse:
            for t in range(cu[n + 1] - 1, cu[n] - 1, -1):
                if len(reset) > 0 and reset[t]:
                    h[:] = 0
                _step(h, a[t * moves], b[t], y[t], False)
        else:
            for t in range(cu[n], cu[n + 1]):
                if len(reset) > 0 and reset[t]:
                    h[:] = 0
                _step(h, a[t * moves], b[t], y[t], True)


@kernel
def _walk_groups(a, b, h0, reset, y, final, cu, first, last, reverse):
    groups = a.shape[1]
    size = b.shape[1] // groups
    step = -1 if reverse else 1
    for n in range(first, last):
        h = final[n]
        h[:] = h0[n]
        t = cu[n + 1] - 1 if reverse else cu[n]
        for _ in range(cu[n + 1] - cu[n]):
            if len(reset) > 0 and reset[t]:
                h[:] = 0
            b_t, y_t = b[t], y[t]
            for g in range(groups):
                decay = a[t, g]
                for d in range(g * size, (g + 1) * size):
                    h_d = decay * h[d] + b_t[d]
                    h[d] = h_d
                    y_t[d] = h_d
            t += step


@kernel
def _back(dy, dfinal, a, y, h0, reset, da, db, dh0, cu, first, last, reverse):
    dim = y.shape[1]
    step = -1 if reverse else 1
    zero = np.zeros(dim, dtype=y.dtype)
    for n in range(first, last):
        g = dh0[n]
        for d in range(dim):
            g[d] = dfinal[n, d]
        t = cu[n] if reverse else cu[n + 1] - 1
        for left in range(cu[n + 1] - cu[n], 0, -1):
            # A call each, not a choice of `previous`: that would count references at every step.
            if len(reset) > 0 and reset[t]:
                _step_back(g, dy[t], a[t], zero, da[t], db[t])
                g[:] = 0
            elif left > 1:
                _step_back(g, dy[t], a[t], y[t - step], da[t], db[t])
            else:
                _step_back(g, dy[t], a[t], h0[n], da[t], db[t])
            t -= step


@kernel
def _back_constant(dy, dfinal, a, y, h0, reset, da, db, dh0, cu, first, last, reverse):
    dim = y.shape[1]
    step = -1 if reverse else 1
    zero, change = np.zeros(dim, dtype=y.dtype), np.zeros(dim, dtype=y.dtype)
    for n in range(first, last):
        g, da_n = dh0[n], da[n]
        for d in range(dim):
            g[d] = dfinal[n, d]
            da_n[d] = 0
        t = cu[n] if reverse else cu[n + 1] - 1
        for left in range(cu[n + 1] - cu[n], 0, -1):
            if len(reset) > 0 and reset[t]:
                _step_back(g, dy[t], a[0], zero, change, db[t])
                g[:] = 0
            elif left > 1:
                _step_back(g, dy[t], a[0], y[t - step], change, db[t])
            else:
                _step_back(g, dy[t], a[0], h0[n], change, db[t])
            for d in range(dim):
                da_n[d] += change[d]
            t -= step


@kernel
def _back_groups(dy, dfinal, a, y, h0, reset, da, db, dh0, cu, first, last, reverse):
    groups = a.shape[1]
    size = y.shape[1] // groups
    step = -1 if reverse else 1
    zero = np.zeros(y.shape[1], dtype=y.dtype)
    for n in range(first, last):
        g = dh0[n]
        g[:] = dfinal[n]
        t = cu[n] if reverse else cu[n + 1] - 1
        for left in range(cu[n + 1] - cu[n], 0, -1):
            previous = y[t - step] if left > 1 else h0[n]
            if len(reset) > 0 and reset[t]:
                previous = zero
            dy_t, db_t = dy[t], db[t]
            for k in range(groups):
                decay, total = np.conj(a[t, k]), zero[0]
                for d in range(k * size, (k + 1) * size):
                    total_d = g[d] + dy_t[d]
                    db_t[d] = total_d
                    total += total_d * np.conj(previous[d])
                    g[d] = decay * total_d
                da[t, k] = total
            if len(reset) > 0 and reset[t]:
                g[:] = 0
            t -= step
