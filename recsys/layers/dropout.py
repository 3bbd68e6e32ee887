"""Dropout (Srivastava et al. 2014), with a form for the CPU that draws four decisions at once."""

from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Dropout(nn.Module):
    """Zeroes a share `p` of the values in training and scales the rest by 1 / (1 - p).

    On a CPU, `p` is rounded to a multiple of 2^-16.
    """

    def __init__(self, p: float):
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"p must lie in [0, 1), got {p}")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """The shape of `x`."""
        if not self.training or self.p == 0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.p)
        return _Drop.apply(x, self.p)


class _Drop(torch.autograd.Function):
    """Keeps one byte a value for the backward pass; torch's own on a CPU keeps a float.

    Torch's own draws 64 random bits for each value, one after the other; here one draw decides
    about four values, and each way is one pass over them.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        threshold = min(round(p * 2**16), 2**16 - 1)
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        ctx.scale = 2**16 / (2**16 - threshold)
        drop = _compiled().drop if _is_plain(x) else _drop
        y, keep = drop(x, words.view(torch.int16)[: x.numel()], threshold - 2**15, ctx.scale)
        ctx.save_for_backward(keep)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (keep,) = ctx.saved_tensors
        if _is_plain(grad):
            return _compiled().drop_again(grad, keep, ctx.scale), None
        return grad * keep.to(grad.dtype).mul_(ctx.scale), None


def _compiled() -> ModuleType:
    """Imported when something is dropped: Numba takes a third of a second, which serving saves."""
    from recsys.kernels import dropping

    return dropping


def _is_plain(x: Tensor) -> bool:
    return x.dtype == torch.float32 and x.is_contiguous()


def _drop(x: Tensor, words: Tensor, threshold: int, scale: float) -> tuple[Tensor, Tensor]:
    """`dropping.drop` for every dtype and layout."""
    # As bytes: to turn them into floats is 8 times faster than for bools.
    keep = (words >= threshold).view(x.shape).view(torch.uint8)
    return x * keep.to(x.dtype).mul_(scale), keep
