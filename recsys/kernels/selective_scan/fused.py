"""selective_scan in Triton: a program walks one sequence for BLOCK_D neighbouring channels.

A thread holds 16 states of its channel, or 8 beside a second thread, so that a step of the walk
needs next to no exchange between threads; more than 16 states spread over more warps. Only the
gradients of B and C are sums over channels: within a program, and then, in a fixed order, over
programs. The backward goes from the end in chunks of CHUNK steps: a first walk leaves the state
before every second step of the chunk in memory, and from these the states are computed once more,
into registers. Times are counted in walking order, i = 0, 1, …; `t` is where that lies in memory.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from recsys.kernels.selective_scan.checkpoints import CHUNK, num_checkpoints

NARROW, WIDE, BACKWARD = (32, 8), (16, 2), (16, 2)
"""(channels of a program, steps whose inputs, and in the backward whose states, are in registers at
a time) of the forward up to 16 states and above, and of the backward: as many as 255 registers
hold without a stack."""
_LOG2_E, _LN_2 = tl.constexpr(1 / math.log(2)), tl.constexpr(math.log(2))


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
    inputs = [x.contiguous() for x in (u_TD, dt_TD, A_SD.float(), B_TS, C_TS, h_NSD)]
    y_TD, final_NSD = torch.empty_like(inputs[0]), torch.empty_like(inputs[-1])
    checkpoints_CSD = h_NSD.new_empty((num_checkpoints(len(u_TD)), *h_NSD.shape[1:]))
    grid, constants = _layout(h_NSD, reset_T, reverse, NARROW if len(A_SD) <= 16 else WIDE)
    if 0 not in grid:
        _forward[grid](
            *(*inputs, cu_seqlens, reset_T, y_TD, final_NSD, checkpoints_CSD),
            *A_SD.shape,
            **constants,
        )
    return y_TD, final_NSD, checkpoints_CSD


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
    inputs = [x.contiguous() for x in (u_TD, dt_TD, A_SD.float(), B_TS, C_TS, h_NSD)]
    du_TD, ddt_TD = torch.empty_like(inputs[0]), torch.empty_like(inputs[1])
    dA_NSD, dh_NSD = torch.empty_like(inputs[-1]), torch.empty_like(inputs[-1])
    grid, constants = _layout(h_NSD, reset_T, reverse, BACKWARD)
    # Of each block of channels its share.
    dB_XTS, dC_XTS = h_NSD.new_empty((2, grid[1], *B_TS.shape)).unbind(0)
    width = CHUNK // constants["STEPS"] * constants["BLOCK_S"] * constants["BLOCK_D"]
    scratch = h_NSD.new_empty((*grid, width))
    if 0 not in grid:
        _backward[grid](
            *(dy_TD, dfinal_NSD, *inputs, checkpoints_CSD, cu_seqlens, reset_T, scratch),
            *(du_TD, ddt_TD, dA_NSD, dB_XTS, dC_XTS, dh_NSD, *A_SD.shape, len(u_TD), width),
            **constants,
        )
    return du_TD, ddt_TD, dA_NSD.sum(0), dB_XTS.sum(0), dC_XTS.sum(0), dh_NSD


def _layout(
    h_NSD: Tensor, reset_T: Tensor | None, reverse: bool, block: tuple[int, int]
) -> tuple[tuple[int, int], dict[str, int]]:
    """(the grid, what a kernel is compiled for)."""
    num_sequences, states, dim = h_NSD.shape
    block_d, steps = block
    block_s = triton.next_power_of_2(max(1, states))
    constants = {
        "REVERSE": reverse,
        "RESET": reset_T is not None,
        "CHUNK": CHUNK,
        "STEPS": steps,
        "BLOCK_S": block_s,
        "BLOCK_D": block_d,
        "num_warps": max(1, block_s // 16),
        "enable_fp_fusion": True,
    }
    return (num_sequences, triton.cdiv(dim, block_d)), constants


@triton.jit
def _with(tiles, tile):
    return tiles + (tile,)  # noqa: RUF005 (Triton has no star in a tuple)


@triton.jit
def _row(pointer, places, mask, KEEP: tl.constexpr = ""):
    """float32 numbers at some places, 0 where the mask is False."""
    x = tl.load(pointer + places, mask=mask, other=0.0, eviction_policy=KEEP)
    return x.to(tl.float32)


@triton.jit
def _kept(reset, k, d, real):
    """[1, BLOCK_D] bool: step k forgets nothing."""
    return (tl.load(reset + k + (d - d), mask=real, other=0) == 0)[None, :]


@triton.jit
def _next(h, A2, u_t, dt_t, B_t):
    """h_t of h_{t-1}, with A2 = A log2(e)."""
    return tl.exp2(dt_t[None, :] * A2) * h + (dt_t * u_t)[None, :] * B_t[:, None]


@triton.jit
def _states_of(states, dim, d, s, start, start_pointer):
    """(places [BLOCK_S, BLOCK_D] in a state [S, D], which of them there are).

    As if they depended on what is in memory: so they are computed where they are wanted, instead
    of once and held in 32 registers through a walk.
    """
    dim += (tl.load(start_pointer) - start).to(tl.int32)
    return s[:, None] * dim + d[None, :], (s < states)[:, None] & (d < dim)[None, :]


@triton.jit(do_not_specialize=["dim", "states"])
def _forward(
    u,
    dt,
    A,
    B,
    C,
    h0,
    cu_seqlens,
    reset,
    y,
    final,
    checkpoints,
    states,
    dim,
    REVERSE: tl.constexpr,
    RESET: tl.constexpr,
    CHUNK: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    s = tl.arange(0, BLOCK_S)
    start, end = tl.load(cu_seqlens + n), tl.load(cu_seqlens + n + 1)
    length = end - start
    places, inside = _states_of(states, dim, d, s, start, cu_seqlens + n)
    way: tl.constexpr = -1 if REVERSE else 1
    A2 = tl.load(A + places, mask=inside, other=0.0) * _LOG2_E
    h = tl.load(h0 + n * states * dim + places, mask=inside, other=0.0)
    for begin in range(0, length, CHUNK):
        places, inside = _states_of(states, dim, d, s, start, cu_seqlens + n)
        place = ((start + begin) // CHUNK - 1) * states * dim
        tl.store(checkpoints + place + places, h, mask=inside & (begin + places - places > 0))
        for first in range(begin, tl.minimum(begin + CHUNK, length), STEPS):
            # Rows lie at small offsets from that of the first step: int32, one register each.
            t = end - 1 - first if REVERSE else start + first
            left = tl.minimum(length - first, STEPS).to(tl.int32)
            t_dim, t_states = t * dim, t * states
            # All loads of some steps first, so that they are under way together.
            us, dts = (), ()
            for k in tl.static_range(STEPS):
                real = (d < dim) & (k + (d - d) < left)
                us = _with(us, _row(u + t_dim, d + way * k * dim, real))
                dts = _with(dts, _row(dt + t_dim, d + way * k * dim, real))
            for k in tl.static_range(STEPS):
                real = (d < dim) & (k + (d - d) < left)
                real_s = (s < states) & (k + (s - s) < left)
                B_t = _row(B + t_states, s + way * k * states, real_s)
                C_t = _row(C + t_states, s + way * k * states, real_s)
                if RESET:
                    h = tl.where(_kept(reset + t, way * k, d, real), h, 0.0)
                h = _next(h, A2, us[k], dts[k], B_t)
                y_t = tl.sum(h * C_t[:, None], axis=0)
                tl.store(y + t_dim + (d + way * k * dim), y_t, mask=real)
    places, inside = _states_of(states, dim, d, s, start, cu_seqlens + n)
    tl.store(final + n * states * dim + places, h, mask=inside)


@triton.jit(do_not_specialize=["dim", "states", "total", "width"])
def _backward(
    dy,
    dfinal,
    u,
    dt,
    A,
    B,
    C,
    h0,
    checkpoints,
    cu_seqlens,
    reset,
    scratch,
    du,
    ddt,
    dA,
    dB,
    dC,
    dh,
    states,
    dim,
    total,
    width,
    REVERSE: tl.constexpr,
    RESET: tl.constexpr,
    CHUNK: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """g_t = C_t dy_t + exp(dt_{t+1} A) g_{t+1}, and everything else from g_t, h_t and h_{t-1}."""
    n, block = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    s = tl.arange(0, BLOCK_S)
    start, end = tl.load(cu_seqlens + n), tl.load(cu_seqlens + n + 1)
    length = end - start
    places, inside = _states_of(states, dim, d, s, start, cu_seqlens + n)
    way: tl.constexpr = -1 if REVERSE else 1
    A2 = tl.load(A + places, mask=inside, other=0.0) * _LOG2_E
    carry = tl.load(dfinal + n * states * dim + places, mask=inside, other=0.0)
    dA_sd = tl.zeros_like(carry)
    # `width` is not a constant so that no load of several neighbouring channels into one thread
    # pays, which would take the states of a channel apart.
    scratch += (n * tl.num_programs(1) + block) * width
    in_scratch = s[:, None] * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    dB += block * total * states
    dC += block * total * states
    for done in range(0, length, CHUNK):
        begin = (length - 1) // CHUNK * CHUNK - done
        places, inside = _states_of(states, dim, d, s, start, cu_seqlens + n)
        at_start = begin + places - places == 0
        place = ((start + begin) // CHUNK - 1) * states * dim
        h = tl.load(checkpoints + place + places, mask=inside & ~at_start, other=0.0)
        h_0 = tl.load(h0 + n * states * dim + places, mask=inside & at_start, other=0.0)
        h = tl.where(at_start, h_0, h)
        groups = tl.cdiv(tl.minimum(length - begin, CHUNK), STEPS).to(tl.int32)
        for group in range(0, groups):
            tl.store(scratch + group * (BLOCK_S * BLOCK_D) + in_scratch, h)
            first = begin + group * STEPS
            t = end - 1 - first if REVERSE else start + first
            left = tl.minimum(length - first, STEPS).to(tl.int32)
            for k in tl.static_range(STEPS):
                real = (d < dim) & (k + (d - d) < left)
                real_s = (s < states) & (k + (s - s) < left)
                u_t = _row(u + t * dim, d + way * k * dim, real)
                dt_t = _row(dt + t * dim, d + way * k * dim, real)
                B_t = _row(B + t * states, s + way * k * states, real_s)
                if RESET:
                    h = tl.where(_kept(reset + t, way * k, d, real), h, 0.0)
                h = _next(h, A2, u_t, dt_t, B_t)
        tl.debug_barrier()
        for later in range(0, groups):
            group = groups - 1 - later
            first = begin + group * STEPS
            t = end - 1 - first if REVERSE else start + first
            left = tl.minimum(length - first, STEPS).to(tl.int32)
            t_dim, t_states = t * dim, t * states
            hs = (tl.load(scratch + group * (BLOCK_S * BLOCK_D) + in_scratch),)
            for k in tl.static_range(STEPS):
                real = (d < dim) & (k + (d - d) < left)
                real_s = (s < states) & (k + (s - s) < left)
                # Kept in the cache, not in registers: with another policy the loads below are
                # others to the compiler, and so are not done once and held until then.
                u_t = _row(u + t_dim, d + way * k * dim, real, "evict_last")
                dt_t = _row(dt + t_dim, d + way * k * dim, real, "evict_last")
                B_t = _row(B + t_states, s + way * k * states, real_s, "evict_last")
                before = hs[k]
                if RESET:
                    before = tl.where(_kept(reset + t, way * k, d, real), before, 0.0)
                hs = _with(hs, _next(before, A2, u_t, dt_t, B_t))
            for k in tl.static_range(STEPS - 1, -1, -1):
                real = (d < dim) & (k + (d - d) < left)
                real_s = (s < states) & (k + (s - s) < left)
                row_d, row_s = d + way * k * dim, s + way * k * states
                u_t, dt_t = _row(u + t_dim, row_d, real), _row(dt + t_dim, row_d, real)
                dy_t = _row(dy + t_dim, row_d, real)
                B_t, C_t = _row(B + t_states, row_s, real_s), _row(C + t_states, row_s, real_s)
                g = carry + C_t[:, None] * dy_t[None, :]
                dC_t = tl.sum(hs[k + 1] * dy_t[None, :], axis=1)
                dB_t = tl.sum(g * (dt_t * u_t)[None, :], axis=1)
                q = tl.sum(g * B_t[:, None], axis=0)
                carry = tl.exp2(dt_t[None, :] * A2) * g
                before = hs[k]
                if RESET:
                    kept = _kept(reset + t, way * k, d, real)
                    before = tl.where(kept, before, 0.0)
                through_decay = carry * before
                dA_sd += through_decay * dt_t[None, :]
                ddt_t = tl.sum(through_decay * A2, axis=0) * _LN_2 + q * u_t
                if RESET:
                    carry = tl.where(kept, carry, 0.0)
                tl.store(du + t_dim + row_d, q * dt_t, mask=real)
                tl.store(ddt + t_dim + row_d, ddt_t, mask=real)
                tl.store(dB + t_states + row_s, dB_t, mask=real_s)
                tl.store(dC + t_states + row_s, dC_t, mask=real_s)
        tl.debug_barrier()
    places, inside = _states_of(states, dim, d, s, start, cu_seqlens + n)
    tl.store(dA + n * states * dim + places, dA_sd, mask=inside)
    tl.store(dh + n * states * dim + places, carry, mask=inside)
