"""linear_cross_entropy in plain torch, a block of logits at a time, on any device.

`weighted` takes gradients while a block's probabilities are at hand: six N V D multiply-adds in all
(logits, dx, dW), the same as plain autograd. Where not even 128 rows of logits fit the memory
budget, blocks are tiles of rows and items, and logits are computed twice (eight N V D): W and dW
are then walked tile by tile, not read and written again for every few rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

BUFFER_BYTES = 6 << 20
"""Size of the logits buffer. At V = 12,101, D = 64 on two cores, 3 to 16 MB are equally fast."""
MIN_ROWS = 128
"""Fewer rows than this read W and write dW too often for what they compute."""
TILE = (512, 2048)
"""Rows and items of a tile, whose logits (4 MB) stay in the cache."""


@dataclass(frozen=True)
class Problem:
    """What has a loss: rows of x against the rows of a table."""

    x_ND: Tensor
    weight_VD: Tensor
    bias_V: Tensor | None
    target_N: Tensor
    label_smoothing: float
    softcap: float
    """0 for none."""
    memory_budget: int
    """Bytes that the logits of one block may take."""

    @property
    def sums(self) -> torch.dtype:
        """The dtype of losses and of sums of gradients: float32, or float64 for float64."""
        return torch.promote_types(self.x_ND.dtype, torch.float32)

    def rows_per_chunk(self) -> int:
        """Rows whose logits over the whole catalogue make one block; 0 if that is too much."""
        num_rows, row_bytes = len(self.x_ND), len(self.weight_VD) * self.x_ND.element_size()
        rows = max(1, min(num_rows, max(MIN_ROWS, BUFFER_BYTES // max(1, row_bytes))))
        return rows if rows * row_bytes <= self.memory_budget else 0

    def blocks(self) -> tuple[int, int]:
        """(rows, items) of a block."""
        rows = self.rows_per_chunk()
        return (rows, len(self.weight_VD)) if rows else TILE

    def logits(self, rows: slice, items: slice, out: Tensor) -> Tensor:
        """[R, I] logits of a block, in the memory of `out`, before softcap."""
        x, table = self.x_ND[rows], self.weight_VD[items]
        block = out.flatten()[: len(x) * len(table)].view(len(x), len(table))
        return _logits(x, table, None if self.bias_V is None else self.bias_V[items], block)


def forward(problem: Problem) -> tuple[Tensor, Tensor]:
    """([N] loss, [N] log of the sum of exponentials), in `problem.sums`."""
    num_rows, num_items = len(problem.x_ND), len(problem.weight_VD)
    new: Any = {"dtype": problem.sums, "device": problem.x_ND.device}
    top_N = torch.full((num_rows,), -torch.inf, **new)
    total_N, wanted_N = torch.zeros(num_rows, **new), torch.zeros(num_rows, **new)
    for rows, items, buffer in _blocks(problem):
        # In float32 from here: a bf16 maximum is off by 3 % of a probability.
        block = problem.logits(rows, items, buffer).to(problem.sums)
        block = _capped(block, problem.softcap)
        target, inside = _target_inside(problem, rows, items)
        target_logit = block.gather(1, target[:, None])[:, 0]
        wanted_N[rows] += (1 - problem.label_smoothing) * target_logit.where(inside, 0)
        if problem.label_smoothing:
            share = problem.label_smoothing / num_items
            wanted_N[rows] += share * block.sum(dim=1)
        top = torch.maximum(top_N[rows], block.amax(dim=1))
        # Where nothing was above minus infinity yet, there is no sum to rescale.
        base = top.masked_fill(top == -torch.inf, 0)
        total_N[rows] *= (top_N[rows] - base).exp_()
        total_N[rows] += block.sub_(base[:, None]).exp_().sum(dim=1)
        top_N[rows] = top
    lse_N = top_N + total_N.log()
    return lse_N - wanted_N, lse_N


def backward(
    problem: Problem, dloss_N: Tensor, dlse_N: Tensor, lse_N: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(dx [N, D], dW [V, D], dbias [V] or None) in `problem.sums`, the logits computed again."""
    dx_ND, dW_VD, dbias_V = _zero_gradients(problem)
    scale_N, share = dloss_N + dlse_N, problem.label_smoothing / len(problem.weight_VD)
    for rows, items, buffer in _blocks(problem):
        block = problem.logits(rows, items, buffer).to(problem.sums)
        block = _capped(block, problem.softcap)
        slope = 1 - (block / problem.softcap).square_() if problem.softcap else None
        # d loss / d logits = scale * probability - dloss * wanted distribution.
        block.sub_(lse_N[rows, None]).exp_().mul_(scale_N[rows, None])
        if share:
            block.sub_(share * dloss_N[rows, None])
        target, inside = _target_inside(problem, rows, items)
        hit = (1 - problem.label_smoothing) * dloss_N[rows].where(inside, 0)
        block[torch.arange(len(block), device=block.device), target] -= hit
        if slope is not None:
            block.mul_(slope)
        if dbias_V is not None:
            dbias_V[items] += block.sum(dim=0)
        block = block.to(problem.x_ND.dtype)
        dx_ND[rows] += torch.mm(block, problem.weight_VD[items])
        dW_VD[items] += torch.mm(block.T, problem.x_ND[rows])
    return dx_ND, dW_VD, dbias_V


