"""linear_attention in Triton: a program walks the chunks of one head of one sequence.

The plain rule only. Within a chunk it is the matrix form of `walk`; the state [K, P], or a block of
its columns, stays in registers from chunk to chunk. Products that end in an output of low precision
take operands of that precision; what is carried along is computed in float32 throughout.
"""

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

WIDEST_VALUES = 32
"""Values that a program takes: as many as registers hold beside the keys, without a stack."""


def states_shape(
    q_THK: Tensor, k_THK: Tensor, v_THP: Tensor, num_sequences: int, chunk_size: int
) -> tuple[int, ...]:
    """Shape of the states that `forward` keeps, one before each chunk of each sequence."""
    total, heads, key_size = q_THK.shape
    steps = _steps(q_THK, k_THK, v_THP, chunk_size)
    return total // steps + num_sequences, heads, key_size, v_THP.shape[-1]


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
    assert beta_TH is None
    q, k, v, S = (x.contiguous() for x in (q_THK, k_THK, v_THP, S_NHKP))
    log_decay = None if log_decay_TH is None else log_decay_TH.contiguous()
    o = torch.empty_like(v)
    final, states = torch.empty_like(S), S.new_empty(states_shape(q, k, v, len(S), chunk_size))
    sequences, heads, key_size, value_size = S.shape
    blocks = _blocks(q, k, v, chunk_size)
    grid = (sequences * heads, triton.cdiv(value_size, blocks["BLOCK_P"]))
    if all(grid):
        _forward[grid](
            *(q, k, v, log_decay, S, cu_seqlens, o, final, states, heads, key_size, value_size),
            REVERSE=reverse,
            **blocks,
        )
    return o, final, states


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
    """(dq, dk, dv, dlog_decay, None, dS) of `forward`."""
    do, dfinal, q, k, v = (x.contiguous() for x in (do_THP, dfinal_NHKP, q_THK, k_THK, v_THP))
    log_decay = None if log_decay_TH is None else log_decay_TH.contiguous()
    sequences, heads, key_size, value_size = dfinal.shape
    blocks = _blocks(q, k, v, chunk_size)
    grid = (sequences * heads, triton.cdiv(value_size, blocks["BLOCK_P"]))
    # One part for each block of values; a sum in their order follows.
    parts = (grid[1], len(q), heads)
    dq, dk = (q.new_empty(*parts, key_size, dtype=torch.float32) for _ in range(2))
    dlog_decay = None if log_decay is None else q.new_empty(2, *parts, dtype=torch.float32)
    dv, dS = torch.empty_like(v), torch.empty_like(dfinal)
    if all(grid):
        sizes = (heads, key_size, value_size)
        options = {"REVERSE": reverse, **blocks}
        dstates = torch.empty_like(states)
        by_query, by_key = (None, None) if dlog_decay is None else dlog_decay.unbind()
        _backward_states[grid](do, dfinal, q, log_decay, cu_seqlens, dstates, dS, *sizes, **options)
        _backward_queries[grid](
            *(do, q, k, v, log_decay, states, cu_seqlens, dq, by_query, len(q), *sizes), **options
        )
        _backward_keys[grid](
            *(do, q, k, v, log_decay, states, dstates, cu_seqlens, dk, by_key, len(q), *sizes),
            **options,
        )
        _backward_values[grid](do, q, k, log_decay, dstates, cu_seqlens, dv, *sizes, **options)
    if log_decay is not None and dlog_decay is not None:
        dlog_decay = dlog_decay.sum((0, 1)).to(log_decay.dtype)
    return dq.sum(0).to(q.dtype), dk.sum(0).to(k.dtype), dv, dlog_decay, None, dS


def _low(*tensors: Tensor) -> bool:
    """Whether products take bfloat16; float16 has too small a range for sums of products."""
    return all(x.dtype == torch.bfloat16 for x in tensors)


