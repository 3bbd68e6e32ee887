"""Launches of linear_scan at sizes that people train with, to be compiled ahead of time."""

import torch


def linear_scan() -> None:
    from recsys.kernels.linear_scan import fused

    cu_seqlens = torch.tensor([0, 50, 200])
    for dtype in (torch.float32, torch.bfloat16, torch.complex64):
        b, h = torch.ones(200, 64, dtype=dtype), torch.ones(2, 64)
        h = h.to(dtype) if dtype.is_complex else h
        reset = torch.zeros(200, dtype=torch.bool)
        for a in (b, b[:, :4], b[:1]):
            fused.forward(a, b, h, cu_seqlens, reset, False)
            fused.backward(b, h, a, b, h, cu_seqlens, reset, False)
