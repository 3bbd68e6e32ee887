"""linear_cross_entropy: the softmax loss of x Wᵀ over a whole catalogue, never holding [N, V].

No gradient is filtered: a rule that drops small ones, as language models use, takes most of the
push on negatives away while a large catalogue is still near its uniform start.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from recsys.errors import InputError
from recsys.kernels.backends import Backend, asked_backend, dtype_obstacles
from recsys.kernels.linear_cross_entropy.operator import (
    obstacles,
    rows,
    weighted_sum,
)
from recsys.kernels.linear_cross_entropy.reference import linear_cross_entropy_reference
from recsys.kernels.operators import in_own_precision
from recsys.kernels.packing import check_device, check_shape

__all__ = [
    "dtype_obstacles",
    "linear_cross_entropy",
    "linear_cross_entropy_reference",
    "obstacles",
]

MEMORY_BUDGET = 256 << 20


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    bias: Tensor | None = None,
    row_weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Literal["mean", "sum", "none"] = "mean",
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    softcap: float = 0.0,
    return_lse: bool = False,
    compute_dtype: torch.dtype | None = None,
    memory_budget: int = MEMORY_BUDGET,
    backend: Backend | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Cross-entropy of logits x Wᵀ / temperature + bias against target: [] or, for "none", [N].

    x [N, D], weight [V, D], bias [V] floating; target [N] int64 in [0, V), or `ignore_index` for
    rows of no loss. `row_weight` [N] weighs rows; "mean" divides by the sum of weights that count
    (NaN where nothing counts, as torch has it), "sum" does not. `softcap` c > 0 bends logits to
    c tanh(logit / c). `return_lse` adds the [N] logarithms of the sums of exponentials, with
    gradient. `compute_dtype` (bf16, say) is the dtype of the matrix products; the loss and all sums
    are float32 whatever it is. `memory_budget` bounds the logits held at a time, in bytes.
    InputError for shapes and settings that do not fit and, on the CPU, for targets out of range.
    """
    _check(x, weight, target, bias, row_weight, label_smoothing, temperature, softcap, reduction)
    counts_N = target != ignore_index
    target = target.masked_fill(~counts_N, 0)
    x = x if temperature == 1 else x / temperature
    asked = asked_backend(backend)
    if asked == "reference":
        loss_N, lse_N = _by_definition(x, weight, bias, target, label_smoothing, softcap)
        return _reduced(loss_N, lse_N, counts_N, row_weight, reduction, return_lse)
    dtype = compute_dtype or x.dtype
    settings = (label_smoothing, softcap, memory_budget, dtype, asked)
    learns = torch.is_grad_enabled() and any(
        part is not None and part.requires_grad for part in (x, weight, bias)
    )
    weight_learns = row_weight is not None and row_weight.requires_grad
    empty = not torch.compiler.is_compiling() and not len(x)  # a compiler may not know
    if reduction == "none" or return_lse or weight_learns or not learns or empty:
        loss_N, lse_N = rows(x, weight, bias, target, *settings)
        return _reduced(loss_N, lse_N, counts_N, row_weight, reduction, return_lse)
    weight_N = counts_N.to(torch.promote_types(x.dtype, torch.float32))
    if row_weight is not None:
        weight_N = weight_N * row_weight
    if reduction == "mean":
        weight_N = weight_N / weight_N.sum()
    loss: Tensor = weighted_sum(x, weight, bias, target, weight_N, *settings)[0]
    return loss


def _reduced(
    loss_N: Tensor,
    lse_N: Tensor,
    counts_N: Tensor,
    row_weight: Tensor | None,
    reduction: str,
    return_lse: bool,
) -> Tensor | tuple[Tensor, Tensor]:
    loss = loss_N * counts_N
    if row_weight is not None:
        loss = loss * row_weight
    if reduction != "none":
        total = loss.sum()
        scale = counts_N.sum() if row_weight is None else (counts_N * row_weight).sum()
        loss = total / scale if reduction == "mean" else total
    return (loss, lse_N) if return_lse else loss


def _by_definition(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    label_smoothing: float,
    softcap: float,
) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(x.dtype, torch.float32)
    parts = (x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))
    with in_own_precision(x.device):
        return linear_cross_entropy_reference(*parts, target, label_smoothing, softcap)


def _check(
    x: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    row_weight: Tensor | None,
    label_smoothing: float,
    temperature: float,
    softcap: float,
    reduction: str,
) -> None:
    check_device(x, weight, target, bias, row_weight)
    if x.dim() != 2 or weight.dim() != 2 or x.shape[1] != weight.shape[1] or not len(weight):
        raise InputError(
            f"x [N, D] and weight [V, D] with V > 0 must share D, got {tuple(x.shape)} and "
            f"{tuple(weight.shape)}"
        )
    check_shape(target, (len(x),), "target")
    if bias is not None:
        check_shape(bias, (len(weight),), "bias")
    if row_weight is not None:
        check_shape(row_weight, (len(x),), "row_weight")
    if not 0 <= label_smoothing <= 1:
        raise InputError(f"label_smoothing must lie in [0, 1], got {label_smoothing}")
    if not (temperature > 0 and math.isfinite(temperature)):
        raise InputError(f"temperature must be above 0 and finite, got {temperature}")
    if not softcap >= 0:
        raise InputError(f"softcap must not be below 0, got {softcap}")
    if reduction not in ("mean", "sum", "none"):
        raise InputError(f"reduction must be mean, sum or none, got {reduction!r}")
