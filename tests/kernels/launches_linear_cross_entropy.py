"""Launches of linear_cross_entropy, to be compiled ahead of time."""

import torch

from recsys.kernels.linear_cross_entropy import fused
from recsys.kernels.linear_cross_entropy.chunked import Problem


def linear_cross_entropy() -> None:
    target, ones = torch.zeros(640, dtype=torch.int64), torch.ones(640)
    for dtype, dim, softcap, biased in (
        (torch.float32, 64, 0.0, False),
        (torch.bfloat16, 64, 0.0, False),
        (torch.bfloat16, 128, 0.0, True),
        (torch.float32, 128, 0.0, False),
        (torch.bfloat16, 256, 2.0, True),
    ):
        x, weight = torch.ones(640, dim, dtype=dtype), torch.ones(1200, dim, dtype=dtype)
        bias = torch.ones(1200, dtype=dtype) if biased else None
        problem = Problem(x, weight, bias, target, 0.1, softcap, 1 << 20)
        fused.forward(problem)
        fused.backward(problem, ones, ones, ones)