def _steps(q_THK: Tensor, k_THK: Tensor, v_THP: Tensor, chunk_size: int) -> int:
    """Steps of a chunk: a power of two, as large as registers hold."""
    most = 32 if _low(q_THK, k_THK, v_THP) and q_THK.shape[-1] <= 64 else 16
    return min(max(16, triton.next_power_of_2(chunk_size)), most)


def _blocks(q_THK: Tensor, k_THK: Tensor, v_THP: Tensor, chunk_size: int) -> dict:
    """Constants and options of a launch."""
    sizes = [max(16, triton.next_power_of_2(x.shape[-1])) for x in (q_THK, v_THP)]
    return {
        "LOW": _low(q_THK, k_THK, v_THP),
        # Triton's interpreter has no products in bfloat16: it takes rounded numbers in float32.
        "ROUND": os.environ.get("TRITON_INTERPRET") == "1",
        "BLOCK_T": _steps(q_THK, k_THK, v_THP, chunk_size),
        "BLOCK_K": sizes[0],
        "BLOCK_P": min(sizes[1], WIDEST_VALUES),
        "num_warps": 4,
        "num_stages": 1,
        "enable_fp_fusion": True,
    }


@triton.jit
def _product(a, b, LOW: tl.constexpr, ROUND: tl.constexpr):
    """a b in float32, of operands in bfloat16 or float32.

    Three products of parts in TF32, exact to 2**-21: without tensor cores ("ieee") whole rows and
    columns of the operands lie in registers, many times more than there are.
    """
    if LOW:
        a, b = a.to(tl.bfloat16), b.to(tl.bfloat16)
    if ROUND or not LOW:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision="tf32x3")


@triton.jit
def _chunk_decays(log_decay, row, steps, heads, real, BLOCK_T: tl.constexpr):
    """(pairs, start, end, whole) as `walk._Decays`."""
    i = tl.arange(0, BLOCK_T)
    g = tl.load(log_decay + row * heads + steps * heads, mask=real, other=0.0).to(tl.float32)
    sums = tl.cumsum(tl.where(i[:, None] > i[None, :], g[:, None], 0.0), axis=0)
    pairs = tl.where(i[:, None] >= i[None, :], tl.exp(sums), 0.0)
    start = tl.exp(tl.cumsum(g, axis=0))
    last = i == BLOCK_T - 1
    end = tl.sum(tl.where(last[:, None], pairs, 0.0), axis=0)
    return pairs, start, end, tl.sum(tl.where(last, start, 0.0), axis=0)


@triton.jit
def _tile(pointer, row, steps, heads, size: tl.constexpr, columns, real):
    """[BLOCK_T, columns] of [T, H, size] from `row` of one head on, 0 outside."""
    places = steps[:, None] * (heads * size) + columns[None, :]
    mask = real[:, None] & (columns < size)[None, :]
    return tl.load(pointer + row * heads * size + places, mask=mask, other=0.0)


@triton.jit
def _put(pointer, row, steps, heads, size: tl.constexpr, columns, real, x):
    places = steps[:, None] * (heads * size) + columns[None, :]
    mask = real[:, None] & (columns < size)[None, :]
    tl.store(pointer + row * heads * size + places, x, mask=mask)


# Steps of a chunk lie at `row`, `row + 1` …, or at `row`, `row - 1` … for REVERSE; pointers to
# tensors [T, H, …] are moved to the program's head at its start.