def weighted(
    problem: Problem, row_weight_N: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """(sum of row_weight * loss [], dx [N, D], dW [V, D], dbias [V] or None)."""
    chunk = problem.rows_per_chunk()
    if not chunk or problem.softcap:
        loss_N, lse_N = forward(problem)
        weight_N = row_weight_N.to(problem.sums)
        gradients = backward(problem, weight_N, torch.zeros_like(weight_N), lse_N)
        return (weight_N * loss_N).sum(), *gradients
    num_rows, num_items = len(problem.x_ND), len(problem.weight_VD)
    x_ND, table, sums = problem.x_ND, problem.weight_VD, problem.sums
    smoothing, share = problem.label_smoothing, problem.label_smoothing / num_items
    buffer_CV = x_ND.new_empty(chunk, num_items)
    rows_C = torch.arange(chunk, device=x_ND.device)
    dx_ND, dW_VD, dbias_V = _zero_gradients(problem)
    loss = torch.zeros((), dtype=sums, device=x_ND.device)
    for start in range(0, num_rows, chunk):
        x_CD, target_C, weight_C = _chunk(x_ND, problem.target_N, row_weight_N, start, chunk)
        logits_CV = _logits(x_CD, table, problem.bias_V, buffer_CV)
        mean_C = logits_CV.mean(dim=1, dtype=sums) if smoothing else None
        target_logit_C = logits_CV.gather(1, target_C[:, None])[:, 0].to(sums)
        lse_C, probability_CV = _softmax_in_place(logits_CV, sums)
        loss_C = lse_C - target_logit_C
        if mean_C is not None:
            loss_C = loss_C + smoothing * (target_logit_C - mean_C)
            probability_CV -= share
        loss += (weight_C.to(sums) * loss_C).sum()
        # From here on: d loss / d logits = weight * (probability - wanted distribution).
        # Not scatter_add_, which copies the whole of a bf16 tensor twice on a CPU.
        probability_CV[rows_C, target_C] -= 1 - smoothing
        real = min(chunk, num_rows - start)
        grad_CD = torch.mm(probability_CV, table).to(sums) * weight_C[:, None]
        dx_ND[start : start + real] = grad_CD[:real]
        weighted_x_CD = x_CD * weight_C[:, None].to(x_CD.dtype)
        if dbias_V is not None:
            dbias_V += weight_C.to(sums) @ probability_CV.to(sums)
        if table.dtype == sums:
            dW_VD.addmm_(probability_CV.T, weighted_x_CD)
        else:
            dW_VD += torch.mm(probability_CV.T, weighted_x_CD)
    return loss, dx_ND, dW_VD, dbias_V


def _blocks(problem: Problem) -> Iterator[tuple[slice, slice, Tensor]]:
    """Rows and items of each block, with memory for its logits; items in the outer loop."""
    num_rows, num_items = len(problem.x_ND), len(problem.weight_VD)
    size, width = problem.blocks()
    buffer = problem.x_ND.new_empty(min(size, num_rows), min(width, num_items))
    for item in range(0, num_items, width):
        for row in range(0, num_rows, size):
            yield slice(row, min(row + size, num_rows)), slice(item, item + width), buffer


def _capped(logits: Tensor, softcap: float) -> Tensor:
    return logits.div_(softcap).tanh_().mul_(softcap) if softcap else logits


def _target_inside(problem: Problem, rows: slice, items: slice) -> tuple[Tensor, Tensor]:
    """([R] each row's target as a column of the block, or any column; [R] bool which it is)."""
    width = min(items.stop, len(problem.weight_VD)) - items.start
    column = problem.target_N[rows] - items.start
    inside = (column >= 0) & (column < width)
    return column.clamp(0, width - 1), inside


def _zero_gradients(problem: Problem) -> tuple[Tensor, Tensor, Tensor | None]:
    new: Any = {"dtype": problem.sums, "device": problem.x_ND.device}
    bias = problem.bias_V
    return (
        torch.zeros(problem.x_ND.shape, **new),
        torch.zeros(problem.weight_VD.shape, **new),
        None if bias is None else torch.zeros(bias.shape, **new),
    )


def _logits(x_CD: Tensor, table: Tensor, bias_V: Tensor | None, out: Tensor) -> Tensor:
    if bias_V is None:
        return torch.mm(x_CD, table.T, out=out)
    return torch.addmm(bias_V, x_CD, table.T, out=out)


def _chunk(
    x_ND: Tensor, target_N: Tensor, weight_N: Tensor, start: int, chunk: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows start to start + chunk; behind the end, rows of weight 0.

    All chunks have one shape: low-precision products on a CPU are compiled for each shape they
    meet, and a new length at the end of every batch would fill the memory with them.
    """
    x_CD, target_C, weight_C = (part[start : start + chunk] for part in (x_ND, target_N, weight_N))
    missing = chunk - len(x_CD)
    if not missing:
        return x_CD, target_C, weight_C
    pad = torch.nn.functional.pad
    return pad(x_CD, (0, 0, 0, missing)), pad(target_C, (0, missing)), pad(weight_C, (0, missing))


def _softmax_in_place(logits_CV: Tensor, sums: torch.dtype) -> tuple[Tensor, Tensor]:
    """([C] log of the sum of exponentials, [C, V] probabilities in the logits' place)."""
    top_C = logits_CV.amax(dim=1)
    probability_CV = torch._softmax(logits_CV, 1, False, out=logits_CV)
    # lse = max - log(max p): the largest p is at least 1/V, so the logarithm is always safe, where
    # log p(target) would underflow for a target far below the best item.
    return top_C.to(sums) - _largest(probability_CV).to(sums).log(), probability_CV


def _largest(probability_CV: Tensor) -> Tensor:
    """[C] row maxima of floats that are not negative, whose bits are in order as whole numbers.

    On two cores 8 times faster in bf16 than `amax`, and 30 times than `max` with its index.
    """
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[probability_CV.element_size()]
    return probability_CV.view(bits).amax(dim=1).view(probability_CV.dtype)
