"""rnn_scan on the CPU: the GRU and the LSTM walked over whole rows of channels.

The backward computes the gates again from u and the state before: cheaper than to write and read
them, since memory is what the walk waits for.
"""

import numpy as np
import torch
from torch import Tensor

from recsys.kernels.compiled import arrays, kernel, mask, over_sequences, sigmoid, tanh
from recsys.kernels.packing import check_cu_seqlens
from recsys.kernels.rnn_scan.cells import GRU, Cell


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
    total, (_, states, dim), dtype = len(u_TGD), h_NSD.shape, h_NSD.dtype
    y_TD = torch.empty((total, dim), dtype=dtype)
    rest_TRD = torch.empty((total, states - 1, dim), dtype=dtype)
    final_NSD = torch.empty(h_NSD.shape, dtype=dtype)
    over_sequences(
        _walk_gru if cell == GRU else _walk_lstm,
        *arrays(dtype, u_TGD, params_GD, h_NSD),
        *(mask(reset_T), y_TD.numpy(), rest_TRD.numpy(), final_NSD.numpy()),
        cu_seqlens=cu_seqlens.numpy(),
        options=(reverse,),
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
    dtype = h_NSD.dtype
    du_TGD, dh_NSD = torch.empty(u_TGD.shape, dtype=dtype), torch.empty(h_NSD.shape, dtype=dtype)
    dparams_NGD = torch.empty((len(h_NSD), *params_GD.shape), dtype=dtype)
    over_sequences(
        _back_gru if cell == GRU else _back_lstm,
        *arrays(dtype, dy_TD, dfinal_NSD, u_TGD, params_GD, h_NSD, y_TD, rest_TRD),
        *(mask(reset_T), du_TGD.numpy(), dparams_NGD.numpy(), dh_NSD.numpy()),
        cu_seqlens=cu_seqlens.numpy(),
        options=(reverse,),
    )
    # By sequence first and in their order, so that threads do not change the sum.
    return du_TGD, dparams_NGD.sum(dim=0), dh_NSD


@kernel
def _walk_gru(u, a, h0, reset, y, rest, final, cu, first, last, reverse):
    dim = y.shape[1]
    step = -1 if reverse else 1
    a_z, a_r, a_c = a[0], a[1], a[2]
    for n in range(first, last):
        # The state lives in the row that it ends in, and so in the fastest cache.
        h = final[n, 0]
        h[:] = h0[n, 0]
        t = cu[n + 1] - 1 if reverse else cu[n]
        for _ in range(cu[n + 1] - cu[n]):
            if len(reset) > 0 and reset[t]:
                h[:] = 0
            u_z, u_r, u_c, y_t = u[t, 0], u[t, 1], u[t, 2], y[t]
            for d in range(dim):
                h_d = h[d]
                z = sigmoid(a_z[d] * h_d + u_z[d])
                r = sigmoid(a_r[d] * h_d + u_r[d])
                c = tanh(a_c[d] * (r * h_d) + u_c[d])
                h_d += z * (c - h_d)
                h[d] = h_d
                y_t[d] = h_d
            t += step


@kernel
def _walk_lstm(u, a, h0, reset, y, rest, final, cu, first, last, reverse):
    dim = y.shape[1]
    step = -1 if reverse else 1
    a_i, a_f, a_g, a_o = a[0], a[1], a[2], a[3]
    for n in range(first, last):
        h, c = final[n, 0], final[n, 1]
        h[:] = h0[n, 0]
        c[:] = h0[n, 1]
        t = cu[n + 1] - 1 if reverse else cu[n]
        for _ in range(cu[n + 1] - cu[n]):
            if len(reset) > 0 and reset[t]:
                h[:] = 0
                c[:] = 0
            u_i, u_f, u_g, u_o, y_t, c_t = u[t, 0], u[t, 1], u[t, 2], u[t, 3], y[t], rest[t, 0]
            for d in range(dim):
                h_d = h[d]
                i = sigmoid(a_i[d] * h_d + u_i[d])
                f = sigmoid(a_f[d] * h_d + u_f[d])
                g = tanh(a_g[d] * h_d + u_g[d])
                o = sigmoid(a_o[d] * h_d + u_o[d])
                c_d = f * c[d] + i * g
                h_d = o * tanh(c_d)
                c[d] = c_d
                h[d] = h_d
                c_t[d] = c_d
                y_t[d] = h_d
            t += step


@kernel
def _back_gru(dy, dfinal, u, a, h0, y, rest, reset, du, da, dh0, cu, first, last, reverse):
    dim = y.shape[1]
    step = -1 if reverse else 1
    zero = np.zeros(dim, dtype=u.dtype)
    one = np.ones(1, dtype=u.dtype)[0]
    a_z, a_r, a_c = a[0], a[1], a[2]
    for n in range(first, last):
        carry, da_z, da_r, da_c = dh0[n, 0], da[n, 0], da[n, 1], da[n, 2]
        carry[:] = dfinal[n, 0]
        da[n] = 0
        t = cu[n] if reverse else cu[n + 1] - 1
        for left in range(cu[n + 1] - cu[n], 0, -1):
            forgets = len(reset) > 0 and reset[t]
            before = y[t - step] if left > 1 else h0[n, 0]
            if forgets:
                before = zero
            u_z, u_r, u_c, dy_t = u[t, 0], u[t, 1], u[t, 2], dy[t]
            du_z, du_r, du_c = du[t, 0], du[t, 1], du[t, 2]
            # Channels in the direction of the walk, so that what is fetched ahead comes next.
            for d in range(dim - 1, -1, -1):
                h = before[d]
                z = sigmoid(a_z[d] * h + u_z[d])
                r = sigmoid(a_r[d] * h + u_r[d])
                c = tanh(a_c[d] * (r * h) + u_c[d])
                dh = carry[d] + dy_t[d]
                dz = dh * (c - h) * z * (one - z)
                dc = dh * z * (one - c * c)
                d_rh = dc * a_c[d]
                dr = d_rh * h * r * (one - r)
                du_z[d] = dz
                du_r[d] = dr
                du_c[d] = dc
                da_z[d] += dz * h
                da_r[d] += dr * h
                da_c[d] += dc * (r * h)
                carry[d] = dh * (one - z) + dz * a_z[d] + dr * a_r[d] + d_rh * r
            if forgets:
                carry[:] = 0
            t -= step


@kernel
def _back_lstm(dy, dfinal, u, a, h0, y, rest, reset, du, da, dh0, cu, first, last, reverse):
    dim = y.shape[1]
    step = -1 if reverse else 1
    zero = np.zeros(dim, dtype=u.dtype)
    one = np.ones(1, dtype=u.dtype)[0]
    a_i, a_f, a_g, a_o = a[0], a[1], a[2], a[3]
    for n in range(first, last):
        carry_h, carry_c = dh0[n, 0], dh0[n, 1]
        da_i, da_f, da_g, da_o = da[n, 0], da[n, 1], da[n, 2], da[n, 3]
        carry_h[:] = dfinal[n, 0]
        carry_c[:] = dfinal[n, 1]
        da[n] = 0
        t = cu[n] if reverse else cu[n + 1] - 1
        for left in range(cu[n + 1] - cu[n], 0, -1):
            forgets = len(reset) > 0 and reset[t]
            before_h = y[t - step] if left > 1 else h0[n, 0]
            before_c = rest[t - step, 0] if left > 1 else h0[n, 1]
            if forgets:
                before_h, before_c = zero, zero
            u_i, u_f, u_g, u_o, dy_t, c_t = u[t, 0], u[t, 1], u[t, 2], u[t, 3], dy[t], rest[t, 0]
            du_i, du_f, du_g, du_o = du[t, 0], du[t, 1], du[t, 2], du[t, 3]
            for d in range(dim - 1, -1, -1):
                h = before_h[d]
                i = sigmoid(a_i[d] * h + u_i[d])
                f = sigmoid(a_f[d] * h + u_f[d])
                g = tanh(a_g[d] * h + u_g[d])
                o = sigmoid(a_o[d] * h + u_o[d])
                out = tanh(c_t[d])
                dh = carry_h[d] + dy_t[d]
                dc = carry_c[d] + dh * o * (one - out * out)
                du_i[d] = dc * g * i * (one - i)
                du_f[d] = dc * before_c[d] * f * (one - f)
                du_g[d] = dc * i * (one - g * g)
                du_o[d] = dh * out * o * (one - o)
                carry_c[d] = dc * f
            # A loop of its own: one with all these rows would not vectorise.
            for d in range(dim - 1, -1, -1):
                h, di, df, dg, do = before_h[d], du_i[d], du_f[d], du_g[d], du_o[d]
                da_i[d] += di * h
                da_f[d] += df * h
                da_g[d] += dg * h
                da_o[d] += do * h
                carry_h[d] = di * a_i[d] + df * a_f[d] + dg * a_g[d] + do * a_o[d]
            if forgets:
                carry_h[:] = 0
                carry_c[:] = 0
            t -= step