@triton.jit
def _forward(
    q,
    k,
    v,
    log_decay,
    S0,
    cu_seqlens,
    o,
    final,
    states,
    heads,
    key_size: tl.constexpr,
    value_size: tl.constexpr,
    REVERSE: tl.constexpr,
    LOW: tl.constexpr,
    ROUND: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    n, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    keys = tl.arange(0, BLOCK_K)
    values = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = (keys < key_size)[:, None] & (values < value_size)[None, :]
    places = keys[:, None] * value_size + values[None, :]
    begin, finish = tl.load(cu_seqlens + n), tl.load(cu_seqlens + n + 1)
    length = finish - begin
    i = tl.arange(0, BLOCK_T)
    steps = -i if REVERSE else i
    matrix = key_size * value_size
    q, k = q + head * key_size, k + head * key_size
    v, o = v + head * value_size, o + head * value_size
    S = tl.load(S0 + (n * heads + head) * matrix + places, mask=inside, other=0.0)
    slot = begin // BLOCK_T + n
    for first in range(0, length, BLOCK_T):
        tl.store(states + (slot * heads + head) * matrix + places, S, mask=inside)
        slot += 1
        real = first + i < length
        row = finish - 1 - first if REVERSE else begin + first
        q_CK = _tile(q, row, steps, heads, key_size, keys, real)
        k_CK = _tile(k, row, steps, heads, key_size, keys, real)
        v_CP = _tile(v, row, steps, heads, value_size, values, real)
        A = _product(q_CK, tl.trans(k_CK), LOW, ROUND)
        o_CP = _product(q_CK, S, LOW, ROUND)
        if log_decay is not None:
            pairs, start, end, whole = _chunk_decays(
                log_decay + head, row, steps, heads, real, BLOCK_T
            )
            A *= pairs
            o_CP *= start[:, None]
            k_KC = tl.trans(k_CK.to(tl.float32) * end[:, None])
            S = whole * S + _product(k_KC, v_CP, False, ROUND)
        else:
            # Products of two numbers in bfloat16 are exact in float32.
            S += _product(tl.trans(k_CK), v_CP, LOW, ROUND)
        A = tl.where(i[:, None] >= i[None, :], A, 0.0)
        o_CP += _product(A, v_CP, LOW, ROUND)
        _put(o, row, steps, heads, value_size, values, real, o_CP)
    tl.store(final + (n * heads + head) * matrix + places, S, mask=inside)


# The backward follows `walk._back` and `walk._decay_gradient`, in a kernel for each gradient: one
# that had them all would need twice the registers that there are.


@triton.jit(do_not_specialize=["total"])
def _backward_queries(
    do,
    q,
    k,
    v,
    log_decay,
    states,
    cu_seqlens,
    dq,
    dlog_decay,
    total,
    heads,
    key_size: tl.constexpr,
    value_size: tl.constexpr,
    REVERSE: tl.constexpr,
    LOW: tl.constexpr,
    ROUND: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """dq, and of dlog_decay what comes from decays within the chunk and from its start to o."""
    n, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    keys = tl.arange(0, BLOCK_K)
    values = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = (keys < key_size)[:, None] & (values < value_size)[None, :]
    places = keys[:, None] * value_size + values[None, :]
    begin, finish = tl.load(cu_seqlens + n), tl.load(cu_seqlens + n + 1)
    length = finish - begin
    i = tl.arange(0, BLOCK_T)
    steps = -i if REVERSE else i
    matrix = key_size * value_size
    part = tl.program_id(1).to(tl.int64) * total * heads + head
    q, k, dq = q + head * key_size, k + head * key_size, dq + part * key_size
    v, do = v + head * value_size, do + head * value_size
    slot = begin // BLOCK_T + n
    for first in range(0, length, BLOCK_T):
        real = first + i < length
        row = finish - 1 - first if REVERSE else begin + first
        S = tl.load(states + (slot * heads + head) * matrix + places, mask=inside, other=0.0)
        slot += 1
        do_CP = _tile(do, row, steps, heads, value_size, values, real)
        v_CP = _tile(v, row, steps, heads, value_size, values, real)
        k_CK = _tile(k, row, steps, heads, key_size, keys, real)
        dA = _product(do_CP, tl.trans(v_CP), LOW, ROUND)
        dA = tl.where(i[:, None] >= i[None, :], dA, 0.0)
        dq_CK = _product(do_CP, tl.trans(S), LOW, ROUND)
        if log_decay is not None:
            pairs, start, _, _ = _chunk_decays(log_decay + head, row, steps, heads, real, BLOCK_T)
            dq_CK *= start[:, None]
            dA *= pairs
            q_CK = _tile(q, row, steps, heads, key_size, keys, real)
            dpairs = dA * _product(q_CK, tl.trans(k_CK), LOW, ROUND)
            # A step s is in the decay of every pair j < s <= i.
            dpairs = tl.cumsum(dpairs, axis=0, reverse=True)
            dg = tl.sum(tl.where(i[:, None] > i[None, :], dpairs, 0.0), axis=1)
            dg += tl.cumsum(tl.sum(q_CK * dq_CK, axis=1), axis=0, reverse=True)
            tl.store(dlog_decay + part + row * heads + steps * heads, dg, mask=real)
        dq_CK += _product(dA, k_CK, LOW, ROUND)
        _put(dq, row, steps, heads, key_size, keys, real, dq_CK)


@triton.jit
def _backward_states(
    do,
    dfinal,
    q,
    log_decay,
    cu_seqlens,
    dstates,
    dS0,
    heads,
    key_size: tl.constexpr,
    value_size: tl.constexpr,
    REVERSE: tl.constexpr,
    LOW: tl.constexpr,
    ROUND: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """The gradient of the state behind each chunk, and dS0."""
    n, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    keys = tl.arange(0, BLOCK_K)
    values = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = (keys < key_size)[:, None] & (values < value_size)[None, :]
    places = keys[:, None] * value_size + values[None, :]
    begin, finish = tl.load(cu_seqlens + n), tl.load(cu_seqlens + n + 1)
    length = finish - begin
    i = tl.arange(0, BLOCK_T)
    steps = -i if REVERSE else i
    matrix = key_size * value_size
    q, do = q + head * key_size, do + head * value_size
    dS = tl.load(dfinal + (n * heads + head) * matrix + places, mask=inside, other=0.0)
    chunks = tl.cdiv(length, BLOCK_T)
    for back in range(0, chunks):
        chunk = chunks - 1 - back
        slot = begin // BLOCK_T + n + chunk
        tl.store(dstates + (slot * heads + head) * matrix + places, dS, mask=inside)
        first = chunk * BLOCK_T
        real = first + i < length
        row = finish - 1 - first if REVERSE else begin + first
        q_CK = _tile(q, row, steps, heads, key_size, keys, real)
        do_CP = _tile(do, row, steps, heads, value_size, values, real)
        if log_decay is not None:
            g_pointer = log_decay + head + row * heads
            g = tl.load(g_pointer + steps * heads, mask=real, other=0.0).to(tl.float32)
            start = tl.exp(tl.cumsum(g, axis=0))
            whole = tl.sum(tl.where(i == BLOCK_T - 1, start, 0.0), axis=0)
            q_KC = tl.trans(q_CK.to(tl.float32) * start[:, None])
            dS = whole * dS + _product(q_KC, do_CP, False, ROUND)
        else:
            dS += _product(tl.trans(q_CK), do_CP, LOW, ROUND)
    tl.store(dS0 + (n * heads + head) * matrix + places, dS, mask=inside)


@triton.jit(do_not_specialize=["total"])
def _backward_keys(
    do,
    q,
    k,
    v,
    log_decay,
    states,
    dstates,
    cu_seqlens,
    dk,
    dlog_decay,
    total,
    heads,
    key_size: tl.constexpr,
    value_size: tl.constexpr,
    REVERSE: tl.constexpr,
    LOW: tl.constexpr,
    ROUND: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """dk, and of dlog_decay what comes from decays up to the chunk's end."""
    n, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    keys = tl.arange(0, BLOCK_K)
    values = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = (keys < key_size)[:, None] & (values < value_size)[None, :]
    places = keys[:, None] * value_size + values[None, :]
    begin, finish = tl.load(cu_seqlens + n), tl.load(cu_seqlens + n + 1)
    length = finish - begin
    i = tl.arange(0, BLOCK_T)
    steps = -i if REVERSE else i
    matrix = key_size * value_size
    part = tl.program_id(1).to(tl.int64) * total * heads + head
    q, k, dk = q + head * key_size, k + head * key_size, dk + part * key_size
    v, do = v + head * value_size, do + head * value_size
    slot = begin // BLOCK_T + n
    for first in range(0, length, BLOCK_T):
        real = first + i < length
        row = finish - 1 - first if REVERSE else begin + first
        state = (slot * heads + head) * matrix + places
        slot += 1
        dS = tl.load(dstates + state, mask=inside, other=0.0)
        v_CP = _tile(v, row, steps, heads, value_size, values, real)
        do_CP = _tile(do, row, steps, heads, value_size, values, real)
        dA_T = _product(v_CP, tl.trans(do_CP), LOW, ROUND)
        dk_CK = _product(v_CP, tl.trans(dS), LOW, ROUND)
        dA_T = tl.where(i[:, None] <= i[None, :], dA_T, 0.0)
        if log_decay is not None:
            pairs, _, end, whole = _chunk_decays(log_decay + head, row, steps, heads, real, BLOCK_T)
            dk_CK *= end[:, None]
            dA_T *= tl.trans(pairs)
            k_CK = _tile(k, row, steps, heads, key_size, keys, real)
            S = tl.load(states + state, mask=inside, other=0.0)
            # A step s is in the decay to the end of every j < s, and in that of the whole chunk.
            dend = tl.sum(k_CK * dk_CK, axis=1)
            earlier = tl.where(i[:, None] > i[None, :], dend[None, :], 0.0)
            dg = tl.sum(earlier, axis=1) + whole * tl.sum(S * dS)
            tl.store(dlog_decay + part + row * heads + steps * heads, dg, mask=real)
        q_CK = _tile(q, row, steps, heads, key_size, keys, real)
        dk_CK += _product(dA_T, q_CK, LOW, ROUND)
        _put(dk, row, steps, heads, key_size, keys, real, dk_CK)


@triton.jit
def _backward_values(
    do,
    q,
    k,
    log_decay,
    dstates,
    cu_seqlens,
    dv,
    heads,
    key_size: tl.constexpr,
    value_size: tl.constexpr,
    REVERSE: tl.constexpr,
    LOW: tl.constexpr,
    ROUND: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """dv."""
    n, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    keys = tl.arange(0, BLOCK_K)
    values = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = (keys < key_size)[:, None] & (values < value_size)[None, :]
    places = keys[:, None] * value_size + values[None, :]
    begin, finish = tl.load(cu_seqlens + n), tl.load(cu_seqlens + n + 1)
    length = finish - begin
    i = tl.arange(0, BLOCK_T)
    steps = -i if REVERSE else i
    matrix = key_size * value_size
    q, k = q + head * key_size, k + head * key_size
    do, dv = do + head * value_size, dv + head * value_size
    slot = begin // BLOCK_T + n
    for first in range(0, length, BLOCK_T):
        real = first + i < length
        row = finish - 1 - first if REVERSE else begin + first
        state = (slot * heads + head) * matrix + places
        slot += 1
        dS = tl.load(dstates + state, mask=inside, other=0.0)
        q_CK = _tile(q, row, steps, heads, key_size, keys, real)
        k_CK = _tile(k, row, steps, heads, key_size, keys, real)
        do_CP = _tile(do, row, steps, heads, value_size, values, real)
        A_T = _product(k_CK, tl.trans(q_CK), LOW, ROUND)
        A_T = tl.where(i[:, None] <= i[None, :], A_T, 0.0)
        dv_CP = _product(k_CK, dS, LOW, ROUND)
        if log_decay is not None:
            pairs, _, end, _ = _chunk_decays(log_decay + head, row, steps, heads, real, BLOCK_T)
            dv_CP *= end[:, None]
            A_T *= tl.trans(pairs)
        dv_CP += _product(A_T, do_CP, LOW, ROUND)
        _put(dv, row, steps, heads, value_size, values, real, dv_CP)
