"""A call of every Triton kernel of softmax_scan at sizes that people train with."""

import torch


def softmax_scan() -> None:
    from recsys.kernels.softmax_scan import fused

    cu_seqlens = torch.tensor([0, 50, 200])
    mask = torch.zeros(200, dtype=torch.bool)
    for dtype in (torch.float32, torch.bfloat16):
        for channels in (16, 64):
            v, o = torch.ones(200, 2, channels, dtype=dtype), torch.ones(2, 2, channels)
            s, p, lse = v[..., 0], torch.ones(200, 2), torch.ones(2, 2)
            fused.forward(s, v, lse, o, cu_seqlens, mask, mask, False)
            fused.forward(s, v, lse, o, cu_seqlens, None, None, True)
            for reverse in (False, True):
                fused.backward(v, lse, o, v, v, o, p, p, cu_seqlens, reverse)
