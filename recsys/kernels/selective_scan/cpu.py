"""selective_scan on the CPU: a vector of channels after the other, one step at a time.

The states of a vector of channels stay in the fastest cache while time passes, and sums over s in
registers; what the backward keeps of a chunk stays in the second cache. Sums over channels, dB and
dC, are kept as vectors until all channels of the chunk are done.
"""

import math

import numpy as np
import torch
from torch import Tensor

from recsys.kernels.compiled import arrays, inlined, kernel, mask, over_sequences
from recsys.kernels.lanes import (
    exp2,
    filled,
    load,
    multiply,
    multiply_add,
    per_vector,
    splat,
    store,
    total,
    whole,
    zeros,
)
from recsys.kernels.packing import check_cu_seqlens
from recsys.kernels.selective_scan.checkpoints import CHUNK, num_checkpoints

_LOG2_E = 1 / math.log(2)
_LN_2 = math.log(2)


def forward(
    u_TD: Tensor,
    dt_TD: Tensor,
    A_SD: Tensor,
    B_TS: Tensor,
    C_TS: Tensor,
    h_NSD: Tensor,
    cu_seqlens: Tensor,
    reset_T: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(y [T, D] in the dtype of u, final [N, S, D], checkpoints [C, S, D])."""
    check_cu_seqlens(cu_seqlens, len(u_TD))
    dtype, dim = h_NSD.dtype, u_TD.shape[1]
    channels = whole(dim)
    y_TD = torch.empty((len(u_TD), channels), dtype=dtype)
    final_NSD = torch.empty((*h_NSD.shape[:2], channels), dtype=dtype)
    places = (num_checkpoints(len(u_TD)), len(A_SD), channels)
    checkpoints_CSD = torch.empty(places, dtype=dtype)
    over_sequences(
        _walk,
        *(filled(u_TD, dtype), filled(dt_TD, dtype), *_rates(A_SD, dtype)),
        *(*arrays(dtype, B_TS, C_TS), filled(h_NSD, dtype), mask(reset_T)),
        *(y_TD.numpy(), final_NSD.numpy(), checkpoints_CSD.numpy()),
        cu_seqlens=cu_seqlens.numpy(),
        options=(reverse,),
    )
    y_TD, final_NSD, checkpoints_CSD = _cut(dim, y_TD, final_NSD, checkpoints_CSD)
    return y_TD.to(u_TD.dtype), final_NSD, checkpoints_CSD


def backward(
    dy_TD: Tensor,
    dfinal_NSD: Tensor,
    u_TD: Tensor,
    dt_TD: Tensor,
    A_SD: Tensor,
    B_TS: Tensor,
    C_TS: Tensor,
    h_NSD: Tensor,
    checkpoints_CSD: Tensor,
    cu_seqlens: Tensor,
    reset_T: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(du [T, D], ddt [T, D], dA [S, D], dB [T, S], dC [T, S], dh [N, S, D]) of `forward`."""
    dtype, dim = h_NSD.dtype, u_TD.shape[1]
    dy, dfinal, u, dt, h, checkpoints = (
        filled(x, dtype) for x in (dy_TD, dfinal_NSD, u_TD, dt_TD, h_NSD, checkpoints_CSD)
    )
    du, ddt, dA, dh = (torch.empty(x.shape, dtype=dtype) for x in (u, dt, h, h))
    dB_TS, dC_TS = (torch.empty(x.shape, dtype=dtype) for x in (B_TS, C_TS))
    over_sequences(
        _back,
        *(dy, dfinal, u, dt, *_rates(A_SD, dtype), *arrays(dtype, B_TS, C_TS), h, checkpoints),
        mask(reset_T),
        *(gradient.numpy() for gradient in (du, ddt, dA, dB_TS, dC_TS, dh)),
        cu_seqlens=cu_seqlens.numpy(),
        options=(reverse,),
    )
    du_TD, ddt_TD, dA_NSD, dh_NSD = _cut(dim, du, ddt, dA, dh)
    # By sequence first and in their order, so that threads do not change the sum.
    return du_TD, ddt_TD, dA_NSD.sum(dim=0), dB_TS, dC_TS, dh_NSD


def _rates(A_SD: Tensor, dtype: torch.dtype) -> tuple[np.ndarray, np.ndarray]:
    """A log2(e) in `dtype`, and what rounding took from it."""
    exact = A_SD.double() * _LOG2_E
    rounded = exact.to(dtype)
    rest = (exact - rounded).nan_to_num(0.0)  # of an infinite rate there is none
    return filled(rounded, dtype), filled(rest, dtype)


def _cut(dim: int, *tensors: Tensor) -> tuple[Tensor, ...]:
    """The first `dim` channels."""
    return tuple(x[..., :dim].contiguous() for x in tensors)


@inlined
def _take(matrix, d, column):
    """One vector of channels of [S, D], the states one after the other."""
    width = per_vector(column)
    for s in range(len(matrix)):
        store(column, s * width, load(matrix[s], d))


@inlined
def _put(column, matrix, d):
    """The way back of `_take`."""
    width = per_vector(column)
    for s in range(len(matrix)):
        store(matrix[s], d, load(column, s * width))


@inlined
def _decay(dt_t, rate, rest, place):
    """exp(dt_t A), of A log2(e) in two parts."""
    return exp2(multiply(dt_t, load(rate, place)), multiply(dt_t, load(rest, place)))


@kernel
def _walk(u, dt, A2, A2_rest, B, C, h0, reset, y, final, checkpoints, cu, first, last, reverse):
    states, dim = A2.shape
    width = per_vector(A2)
    step = -1 if reverse else 1
    size = states * width
    rate, rest, h = np.empty(size, u.dtype), np.empty(size, u.dtype), np.empty(size, u.dtype)
    for n in range(first, last):
        for d in range(0, dim, width):
            _take(A2, d, rate)
            _take(A2_rest, d, rest)
            _take(h0[n], d, h)
            t = cu[n + 1] - 1 if reverse else cu[n]
            for i in range(cu[n + 1] - cu[n]):
                if i > 0 and i % CHUNK == 0:
                    _put(h, checkpoints[(cu[n] + i) // CHUNK - 1], d)
                if len(reset) > 0 and reset[t]:
                    h[:] = 0
                B_t, C_t, dt_t, y_t = B[t], C[t], load(dt[t], d), zeros(u)
                dtu_t = multiply(dt_t, load(u[t], d))
                for s in range(states):
                    place = s * width
                    decay = _decay(dt_t, rate, rest, place)
                    h_s = multiply_add(splat(B_t[s]), dtu_t, multiply(decay, load(h, place)))
                    store(h, place, h_s)
                    y_t = multiply_add(splat(C_t[s]), h_s, y_t)
                store(y[t], d, y_t)
                t += step
            _put(h, final[n], d)


@inlined
def _recompute(u, dt, rate, rest, B, reset, d, t, step, steps, zero, decay, h):
    """From the state h[0] on, the decays of each step and the state behind it."""
    width = per_vector(rate)
    for i in range(steps):
        before = zero if len(reset) > 0 and reset[t] else h[i]
        after, decay_t, B_t, dt_t = h[i + 1], decay[i], B[t], load(dt[t], d)
        dtu_t = multiply(dt_t, load(u[t], d))
        for s in range(len(B_t)):
            place = s * width
            decay_s = _decay(dt_t, rate, rest, place)
            store(decay_t, place, decay_s)
            h_s = multiply_add(splat(B_t[s]), dtu_t, multiply(decay_s, load(before, place)))
            store(after, place, h_s)
        t += step


@inlined
def _step_back(dy_t, u_t, dt_t, rate, B_t, C_t, decay, before, after, carry, dA, dB, dC, ln_2):
    """(du_t, ddt_t) of one step. carry is g_t without C_t dy_t before it and exp(dt_t A) g_t after
    it; to dA, dB and dC, [S] vectors of channels, is added."""
    width = per_vector(rate)
    dtu_t, q, through_rate = multiply(dt_t, u_t), zeros(rate), zeros(rate)
    for s in range(len(B_t)):
        place = s * width
        g = multiply_add(splat(C_t[s]), dy_t, load(carry, place))
        store(dC, place, multiply_add(load(after, place), dy_t, load(dC, place)))
        store(dB, place, multiply_add(g, dtu_t, load(dB, place)))
        q = multiply_add(splat(B_t[s]), g, q)
        g = multiply(g, load(decay, place))
        store(carry, place, g)
        through_decay = multiply(g, load(before, place))
        through_rate = multiply_add(through_decay, load(rate, place), through_rate)
        store(dA, place, multiply_add(through_decay, dt_t, load(dA, place)))
    return multiply(q, dt_t), multiply_add(splat(ln_2), through_rate, multiply(q, u_t))


@kernel
def _back(
    dy,
    dfinal,
    u,
    dt,
    A2,
    A2_rest,
    B,
    C,
    h0,
    checkpoints,
    reset,
    du,
    ddt,
    dA,
    dB,
    dC,
    dh0,
    cu,
    first,
    last,
    reverse,
):
    states, dim = A2.shape
    width, dtype = per_vector(A2), u.dtype
    step = -1 if reverse else 1
    size = states * width
    h, decay = np.empty((CHUNK + 1, size), dtype=dtype), np.empty((CHUNK, size), dtype=dtype)
    dB_is, dC_is = np.empty((CHUNK, size), dtype=dtype), np.empty((CHUNK, size), dtype=dtype)
    rate, rest = np.empty(size, dtype), np.empty(size, dtype)
    carry, dA_d = np.empty(size, dtype), np.empty(size, dtype)
    zero = np.zeros(size, dtype=dtype)
    ln_2 = np.full(1, _LN_2, dtype=dtype)[0]
    for n in range(first, last):
        dh0[n] = dfinal[n]
        dA[n] = 0
        start, length = cu[n], cu[n + 1] - cu[n]
        for begin in range((length - 1) // CHUNK * CHUNK, -1, -CHUNK):
            steps = min(CHUNK, length - begin)
            first_t = start + length - 1 - begin if reverse else start + begin
            dB_is[:] = 0
            dC_is[:] = 0
            for d in range(0, dim, width):
                _take(A2, d, rate)
                _take(A2_rest, d, rest)
                _take(dh0[n], d, carry)
                _take(dA[n], d, dA_d)
                _take(h0[n] if begin == 0 else checkpoints[(start + begin) // CHUNK - 1], d, h[0])
                _recompute(u, dt, rate, rest, B, reset, d, first_t, step, steps, zero, decay, h)
                for i in range(steps - 1, -1, -1):
                    t = first_t + i * step
                    forgets = len(reset) > 0 and reset[t]
                    before = zero if forgets else h[i]
                    dy_t, u_t, dt_t = load(dy[t], d), load(u[t], d), load(dt[t], d)
                    du_t, ddt_t = _step_back(
                        *(dy_t, u_t, dt_t, rate, B[t], C[t], decay[i], before, h[i + 1], carry),
                        *(dA_d, dB_is[i], dC_is[i], ln_2),
                    )
                    store(du[t], d, du_t)
                    store(ddt[t], d, ddt_t)
                    if forgets:
                        carry[:] = 0
                _put(carry, dh0[n], d)
                _put(dA_d, dA[n], d)
            for i in range(steps):
                t = first_t + i * step
                for s in range(states):
                    dB[t, s] = total(load(dB_is[i], s * width))
                    dC[t, s] = total(load(dC_is[i], s * width))
