"""linear_cross_entropy in Triton: tiles of logits that never leave the processor.

Forward: a program takes BLOCK_N rows and a share of the items, with a running maximum and sum.
Backward computes the tiles again, once by rows (dx) and once by items (dW): no atomics, so the
result is the same every time. Shares are summed in their order.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from recsys.kernels.linear_cross_entropy.chunked import Problem

PROGRAMS = 512
"""About as many programs as keep a large GPU busy; a small problem is cut into shares for it."""
MAX_SHARES = 16


def forward(problem: Problem) -> tuple[Tensor, Tensor]:
    """([N] loss, [N] log of the sum of exponentials) float32."""
    num_rows, num_items = len(problem.x_ND), len(problem.weight_VD)
    blocks = triton.cdiv(num_rows, _block(problem))
    shares = _shares(blocks, num_items)
    parts = torch.empty((4, shares, num_rows), dtype=torch.float32, device=problem.x_ND.device)
    if num_rows:
        _forward[(blocks, shares)](*_tensors(problem), parts, shares, **_options(problem))
    top_SN, total_SN, target_SN, sum_SN = parts
    lse_N = torch.logsumexp(top_SN + total_SN.log(), dim=0)
    wanted_N = (1 - problem.label_smoothing) * target_SN.sum(0)
    if problem.label_smoothing:
        wanted_N = wanted_N + problem.label_smoothing / num_items * sum_SN.sum(0)
    return lse_N - wanted_N, lse_N


def backward(
    problem: Problem, dloss_N: Tensor, dlse_N: Tensor, lse_N: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(dx [N, D], dW [V, D], dbias [V] or None) float32, the logits computed again."""
    (num_rows, dim), num_items = problem.x_ND.shape, len(problem.weight_VD)
    device = problem.x_ND.device
    new: Any = {"dtype": torch.float32, "device": device}
    scalars = (dloss_N.contiguous(), dlse_N.contiguous(), lse_N)
    size = _block(problem)
    row_blocks, item_blocks = triton.cdiv(num_rows, size), triton.cdiv(num_items, size)
    row_shares, item_shares = _shares(row_blocks, num_items), _shares(item_blocks, num_rows)
    dx_SND = torch.empty((row_shares, num_rows, dim), **new)
    dW_SVD = torch.empty((item_shares, num_items, dim), **new)
    dbias_SV = None if problem.bias_V is None else torch.empty((item_shares, num_items), **new)
    arguments = (*_tensors(problem), *scalars)
    smoothing = (1 - problem.label_smoothing, problem.label_smoothing / max(1, num_items))
    options = _options(problem)
    if num_rows:
        _backward_x[(row_blocks, row_shares)](*arguments, dx_SND, *smoothing, row_shares, **options)
    _backward_w[(item_blocks, item_shares)](
        *arguments, dW_SVD, dbias_SV, *smoothing, item_shares, **options
    )
    dbias_V = None if dbias_SV is None else dbias_SV.sum(0)
    return dx_SND.sum(0), dW_SVD.sum(0), dbias_V


