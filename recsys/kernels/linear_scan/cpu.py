"""linear_scan on the CPU: whole rows of channels, one step after the other, at memory speed.

A walk, since on a CPU every parallel scan is slower: it moves each number several times.
"""

import numpy as np
import torch
from torch import Tensor

from recsys.kernels.compiled import kernel, over_sequences
from recsys.kernels.packing import check_cu_seqlens

_NO_RESET = np.empty(0, dtype=np.bool_)


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
    a, b, h = _arrays(h_ND.dtype, a_TG, b_TD, h_ND)
    y_TD = torch.empty(b_TD.shape, dtype=h_ND.dtype)
    final_ND = torch.empty_like(h_ND, memory_format=torch.contiguous_format)
    over_sequences(
        _walk_groups if a.shape[1] != b.shape[1] else _walk,
        *(a, b, h, _reset(reset_T), y_TD.numpy(), final_ND.numpy()),
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
    dy, dfinal, a, y, h = _arrays(dtype, dy_TD, dfinal_ND, a_TG.resolve_conj(), y_TD, h_ND)
    constant = len(a_TG) == 1 != len(y_TD)
    da = torch.empty((len(h_ND) if constant else len(y_TD), a.shape[1]), dtype=dtype)
    db_TD, dh_ND = torch.empty(y_TD.shape, dtype=dtype), torch.empty(h_ND.shape, dtype=dtype)
    grouped = a.shape[1] != y.shape[1]
    over_sequences(
        _back_groups if grouped else _back_constant if constant else _back,
        *(dy, dfinal, a, y, h, _reset(reset_T), da.numpy(), db_TD.numpy(), dh_ND.numpy()),
        cu_seqlens=cu_seqlens.numpy(),
        options=(reverse,),
    )
    # By sequence first and in their order, so that threads do not change the sum.
    da_TG = da.sum(dim=0, keepdim=True) if constant else da
    return da_TG.to(a_TG.dtype), db_TD.to(y_TD.dtype), dh_ND


def _arrays(dtype: torch.dtype, *tensors: Tensor) -> list[np.ndarray]:
    return [tensor.to(dtype).contiguous().numpy() for tensor in tensors]


def _reset(reset_T: Tensor | None) -> np.ndarray:
    return _NO_RESET if reset_T is None else reset_T.numpy()


# Three kernels each way, for a decay of every channel, of a group of channels, and (backward) one
# that is the same at every step: a choice inside the inner loops would cost half their speed.


@kernel
def _walk(a, b, h0, reset, y, final, cu, first, last, reverse):  # type: ignore[no-untyped-def]
    dim = b.shape[1]
    step = -1 if reverse else 1
    moves = 0 if len(a) == 1 else 1
    for n in range(first, last):
        # The state lives in the row that it ends in, and so in the fastest cache.
        h = final[n]
        for d in range(dim):
            h[d] = h0[n, d]
        t = cu[n + 1] - 1 if reverse else cu[n]
        for _ in range(cu[n + 1] - cu[n]):
            if len(reset) > 0 and reset[t]:
                h[:] = 0
            a_t, b_t, y_t = a[t * moves], b[t], y[t]
            for d in range(dim):
                h_d = a_t[d] * h[d] + b_t[d]
                h[d] = h_d
                y_t[d] = h_d
            t += step


@kernel
def _walk_groups(  # type: ignore[no-untyped-def]
    a, b, h0, reset, y, final, cu, first, last, reverse
):
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
def _back(  # type: ignore[no-untyped-def]
    dy, dfinal, a, y, h0, reset, da, db, dh0, cu, first, last, reverse
):
    dim = y.shape[1]
    step = -1 if reverse else 1
    zero = np.zeros(dim, dtype=y.dtype)
    for n in range(first, last):
        carry = dh0[n]
        for d in range(dim):
            carry[d] = dfinal[n, d]
        t = cu[n] if reverse else cu[n + 1] - 1
        for left in range(cu[n + 1] - cu[n], 0, -1):
            previous = y[t - step] if left > 1 else h0[n]
            if len(reset) > 0 and reset[t]:
                previous = zero
            a_t, dy_t, da_t, db_t = a[t], dy[t], da[t], db[t]
            for d in range(dim):
                g = carry[d] + dy_t[d]
                db_t[d] = g
                da_t[d] = g * np.conj(previous[d])
                carry[d] = np.conj(a_t[d]) * g
            if len(reset) > 0 and reset[t]:
                carry[:] = 0
            t -= step


@kernel
def _back_constant(  # type: ignore[no-untyped-def]
    dy, dfinal, a, y, h0, reset, da, db, dh0, cu, first, last, reverse
):
    dim = y.shape[1]
    step = -1 if reverse else 1
    zero = np.zeros(dim, dtype=y.dtype)
    for n in range(first, last):
        carry, a_0, da_n = dh0[n], a[0], da[n]
        for d in range(dim):
            carry[d] = dfinal[n, d]
            da_n[d] = 0
        t = cu[n] if reverse else cu[n + 1] - 1
        for left in range(cu[n + 1] - cu[n], 0, -1):
            previous = y[t - step] if left > 1 else h0[n]
            if len(reset) > 0 and reset[t]:
                previous = zero
            dy_t, db_t = dy[t], db[t]
            for d in range(dim):
                g = carry[d] + dy_t[d]
                db_t[d] = g
                da_n[d] += g * np.conj(previous[d])
                carry[d] = np.conj(a_0[d]) * g
            if len(reset) > 0 and reset[t]:
                carry[:] = 0
            t -= step


@kernel
def _back_groups(  # type: ignore[no-untyped-def]
    dy, dfinal, a, y, h0, reset, da, db, dh0, cu, first, last, reverse
):
    groups = a.shape[1]
    size = y.shape[1] // groups
    step = -1 if reverse else 1
    zero = np.zeros(y.shape[1], dtype=y.dtype)
    for n in range(first, last):
        carry = dh0[n]
        carry[:] = dfinal[n]
        t = cu[n] if reverse else cu[n + 1] - 1
        for left in range(cu[n + 1] - cu[n], 0, -1):
            previous = y[t - step] if left > 1 else h0[n]
            if len(reset) > 0 and reset[t]:
                previous = zero
            dy_t, db_t = dy[t], db[t]
            for k in range(groups):
                decay, total = np.conj(a[t, k]), zero[0]
                for d in range(k * size, (k + 1) * size):
                    g = carry[d] + dy_t[d]
                    db_t[d] = g
                    total += g * np.conj(previous[d])
                    carry[d] = decay * g
                da[t, k] = total
            if len(reset) > 0 and reset[t]:
                carry[:] = 0
            t -= step
