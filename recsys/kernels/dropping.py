"""The two passes of dropout on a CPU, over flat arrays and all threads."""

import numpy as np
import torch
from torch import Tensor

from recsys.kernels.compiled import kernel, over_sequences

PIECES = 32
"""Parts that threads take one by one."""


def drop(x: Tensor, words: Tensor, threshold: int, scale: float) -> tuple[Tensor, Tensor]:
    """(x times scale where a word reaches the threshold, else 0; uint8 1 where it does).

    x float32 [...] contiguous, words int16 with one for each value.
    """
    y, keep = torch.empty_like(x), torch.empty(x.shape, dtype=torch.uint8)
    arrays = (x, words, y, keep)
    _over_pieces(_drop, *arrays, options=(np.int16(threshold), np.float32(scale)))
    return y, keep


def drop_again(grad: Tensor, keep: Tensor, scale: float) -> Tensor:
    """grad times scale where `keep` is 1, else 0. float32 [...] contiguous."""
    y = torch.empty_like(grad)
    _over_pieces(_drop_again, grad, keep, y, options=(np.float32(scale),))
    return y


def _over_pieces(function, *tensors: Tensor, options: tuple) -> None:
    flat = [tensor.view(-1).numpy() for tensor in tensors]
    cuts = np.linspace(0, tensors[0].numel(), PIECES + 1).astype(np.int64)
    over_sequences(function, *flat, cu_seqlens=cuts, options=options)


@kernel
def _drop(x, words, y, keep, cu, first, last, threshold, scale):
    zero = np.float32(0)
    for i in range(cu[first], cu[last]):
        kept = words[i] >= threshold
        keep[i] = kept
        y[i] = x[i] * scale if kept else zero


@kernel
def _drop_again(grad, keep, y, cu, first, last, scale):
    for i in range(cu[first], cu[last]):
        y[i] = grad[i] * (scale * np.float32(keep[i]))
