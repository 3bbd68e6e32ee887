"""linear_attention on the CPU: one event after the other, a head's state in the fastest cache.

A walk, since it needs fewer operations than the matrix products of chunks. A sum over the rows of a
state runs over vectors, one over its columns does not; so the backward also walks the transposed
state: with S [K, P] go the sums over K (o, dv), with its transpose those over P (dq, dk).
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from recsys.kernels.compiled import arrays, inlined, kernel, over_sequences
from recsys.kernels.lanes import (
    LANES,
    add,
    filled,
    load,
    multiply,
    multiply_add,
    splat,
    store,
    total,
    whole,
    zeros,
)
from recsys.kernels.packing import check_cu_seqlens

EVERY = 32
"""Steps from one kept state to the next; the backward holds all between two in the second cache."""


def states_shape(
    q_THK: Tensor, k_THK: Tensor, v_THP: Tensor, num_sequences: int, chunk_size: int
) -> tuple[int, ...]:
    """Shape of the states that `forward` keeps; those of n begin at cu_seqlens[n] // EVERY + n."""
    total, heads, key_size = q_THK.shape
    return total // EVERY + num_sequences, heads, whole(key_size), whole(v_THP.shape[-1])


def forward(
    q_THK: Tensor,
    k_THK: Tensor,
    v_THP: Tensor,
    log_decay_TH: Tensor | None,
    beta_TH: Tensor | None,
    S_NHKP: Tensor,
    cu_seqlens: Tensor,
    reverse: bool,
    chunk_size: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """(o [T, H, P], final [N, H, K, P], kept states)."""
    check_cu_seqlens(cu_seqlens, len(v_THP))
    dtype = S_NHKP.dtype
    q, k, v = (filled(x, dtype) for x in (q_THK, k_THK, v_THP))
    S = _matrices(S_NHKP)
    shape = states_shape(q_THK, k_THK, v_THP, len(S_NHKP), chunk_size)
    states = torch.empty(shape, dtype=dtype)
    o, final = torch.empty(v.shape, dtype=dtype), torch.empty(S.shape, dtype=dtype)
    beta = () if beta_TH is None else (arrays(dtype, beta_TH)[0],)
    over_sequences(
        _walk if beta_TH is None else _walk_delta,
        *(q, k, v, _decays(log_decay_TH, v, dtype), *beta, S),
        *(o.numpy(), final.numpy(), states.flatten(2).numpy()),
        cu_seqlens=cu_seqlens.numpy(),
        options=(reverse,),
    )
    o_THP = o[..., : v_THP.shape[-1]]
    return (
        o_THP.to(v_THP.dtype).contiguous(),
        _cut(final, S_NHKP, states),
        states,
    )


def backward(
    do_THP: Tensor,
    dfinal_NHKP: Tensor,
    q_THK: Tensor,
    k_THK: Tensor,
    v_THP: Tensor,
    log_decay_TH: Tensor | None,
    beta_TH: Tensor | None,
    states: Tensor,
    cu_seqlens: Tensor,
    reverse: bool,
    chunk_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor]:
    """(dq, dk, dv, dlog_decay, dbeta, dS) of `forward`."""
    dtype = states.dtype
    do, q, k, v = (filled(x, dtype) for x in (do_THP, q_THK, k_THK, v_THP))
    dfinal = _matrices(dfinal_NHKP)
    decay = _decays(log_decay_TH, v, dtype)
    dq, dk, dv = (torch.empty(x.shape, dtype=dtype) for x in (q, k, v))
    ddecay, dbeta = (torch.empty(decay.shape, dtype=dtype) for _ in range(2))
    dS = torch.empty(dfinal.shape, dtype=dtype)
    over_sequences(
        _back if beta_TH is None else _back_delta,
        *(do, dfinal, q, k, v, decay),
        *(() if beta_TH is None else (arrays(dtype, beta_TH)[0], dbeta.numpy())),
        *(states.flatten(2).contiguous().numpy(), dq.numpy(), dk.numpy(), dv.numpy()),
        *(ddecay.numpy(), dS.numpy()),
        cu_seqlens=cu_seqlens.numpy(),
        options=(reverse,),
    )
    dq_THK, dk_THK, dv_THP = (
        gradient[..., : x.shape[-1]].to(x.dtype).contiguous()
        for gradient, x in ((dq, q_THK), (dk, k_THK), (dv, v_THP))
    )
    dlog_decay = ddecay * torch.from_numpy(decay)
    return (
        *(dq_THK, dk_THK, dv_THP),
        None if log_decay_TH is None else dlog_decay.to(log_decay_TH.dtype),
        None if beta_TH is None else dbeta.to(beta_TH.dtype),
        _cut(dS, dfinal_NHKP, states),
    )


def _matrices(S_NHKP: Tensor) -> np.ndarray:
    """[N, H, K P] with K and P filled up by zeros."""
    key_size, value_size = S_NHKP.shape[2:]
    widths = (0, whole(value_size) - value_size, 0, whole(key_size) - key_size)
    return arrays(S_NHKP.dtype, pad(S_NHKP, widths).flatten(2))[0]


def _cut(S: Tensor, like_NHKP: Tensor, states: Tensor) -> Tensor:
    """The inverse of `_matrices`."""
    key_size, value_size = like_NHKP.shape[2:]
    return S.unflatten(2, states.shape[2:])[:, :, :key_size, :value_size].contiguous()


def _decays(log_decay_TH: Tensor | None, v: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    if log_decay_TH is None:
        return np.ones(v.shape[:2], v.dtype)
    # By torch, whose exp of -inf is 0; that of `compiled` is not.
    return arrays(dtype, log_decay_TH.to(dtype).exp())[0]


# Parts of a step, on a state M of rows a and columns b that lies flat in memory. Four rows at a
# time: sums of their own let the machine begin an addition before the last one has ended.


@inlined
def _push_read(M, into, decay, a, b, x, y):
    """into = decay M + a b'; y = into' x."""
    size = len(b)
    decays = splat(decay)
    zero = zeros(M)
    for column in range(0, size, LANES):
        b_c = load(b, column)
        y0, y1, y2, y3 = zero, zero, zero, zero
        place = column
        for row in range(0, len(a), 4):
            m0 = multiply_add(decays, load(M, place), multiply(splat(a[row]), b_c))
            m1 = multiply_add(decays, load(M, place + size), multiply(splat(a[row + 1]), b_c))
            m2 = multiply_add(decays, load(M, place + 2 * size), multiply(splat(a[row + 2]), b_c))
            m3 = multiply_add(decays, load(M, place + 3 * size), multiply(splat(a[row + 3]), b_c))
            store(into, place, m0)
            store(into, place + size, m1)
            store(into, place + 2 * size, m2)
            store(into, place + 3 * size, m3)
            y0 = multiply_add(splat(x[row]), m0, y0)
            y1 = multiply_add(splat(x[row + 1]), m1, y1)
            y2 = multiply_add(splat(x[row + 2]), m2, y2)
            y3 = multiply_add(splat(x[row + 3]), m3, y3)
            place += 4 * size
        store(y, column, add(add(y0, y1), add(y2, y3)))


@inlined
def _read(M, x, y):
    """y = M' x."""
    size = len(y)
    zero = zeros(M)
    for column in range(0, size, LANES):
        y0, y1, y2, y3 = zero, zero, zero, zero
        place = column
        for row in range(0, len(x), 4):
            y0 = multiply_add(splat(x[row]), load(M, place), y0)
            y1 = multiply_add(splat(x[row + 1]), load(M, place + size), y1)
            y2 = multiply_add(splat(x[row + 2]), load(M, place + 2 * size), y2)
            y3 = multiply_add(splat(x[row + 3]), load(M, place + 3 * size), y3)
            place += 4 * size
        store(y, column, add(add(y0, y1), add(y2, y3)))


@inlined
def _push(M, decay, a, b):
    """M = decay M + a b'."""
    size = len(b)
    decays = splat(decay)
    for column in range(0, size, LANES):
        b_c = load(b, column)
        place = column
        for row in range(len(a)):
            product = multiply(splat(a[row]), b_c)
            store(M, place, multiply_add(decays, load(M, place), product))
            place += size


@inlined
def _transpose(M, rows, into):
    columns = len(M) // rows
    for row in range(rows):
        for column in range(columns):
            into[column * rows + row] = M[row * columns + column]


@inlined
def _key_gradients(G, S, decay, do, q, v, dk):
    """G = decay G + do q'; dk = G' v; the sum of G S, S being the state before the event."""
    size = len(q)
    zero = zeros(G)
    decays, s0, s1 = splat(decay), zero, zero
    for column in range(0, size, LANES):
        q_c, dk0, dk1 = load(q, column), zero, zero
        place = column
        for row in range(0, len(v), 2):
            g0 = multiply_add(decays, load(G, place), multiply(splat(do[row]), q_c))
            g1 = multiply_add(decays, load(G, place + size), multiply(splat(do[row + 1]), q_c))
            store(G, place, g0)
            store(G, place + size, g1)
            dk0 = multiply_add(splat(v[row]), g0, dk0)
            dk1 = multiply_add(splat(v[row + 1]), g1, dk1)
            s0 = multiply_add(g0, load(S, place), s0)
            s1 = multiply_add(g1, load(S, place + size), s1)
            place += 2 * size
        store(dk, column, add(dk0, dk1))
    return total(add(s0, s1))


@inlined
def _delta_key_gradients(G, S, decay, do, q, k, u, de, decay_t, dk):
    """G = decay G + do q'; dk = G' u - decay_t S' de; G -= de k'; the sum of G S."""
    size = len(q)
    zero = zeros(G)
    decays, s0, s1 = splat(decay), zero, zero
    for column in range(0, size, LANES):
        q_c, k_c, dk0, dk1 = load(q, column), load(k, column), zero, zero
        place = column
        for row in range(0, len(u), 2):
            g0 = multiply_add(decays, load(G, place), multiply(splat(do[row]), q_c))
            g1 = multiply_add(decays, load(G, place + size), multiply(splat(do[row + 1]), q_c))
            before0, before1 = load(S, place), load(S, place + size)
            dk0 = multiply_add(splat(u[row]), g0, dk0)
            dk1 = multiply_add(splat(u[row + 1]), g1, dk1)
            dk0 = multiply_add(splat(-decay_t * de[row]), before0, dk0)
            dk1 = multiply_add(splat(-decay_t * de[row + 1]), before1, dk1)
            g0 = multiply_add(splat(-de[row]), k_c, g0)
            g1 = multiply_add(splat(-de[row + 1]), k_c, g1)
            store(G, place, g0)
            store(G, place + size, g1)
            s0 = multiply_add(g0, before0, s0)
            s1 = multiply_add(g1, before1, s1)
            place += 2 * size
        store(dk, column, add(dk0, dk1))
    return total(add(s0, s1))


@inlined
def _error(S, decay, k, v, e):
    """e = v - decay S' k, what the state does not yet say of k."""
    _read(S, k, e)
    for p in range(len(v)):
        e[p] = v[p] - decay * e[p]


# Kernels for the plain rule and for the delta rule each.


@kernel
def _walk(q, k, v, decay, S0, o, final, states, cu, first, last, reverse):
    step = -1 if reverse else 1
    for n in range(first, last):
        for h in range(q.shape[1]):
            S = final[n, h]
            S[:] = S0[n, h]
            t = cu[n + 1] - 1 if reverse else cu[n]
            for i in range(cu[n + 1] - cu[n]):
                if i % EVERY == 0:
                    states[cu[n] // EVERY + n + i // EVERY, h] = S
                _push_read(S, S, decay[t, h], k[t, h], v[t, h], q[t, h], o[t, h])
                t += step


@kernel
def _walk_delta(q, k, v, decay, beta, S0, o, final, states, cu, first, last, reverse):
    step = -1 if reverse else 1
    u = np.empty(v.shape[2], v.dtype)
    for n in range(first, last):
        for h in range(q.shape[1]):
            S = final[n, h]
            S[:] = S0[n, h]
            t = cu[n + 1] - 1 if reverse else cu[n]
            for i in range(cu[n + 1] - cu[n]):
                if i % EVERY == 0:
                    states[cu[n] // EVERY + n + i // EVERY, h] = S
                _error(S, decay[t, h], k[t, h], v[t, h], u)
                for p in range(len(u)):
                    u[p] *= beta[t, h]
                _push_read(S, S, decay[t, h], k[t, h], u, q[t, h], o[t, h])
                t += step


@kernel
def _back(do, dfinal, q, k, v, decay, states, dq, dk, dv, ddecay, dS0, cu, first, last, reverse):
    """G_t = d_{t+1} G_{t+1} + q_t do_t': dq = S_t do, dk = G_t v, dv = G_t' k, dd = sum(G S_{t-1}).

    `later` is d_{t+1}. Transposed states before each event of a stretch lie in `before`.
    """
    keys = q.shape[2]
    step = -1 if reverse else 1
    before = np.empty((EVERY + 1, keys * v.shape[2]), q.dtype)
    turned = np.empty(keys * v.shape[2], q.dtype)
    for n in range(first, last):
        start, length = cu[n], cu[n + 1] - cu[n]
        for h in range(q.shape[1]):
            G = dS0[n, h]
            G[:] = dfinal[n, h]
            _transpose(G, keys, turned)
            later = np.ones(1, q.dtype)[0]
            for stretch in range((length + EVERY - 1) // EVERY - 1, -1, -1):
                steps = min(EVERY, length - stretch * EVERY)
                _transpose(states[start // EVERY + n + stretch, h], keys, before[0])
                i = stretch * EVERY
                t = cu[n + 1] - 1 - i if reverse else start + i
                for j in range(steps):
                    d, v_t, k_t, do_t = decay[t, h], v[t, h], k[t, h], do[t, h]
                    _push_read(before[j], before[j + 1], d, v_t, k_t, do_t, dq[t, h])
                    t += step
                for j in range(steps - 1, -1, -1):
                    t -= step
                    _push_read(G, G, later, q[t, h], do[t, h], k[t, h], dv[t, h])
                    ddecay[t, h] = _key_gradients(
                        turned, before[j], later, do[t, h], q[t, h], v[t, h], dk[t, h]
                    )
                    later = decay[t, h]
            for place in range(len(G)):
                G[place] *= later


@kernel
def _back_delta(
    do,
    dfinal,
    q,
    k,
    v,
    decay,
    beta,
    dbeta,
    states,
    dq,
    dk,
    dv,
    ddecay,
    dS0,
    cu,
    first,
    last,
    reverse,
):
    """As `_back`, with u_t = beta_t e_t in place of v_t, e_t = v_t - d_t S_{t-1}' k_t.

    du = G' k, de = dv = beta du, dbeta = du e; e also depends on k, d and S: dk -= d S_{t-1} de,
    and behind the event G -= k de'.
    """
    keys, values = q.shape[2], v.shape[2]
    step = -1 if reverse else 1
    before = np.empty((EVERY + 1, keys * values), q.dtype)
    turned = np.empty(keys * values, q.dtype)
    S = np.empty(keys * values, q.dtype)
    e, u = np.empty((EVERY, values), q.dtype), np.empty((EVERY, values), q.dtype)
    minus_de = np.empty(values, q.dtype)
    one = np.ones(1, q.dtype)[0]
    for n in range(first, last):
        start, length = cu[n], cu[n + 1] - cu[n]
        for h in range(q.shape[1]):
            G = dS0[n, h]
            G[:] = dfinal[n, h]
            _transpose(G, keys, turned)
            later = one
            for stretch in range((length + EVERY - 1) // EVERY - 1, -1, -1):
                steps = min(EVERY, length - stretch * EVERY)
                S[:] = states[start // EVERY + n + stretch, h]
                _transpose(S, keys, before[0])
                i = stretch * EVERY
                t = cu[n + 1] - 1 - i if reverse else start + i
                for j in range(steps):
                    d, k_t, u_j = decay[t, h], k[t, h], u[j]
                    _error(S, d, k_t, v[t, h], e[j])
                    for p in range(values):
                        u_j[p] = beta[t, h] * e[j, p]
                    _push(S, d, k_t, u_j)
                    _push_read(before[j], before[j + 1], d, u_j, k_t, do[t, h], dq[t, h])
                    t += step
                for j in range(steps - 1, -1, -1):
                    t -= step
                    du, do_t, q_t, k_t = dv[t, h], do[t, h], q[t, h], k[t, h]
                    _push_read(G, G, later, q_t, do_t, k_t, du)
                    dbeta_t = one - one
                    for p in range(values):
                        dbeta_t += du[p] * e[j, p]
                        du[p] *= beta[t, h]
                        minus_de[p] = -du[p]
                    dbeta[t, h] = dbeta_t
                    _push(G, one, k_t, minus_de)
                    ddecay[t, h] = _delta_key_gradients(
                        turned, before[j], later, do_t, q_t, k_t, u[j], du, decay[t, h], dk[t, h]
                    )
                    later = decay[t, h]
            for place in range(len(G)):
                G[place] *= later
