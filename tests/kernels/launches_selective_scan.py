"""One call of every Triton kernel of selective_scan at sizes that people train with."""

import torch


def selective_scan() -> None:
    from recsys.kernels.selective_scan import fused

    cu_seqlens = torch.tensor([0, 50, 200])
    reset = torch.zeros(200, dtype=torch.bool)
    for states, dtype, options in (
        (16, torch.float32, (None, False)),
        (16, torch.bfloat16, (reset, True)),
        (32, torch.bfloat16, (None, True)),
        (64, torch.float32, (reset, False)),
    ):
        u, B = torch.ones(200, 64, dtype=dtype), torch.ones(200, states, dtype=dtype)
        A, h = torch.ones(states, 64), torch.ones(2, states, 64)
        checkpoints = torch.ones(3, states, 64)
        fused.forward(u, u, A, B, B, h, cu_seqlens, *options)
        fused.backward(u, h, u, u, A, B, B, h, checkpoints, cu_seqlens, *options)
