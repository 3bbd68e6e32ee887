"""Pure functions on tensors that recurrent, state-space and attention models and losses run on.

One folder an operation: its definition (`reference`), and faster forms of it for a CPU (`cpu`), for
plain torch (`walk`) and for a GPU (`fused`). `backends` says which of them runs, and why.
"""

from recsys.kernels.backends import (
    Choice,
    KernelWarning,
    available_backends,
    explain,
    use_backend,
)
from recsys.kernels.linear_cross_entropy import linear_cross_entropy
from recsys.kernels.linear_scan import linear_scan, linear_scan_step

__all__ = [
    "Choice",
    "KernelWarning",
    "available_backends",
    "explain",
    "linear_cross_entropy",
    "linear_scan",
    "linear_scan_step",
    "use_backend",
]
