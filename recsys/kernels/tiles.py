"""Parts of Triton kernels that scan tiles of time: [BLOCK_T, …], in walking order."""

import triton
import triton.language as tl


@triton.jit
def after(a, b, later_a, later_b):
    """One affine map after another: later(x -> a x + b)."""
    return later_a * a, later_a * b + later_b


@triton.jit
def last_row(x, BLOCK_T: tl.constexpr):
    """The last row of a tile."""
    rows = tl.arange(0, BLOCK_T)[:, None]
    return tl.sum(tl.where(rows == BLOCK_T - 1, x, 0.0), axis=0)
