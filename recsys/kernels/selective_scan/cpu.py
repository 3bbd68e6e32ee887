"""selective_scan on the CPU: rows of channels, one state after the other, one step at a time.

A state [S, D] stays in the fastest cache; sums over s are sums of whole rows.
"""

import numpy as np
import torch
from torch import Tensor

from recsys.kernels.compiled import arrays, exp, kernel, mask, over_sequences, summing_kernel
from recsys.kernels.packing import check_cu_seqlens
from recsys.kernels.selective_scan.checkpoints import CHUNK, num_checkpoints


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
    dtype = h_NSD.dtype
    y_TD = torch.empty(u_TD.shape, dtype=dtype)
    final_NSD = torch.empty(h_NSD.shape, dtype=dtype)
    checkpoints_CSD = torch.empty((num_checkpoints(len(u_TD)), *h_NSD.shape[1:]), dtype=dtype)
    over_sequences(
        _walk,
        *arrays(dtype, u_TD, dt_TD, A_SD, B_TS, C_TS, h_NSD),
        *(mask(reset_T), y_TD.numpy(), final_NSD.numpy(), checkpoints_CSD.numpy()),
        cu_seqlens=cu_seqlens.numpy(),
        options=(reverse,),
    )
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
    dtype = h_NSD.dtype
    shapes = (u_TD.shape, u_TD.shape, h_NSD.shape, B_TS.shape, C_TS.shape, h_NSD.shape)
    gradients = [torch.empty(shape, dtype=dtype) for shape in shapes]
    over_sequences(
        _back,
        *arrays(dtype, dy_TD, dfinal_NSD, u_TD, dt_TD, A_SD, B_TS, C_TS, h_NSD),
        *(checkpoints_CSD.numpy(), mask(reset_T)),
        *(gradient.numpy() for gradient in gradients),
        cu_seqlens=cu_seqlens.numpy(),
        options=(reverse,),
    )
    du_TD, ddt_TD, dA_NSD, dB_TS, dC_TS, dh_NSD = gradients
    # By sequence first and in their order, so that threads do not change the sum.
    return du_TD, ddt_TD, dA_NSD.sum(dim=0), dB_TS, dC_TS, dh_NSD


@kernel
def _walk(u, dt, A, B, C, h0, reset, y, final, checkpoints, cu, first, last, reverse):
    states, dim = A.shape
    step = -1 if reverse else 1
    dtu = np.empty(dim, dtype=u.dtype)
    for n in range(first, last):
        h = final[n]
        h[:] = h0[n]
        t = cu[n + 1] - 1 if reverse else cu[n]
        for i in range(cu[n + 1] - cu[n]):
            if i > 0 and i % CHUNK == 0:
                checkpoints[(cu[n] + i) // CHUNK - 1] = h
            if len(reset) > 0 and reset[t]:
                h[:] = 0
            u_t, dt_t, y_t = u[t], dt[t], y[t]
            for d in range(dim):
                dtu[d] = dt_t[d] * u_t[d]
                y_t[d] = 0
            for s in range(states):
                A_s, h_s, B_ts, C_ts = A[s], h[s], B[t, s], C[t, s]
                for d in range(dim):
                    h_d = exp(dt_t[d] * A_s[d]) * h_s[d] + dtu[d] * B_ts
                    h_s[d] = h_d
                    y_t[d] += C_ts * h_d
            t += step


@kernel
def _recompute(dt, dtu, A, B, reset, t, step, zero, decays, h):
    """From the state h[0] on, the decays of each step and the state behind it."""
    states, dim = A.shape
    for i in range(len(dtu)):
        before = zero if len(reset) > 0 and reset[t] else h[i]
        dt_t, dtu_t = dt[t], dtu[i]
        for s in range(states):
            A_s, B_ts, before_s = A[s], B[t, s], before[s]
            decay_s, after_s = decays[i, s], h[i + 1, s]
            for d in range(dim):
                decay = exp(dt_t[d] * A_s[d])
                decay_s[d] = decay
                after_s[d] = decay * before_s[d] + dtu_t[d] * B_ts
        t += step


@summing_kernel
def _back_step(
    dy_t, dt_t, dtu_t, A, B_t, C_t, decay, before, after, carry, q, ddt_t, dA, dB_t, dC_t, nothing
):
    """One step back. carry is g_t without C_t dy_t before it and exp(dt_t A) g_t after it."""
    states, dim = A.shape
    for s in range(states):
        A_s, B_ts, C_ts = A[s], B_t[s], C_t[s]
        decay_s, before_s, after_s, carry_s, dA_s = decay[s], before[s], after[s], carry[s], dA[s]
        dB_ts = dC_ts = nothing
        for d in range(dim):
            g = carry_s[d] + C_ts * dy_t[d]
            dC_ts += after_s[d] * dy_t[d]
            dB_ts += g * dtu_t[d]
            q[d] += g * B_ts
            g *= decay_s[d]
            carry_s[d] = g
            through_decay = g * before_s[d]
            ddt_t[d] += through_decay * A_s[d]
            dA_s[d] += through_decay * dt_t[d]
        dB_t[s], dC_t[s] = dB_ts, dC_ts


@kernel
def _back(
    dy,
    dfinal,
    u,
    dt,
    A,
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
    states, dim = A.shape
    step = -1 if reverse else 1
    h = np.empty((CHUNK + 1, states, dim), dtype=u.dtype)
    decays = np.empty((CHUNK, states, dim), dtype=u.dtype)
    dtu = np.empty((CHUNK, dim), dtype=u.dtype)
    zero = np.zeros((states, dim), dtype=u.dtype)
    q = np.empty(dim, dtype=u.dtype)
    nothing = np.zeros(1, dtype=u.dtype)[0]
    for n in range(first, last):
        carry, dA_n = dh0[n], dA[n]
        carry[:] = dfinal[n]
        dA_n[:] = 0
        length = cu[n + 1] - cu[n]
        for begin in range((length - 1) // CHUNK * CHUNK, -1, -CHUNK):
            steps = min(CHUNK, length - begin)
            t = cu[n + 1] - 1 - begin if reverse else cu[n] + begin
            for i in range(steps):
                u_t, dt_t, dtu_t = u[t + i * step], dt[t + i * step], dtu[i]
                for d in range(dim):
                    dtu_t[d] = dt_t[d] * u_t[d]
            h[0] = h0[n] if begin == 0 else checkpoints[(cu[n] + begin) // CHUNK - 1]
            _recompute(dt, dtu[:steps], A, B, reset, t, step, zero, decays, h)
            t += (steps - 1) * step
            for i in range(steps - 1, -1, -1):
                forgets = len(reset) > 0 and reset[t]
                before = zero if forgets else h[i]
                u_t, dt_t, du_t, ddt_t = u[t], dt[t], du[t], ddt[t]
                q[:] = 0
                ddt_t[:] = 0
                _back_step(
                    *(dy[t], dt_t, dtu[i], A, B[t], C[t], decays[i], before, h[i + 1]),
                    *(carry, q, ddt_t, dA_n, dB[t], dC[t], nothing),
                )
                for d in range(dim):
                    du_t[d] = q[d] * dt_t[d]
                    ddt_t[d] += q[d] * u_t[d]
                if forgets:
                    carry[:] = 0
                t -= step