def weighted(
    problem: Problem, row_weight_N: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """(sum of row_weight * loss [], dx [N, D], dW [V, D], dbias [V] or None)."""
    loss_N, lse_N = forward(problem)
    weight_N = row_weight_N.to(torch.float32)
    gradients = backward(problem, weight_N, torch.zeros_like(weight_N), lse_N)
    return (weight_N * loss_N).sum(), *gradients


def _block(problem: Problem) -> int:
    """Rows and items of a tile: what fits the registers."""
    row_bytes = problem.x_ND.shape[1] * problem.x_ND.element_size()
    if problem.x_ND.dtype == torch.float32:
        return 32 if row_bytes <= 256 else 16
    return 64 if row_bytes <= 256 else 32


def _shares(blocks: int, length: int) -> int:
    """Into how many parts an inner loop over `length` is cut where there are few blocks."""
    return max(1, min(PROGRAMS // max(1, blocks), MAX_SHARES, length // 256))


def _tensors(problem: Problem) -> tuple[Tensor | int | None, ...]:
    (num_rows, dim), num_items = problem.x_ND.shape, len(problem.weight_VD)
    bias = None if problem.bias_V is None else problem.bias_V.contiguous()
    tensors = (problem.x_ND.contiguous(), problem.weight_VD.contiguous(), bias)
    return (*tensors, problem.target_N.contiguous(), num_rows, num_items, dim)


def _options(problem: Problem) -> dict[str, Any]:
    # Three tf32 products stand for a float32 one on the tensor cores, to about its precision.
    precision = "tf32" if torch.backends.cuda.matmul.allow_tf32 else "tf32x3"
    dim = max(16, triton.next_power_of_2(problem.x_ND.shape[1]))
    return {
        "SOFTCAP": problem.softcap,
        "PRECISION": precision,
        "BLOCK_N": _block(problem),
        "BLOCK_V": _block(problem),
        "BLOCK_D": dim,
        "num_warps": 4 if dim <= 128 else 8,
        "num_stages": 2 if dim <= 64 else 1,
        "enable_fp_fusion": True,
    }


@triton.jit
def _logits(x, table, bias, v, num_items, SOFTCAP: tl.constexpr, PRECISION: tl.constexpr):
    """[BLOCK_N, BLOCK_V] float32, minus infinity behind the last item; and its tanh for softcap."""
    logits = tl.dot(x, tl.trans(table), input_precision=PRECISION)
    inside = v < num_items
    if bias is not None:
        logits += tl.load(bias + v, mask=inside, other=0.0).to(tl.float32)[None, :]
    bent = logits
    if SOFTCAP > 0:
        bent = 2 * tl.sigmoid(2 * logits / SOFTCAP) - 1
        logits = SOFTCAP * bent
    return tl.where(inside[None, :], logits, float("-inf")), bent


@triton.jit
def _rows(pointer, row, d, last, dim):
    """A tile of a matrix, 0 outside."""
    mask = (row < last)[:, None] & (d < dim)[None, :]
    return tl.load(pointer + row.to(tl.int64)[:, None] * dim + d[None, :], mask=mask, other=0.0)


@triton.jit
def _slopes(
    x,
    table,
    bias,
    target,
    v,
    num_items,
    dloss,
    dlse,
    lse,
    hit,
    share,
    SOFTCAP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """[BLOCK_N, BLOCK_V] gradient of the logits, before softcap; 0 outside the catalogue."""
    logits, bent = _logits(x, table, bias, v, num_items, SOFTCAP, PRECISION)
    slope = (dloss + dlse)[:, None] * tl.exp(logits - lse[:, None])
    wanted = tl.where(target[:, None] == v[None, :], hit, 0.0) + share
    slope -= dloss[:, None] * wanted
    if SOFTCAP > 0:
        slope *= 1 - bent * bent
    return tl.where((v < num_items)[None, :], slope, 0.0)


@triton.jit(do_not_specialize=["num_rows", "num_items"])
def _forward(
    x,
    table,
    bias,
    target,
    num_rows,
    num_items,
    dim,
    parts,
    shares,
    SOFTCAP: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """parts [4, shares, N]: maximum, sum of exponentials, target's logit, sum of logits."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    share = tl.program_id(1)
    d = tl.arange(0, BLOCK_D)
    x_ND = _rows(x, n, d, num_rows, dim)
    wanted = tl.load(target + n, mask=n < num_rows, other=-1)
    top = tl.full((BLOCK_N,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_N,), tl.float32)
    target_logit = tl.zeros((BLOCK_N,), tl.float32)
    sum_logits = tl.zeros((BLOCK_N,), tl.float32)
    per_share = tl.cdiv(tl.cdiv(num_items, BLOCK_V), shares) * BLOCK_V
    last = tl.minimum((share + 1) * per_share, num_items)
    for first in range(share * per_share, last, BLOCK_V):
        v = first + tl.arange(0, BLOCK_V)
        table_VD = _rows(table, v, d, num_items, dim)
        logits, _ = _logits(x_ND, table_VD, bias, v, num_items, SOFTCAP, PRECISION)
        higher = tl.maximum(top, tl.max(logits, axis=1))
        # Where nothing was above minus infinity yet, there is no sum to rescale.
        base = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(top - base) + tl.sum(tl.exp(logits - base[:, None]), axis=1)
        top = higher
        is_target = wanted[:, None] == v[None, :]
        target_logit += tl.sum(tl.where(is_target, logits, 0.0), axis=1)
        sum_logits += tl.sum(tl.where((v < num_items)[None, :], logits, 0.0), axis=1)
    place = parts + share.to(tl.int64) * num_rows + n
    stride = shares.to(tl.int64) * num_rows
    tl.store(place, top, mask=n < num_rows)
    tl.store(place + stride, total, mask=n < num_rows)
    tl.store(place + 2 * stride, target_logit, mask=n < num_rows)
    tl.store(place + 3 * stride, sum_logits, mask=n < num_rows)


@triton.jit(do_not_specialize=["num_rows", "num_items"])
def _backward_x(
    x,
    table,
    bias,
    target,
    num_rows,
    num_items,
    dim,
    dloss,
    dlse,
    lse,
    dx,
    hit,
    smooth,
    shares,
    SOFTCAP: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    share = tl.program_id(1)
    d = tl.arange(0, BLOCK_D)
    real = n < num_rows
    x_ND = _rows(x, n, d, num_rows, dim)
    wanted = tl.load(target + n, mask=real, other=-1)
    dloss_N = tl.load(dloss + n, mask=real, other=0.0)
    dlse_N = tl.load(dlse + n, mask=real, other=0.0)
    lse_N = tl.load(lse + n, mask=real, other=0.0)
    dx_ND = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    per_share = tl.cdiv(tl.cdiv(num_items, BLOCK_V), shares) * BLOCK_V
    last = tl.minimum((share + 1) * per_share, num_items)
    for first in range(share * per_share, last, BLOCK_V):
        v = first + tl.arange(0, BLOCK_V)
        table_VD = _rows(table, v, d, num_items, dim)
        slope_NV = _slopes(
            x_ND, table_VD, bias, wanted, v, num_items, dloss_N, dlse_N, lse_N, hit, smooth,
            SOFTCAP, PRECISION,
        )  # fmt: skip
        dx_ND += tl.dot(slope_NV.to(table_VD.dtype), table_VD, input_precision=PRECISION)
    row = share.to(tl.int64) * num_rows + n
    mask = real[:, None] & (d < dim)[None, :]
    tl.store(dx + row[:, None] * dim + d[None, :], dx_ND, mask=mask)


@triton.jit(do_not_specialize=["num_rows", "num_items"])
def _backward_w(
    x,
    table,
    bias,
    target,
    num_rows,
    num_items,
    dim,
    dloss,
    dlse,
    lse,
    dW,
    dbias,
    hit,
    smooth,
    shares,
    SOFTCAP: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    v = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    share = tl.program_id(1)
    d = tl.arange(0, BLOCK_D)
    inside = v < num_items
    table_VD = _rows(table, v, d, num_items, dim)
    dW_VD = tl.zeros((BLOCK_V, BLOCK_D), tl.float32)
    dbias_V = tl.zeros((BLOCK_V,), tl.float32)
    per_share = tl.cdiv(tl.cdiv(num_rows, BLOCK_N), shares) * BLOCK_N
    last = tl.minimum((share + 1) * per_share, num_rows)
    for first in range(share * per_share, last, BLOCK_N):
        n = first + tl.arange(0, BLOCK_N)
        real = n < num_rows
        x_ND = _rows(x, n, d, num_rows, dim)
        wanted = tl.load(target + n, mask=real, other=-1)
        dloss_N = tl.load(dloss + n, mask=real, other=0.0)
        dlse_N = tl.load(dlse + n, mask=real, other=0.0)
        lse_N = tl.load(lse + n, mask=real, other=0.0)
        slope_NV = _slopes(
            x_ND, table_VD, bias, wanted, v, num_items, dloss_N, dlse_N, lse_N, hit, smooth,
            SOFTCAP, PRECISION,
        )  # fmt: skip
        dW_VD += tl.dot(tl.trans(slope_NV).to(x_ND.dtype), x_ND, input_precision=PRECISION)
        dbias_V += tl.sum(slope_NV, axis=0)
    row = share.to(tl.int64) * num_items + v
    mask = inside[:, None] & (d < dim)[None, :]
    tl.store(dW + row[:, None] * dim + d[None, :], dW_VD, mask=mask)
    if dbias is not None:
        tl.store(dbias + row, dbias_V, mask=inside)
