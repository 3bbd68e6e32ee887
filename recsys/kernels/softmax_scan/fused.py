"""softmax_scan in Triton: the weights of all steps, then tiles of time scanned inside one warp.

Two kernels each way, one over steps and heads alone and one over channels, so that no channel
computes a weight again and a head may have any number of channels. One warp with its threads
along the channels keeps a tile's times inside a thread. Times are counted in walking order,
i = 0, 1, …; `t` is where that lies in memory.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from recsys.kernels.tiles import after, last_row

BLOCK_D = 32
FORWARD_TIMES, BACKWARD_TIMES, SCORE_TIMES = 16, 8, 64
"""Steps of a tile, of channels as many as 255 registers hold without a stack."""
_OPTIONS = {"num_warps": 1, "num_stages": 1, "enable_fp_fusion": True}


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
    s, v, lse, o = (x.contiguous() for x in (s_TH, v_THK, lse_NH, o_NHK))
    p_TH, kept_TH = (torch.empty_like(s, dtype=torch.float32) for _ in range(2))
    y_THK, final_NH, final_NHK = (torch.empty_like(x) for x in (v, lse, o))
    num_sequences, heads, channels = o.shape
    if num_sequences and heads:
        _weights[(num_sequences, heads)](
            *(s, lse, cu_seqlens, reset_T, valid_T, p_TH, kept_TH, final_NH, heads),
            REVERSE=reverse,
            RESET=reset_T is not None,
            VALID=valid_T is not None,
            BLOCK_T=SCORE_TIMES,
            **_OPTIONS,
        )
    if num_sequences and heads and channels:
        block, blocks = _blocks(channels)
        _forward[(num_sequences, heads, blocks)](
            *(v, o, cu_seqlens, valid_T, p_TH, kept_TH, y_THK, final_NHK, heads, channels),
            REVERSE=reverse,
            VALID=valid_T is not None,
            BLOCK_T=FORWARD_TIMES,
            BLOCK_D=block,
            **_OPTIONS,
        )
    return y_THK, p_TH, kept_TH, final_NH, final_NHK


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
    dy, dlse, do, v, y, o = (x.contiguous() for x in (dy_THK, dlse_NH, do_NHK, v_THK, y_THK, o_NHK))
    ds_TH, dv_THK, dlse0_NH, do0_NHK = (torch.empty_like(x) for x in (p_TH, v, dlse, do))
    num_sequences, heads, channels = do.shape
    block, blocks = _blocks(channels)
    # g_t . (v_t - o_{t-1}) by block of channels, summed in their order.
    parts_XTH = torch.empty((blocks, *p_TH.shape), dtype=torch.float32, device=v.device)
    if num_sequences and heads and channels:
        _backward[(num_sequences, heads, blocks)](
            *(dy, do, v, y, o, cu_seqlens, p_TH, kept_TH, dv_THK, parts_XTH, do0_NHK),
            *(len(v), heads, channels),
            REVERSE=reverse,
            BLOCK_T=BACKWARD_TIMES,
            BLOCK_D=block,
            **_OPTIONS,
        )
    if num_sequences and heads:
        _backward_scores[(num_sequences, heads)](
            *(parts_XTH.sum(0), dlse, cu_seqlens, p_TH, kept_TH, ds_TH, dlse0_NH, heads),
            REVERSE=reverse,
            BLOCK_T=SCORE_TIMES,
            **_OPTIONS,
        )
    return ds_TH, dv_THK, dlse0_NH, do0_NHK


def _blocks(channels: int) -> tuple[int, int]:
    """(channels of a program, programs for a head)."""
    block = min(BLOCK_D, triton.next_power_of_2(max(1, channels)))
    return block, triton.cdiv(channels, block)


@triton.jit
def _merge(forgot, top, total, later_forgot, later_top, later_total):
    """Sums of e^s over two stretches, each total e^top; the later may forget the earlier."""
    top = tl.where(later_forgot != 0, float("-inf"), top)
    total = tl.where(later_forgot != 0, 0.0, total)
    highest = tl.maximum(top, later_top)
    base = tl.where(highest == float("-inf"), 0.0, highest)
    total = total * tl.exp(top - base) + later_total * tl.exp(later_top - base)
    return forgot | later_forgot, highest, total


@triton.jit
def _last_of_row(x, BLOCK_T: tl.constexpr):
    """[1], the last number of a tile of times."""
    i = tl.arange(0, BLOCK_T)
    return tl.sum(tl.where(i == BLOCK_T - 1, x, 0.0), axis=0, keep_dims=True)


@triton.jit
def _scores(s, reset, valid, t, h, heads, mask, RESET: tl.constexpr, VALID: tl.constexpr):
    """(1 where a step forgets, scores) of a tile; -inf where a step does not count."""
    scored = mask & (tl.load(valid + t, mask=mask, other=0) != 0) if VALID else mask
    score = tl.load(s + t * heads + h, mask=scored, other=float("-inf")).to(tl.float32)
    if RESET:
        forgot = (tl.load(reset + t, mask=mask, other=0) != 0).to(tl.int32)
    else:
        forgot = tl.zeros_like(score).to(tl.int32)
    return forgot, score


@triton.jit(do_not_specialize=["heads"])
def _weights(
    s,
    lse0,
    cu_seqlens,
    reset,
    valid,
    p,
    kept,
    lse,
    heads,
    REVERSE: tl.constexpr,
    RESET: tl.constexpr,
    VALID: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """p_t = e^(s_t - lse_t) and 1 - p_t = e^(lse_{t-1} - lse_t), lse as (largest s, sum)."""
    n = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1)
    start, end = tl.load(cu_seqlens + n), tl.load(cu_seqlens + n + 1)
    place = n * heads + h + tl.arange(0, 1)
    top = tl.load(lse0 + place)
    total = tl.where(top == float("-inf"), 0.0, 1.0)
    step = -1 if REVERSE else 1
    for first in range(0, end - start, BLOCK_T):
        i = tl.arange(0, BLOCK_T)
        t = end - 1 - first - i if REVERSE else start + first + i
        real = first + i < end - start
        # What lies before each step: a scan of the steps one earlier, after the tiles before.
        earlier = (i > 0) & (first + i <= end - start)
        before = _scores(s, reset, valid, t - step, h, heads, earlier, RESET, VALID)
        one = tl.where(before[1] == float("-inf"), 0.0, 1.0)
        before = tl.associative_scan((before[0], before[1], one), 0, _merge)
        old_top, old_total = tl.broadcast_to(top, [BLOCK_T]), tl.broadcast_to(total, [BLOCK_T])
        _, old_top, old_total = _merge(before[0], old_top, old_total, *before)
        forgot, score = _scores(s, reset, valid, t, h, heads, real, RESET, VALID)
        old_top = tl.where(forgot != 0, float("-inf"), old_top)
        old_total = tl.where(forgot != 0, 0.0, old_total)
        highest = tl.maximum(old_top, score)
        base = tl.where(highest == float("-inf"), 0.0, highest)
        old, new = old_total * tl.exp(old_top - base), tl.exp(score - base)
        whole = old + new
        divisor = tl.where(whole == 0.0, 1.0, whole)
        stays = tl.where(forgot != 0, 0.0, 1.0)
        tl.store(p + t * heads + h, new / divisor, mask=real)
        tl.store(kept + t * heads + h, tl.where(whole == 0.0, stays, old / divisor), mask=real)
        # Behind the end scores of -inf keep the state, which so is a tile's last number.
        top, total = _last_of_row(highest, BLOCK_T), _last_of_row(whole, BLOCK_T)
    tl.store(lse + place, top + tl.log(tl.where(total == 0.0, 1.0, total)))


@triton.jit(do_not_specialize=["heads", "channels"])
def _forward(
    v,
    o0,
    cu_seqlens,
    valid,
    p,
    kept,
    y,
    o,
    heads,
    channels,
    REVERSE: tl.constexpr,
    VALID: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """o_t = (1 - p_t) o_{t-1} + p_t v_t."""
    n = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1)
    d = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = d < channels
    start, end = tl.load(cu_seqlens + n), tl.load(cu_seqlens + n + 1)
    length = end - start
    state = (n * heads + h) * channels + d
    carry = tl.load(o0 + state, mask=inside, other=0.0)
    # Places are counted from a tile's first step: small numbers, which take half the registers.
    i = tl.arange(0, BLOCK_T)
    move = -i if REVERSE else i
    weight = move * heads
    place = weight[:, None] * channels + d[None, :]
    for first in range(0, length, BLOCK_T):
        t = end - 1 - first if REVERSE else start + first
        at = t * heads + h
        real = first + i < length
        mask = real[:, None] & inside[None, :]
        counts = real & (tl.load(valid + t + move, mask=real, other=0) != 0) if VALID else real
        counted = counts[:, None] & inside[None, :]
        v_tile = tl.load(v + at * channels + place, mask=counted, other=0.0).to(tl.float32)
        # Behind the end p = 0 and 1 - p = 1 keep the state, which so is a tile's last row.
        p_tile = tl.load(p + at + weight, mask=real, other=0.0)[:, None]
        decay = tl.load(kept + at + weight, mask=real, other=1.0)[:, None]
        decay = tl.broadcast_to(decay, [BLOCK_T, BLOCK_D])
        decay, sums = tl.associative_scan((decay, p_tile * v_tile), 0, after)
        y_tile = decay * carry[None, :] + sums
        tl.store(y + at * channels + place, y_tile, mask=mask)
        carry = last_row(y_tile, BLOCK_T)
    tl.store(o + state, carry, mask=inside)


@triton.jit(do_not_specialize=["events", "heads", "channels"])
def _backward(
    dy,
    do,
    v,
    y,
    o0,
    cu_seqlens,
    p,
    kept,
    dv,
    parts,
    do0,
    events,
    heads,
    channels,
    REVERSE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """g_t = do_t + (1 - p_{t+1}) g_{t+1}; dv_t = p_t g_t; parts of g_t . (v_t - o_{t-1}).

    i is 0 at the end.
    """
    n = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1)
    block = tl.program_id(2)
    d = block * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = d < channels
    start, end = tl.load(cu_seqlens + n), tl.load(cu_seqlens + n + 1)
    length = end - start
    state = (n * heads + h) * channels + d
    g = tl.load(do + state, mask=inside, other=0.0)
    o_first = tl.load(o0 + state, mask=inside, other=0.0)
    step = -1 if REVERSE else 1
    i = tl.arange(0, BLOCK_T)
    weight = -step * i * heads
    place = weight[:, None] * channels + d[None, :]
    for first in range(0, length, BLOCK_T):
        real = first + i < length
        mask = real[:, None] & inside[None, :]
        at = (start + first if REVERSE else end - 1 - first) * heads + h
        dy_tile = tl.load(dy + at * channels + place, mask=mask, other=0.0).to(tl.float32)
        # The last step hands on the state's gradient whole; all others, what the next one keeps.
        later = real & (first + i > 0)
        decay = tl.load(kept + at + weight + step * heads, mask=later, other=1.0)[:, None]
        decay = tl.broadcast_to(decay, [BLOCK_T, BLOCK_D])
        decay, sums = tl.associative_scan((decay, dy_tile), 0, after)
        g_tile = decay * g[None, :] + sums
        p_tile = tl.load(p + at + weight, mask=real, other=0.0)[:, None]
        tl.store(dv + at * channels + place, p_tile * g_tile, mask=mask)
        v_tile = tl.load(v + at * channels + place, mask=mask, other=0.0).to(tl.float32)
        before = mask & (first + i < length - 1)[:, None]
        last_place = place - step * heads * channels
        y_tile = tl.load(y + at * channels + last_place, mask=before, other=0.0).to(tl.float32)
        y_tile = tl.where((first + i == length - 1)[:, None], o_first[None, :], y_tile)
        part = tl.sum(tl.where(mask, g_tile * (v_tile - y_tile), 0.0), axis=1)
        tl.store(parts + block.to(tl.int64) * events * heads + at + weight, part, mask=real)
        g = last_row(g_tile, BLOCK_T)
    # One more step back, to the state before the first event.
    t = end - 1 if REVERSE else start
    some = inside & (d - d < length)
    first_kept = tl.load(kept + t * heads + h + (d - d), mask=some, other=1.0)
    tl.store(do0 + state, first_kept * g, mask=inside)


@triton.jit(do_not_specialize=["heads"])
def _backward_scores(
    dot,
    dlse,
    cu_seqlens,
    p,
    kept,
    ds,
    dlse0,
    heads,
    REVERSE: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """m_{t-1} = (1 - p_t) m_t - c_t; ds_t = p_t m_t + c_t; c_t = p_t (1 - p_t) dot_t.

    i is 0 at the end.
    """
    n = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1)
    start, end = tl.load(cu_seqlens + n), tl.load(cu_seqlens + n + 1)
    place = n * heads + h + tl.arange(0, 1)
    m = tl.load(dlse + place)
    step = -1 if REVERSE else 1
    for first in range(0, end - start, BLOCK_T):
        i = tl.arange(0, BLOCK_T)
        t = start + first + i if REVERSE else end - 1 - first - i
        real = first + i < end - start
        # Each m follows from the step behind it in time; the tile's first is at hand.
        later = (i > 0) & (first + i <= end - start)
        decay, moved = _movement(dot, p, kept, (t + step) * heads + h, later)
        decay, sums = tl.associative_scan((decay, -moved), 0, after)
        m_tile = decay * m + sums
        p_tile = tl.load(p + t * heads + h, mask=real, other=0.0)
        decay, moved = _movement(dot, p, kept, t * heads + h, real)
        tl.store(ds + t * heads + h, moved + p_tile * m_tile, mask=real)
        m = _last_of_row(decay * m_tile - moved, BLOCK_T)
    tl.store(dlse0 + place, m)


@triton.jit
def _movement(dot, p, kept, place, mask):
    """(1 - p, p (1 - p) dot) of steps."""
    p_tile = tl.load(p + place, mask=mask, other=0.0)
    dot_tile = tl.load(dot + place, mask=mask, other=0.0)
    kept_tile = tl.load(kept + place, mask=mask, other=1.0)
    weight = p_tile * kept_tile
    # Where nothing is mixed, what v or the state before it holds, be it NaN, is nothing to s.
    return kept_tile, tl.where(weight == 0.0, 0.0, weight * dot_tile)
