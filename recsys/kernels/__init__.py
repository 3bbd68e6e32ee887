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
from recsys.kernels.linear_attention import (
    AttentionState,
    linear_attention,
    linear_attention_step,
)
from recsys.kernels.linear_cross_entropy import linear_cross_entropy
from recsys.kernels.linear_scan import linear_scan, linear_scan_step
from recsys.kernels.rnn_scan import GRU, LSTM, Cell, rnn_scan, rnn_scan_step
from recsys.kernels.selective_scan import selective_scan, selective_scan_step
from recsys.kernels.softmax_scan import SoftmaxState, softmax_scan, softmax_scan_step

__all__ = [
    "GRU",
    "LSTM",
    "AttentionState",
    "Cell",
    "Choice",
    "KernelWarning",
    "SoftmaxState",
    "available_backends",
    "explain",
    "linear_attention",
    "linear_attention_step",
    "linear_cross_entropy",
    "linear_scan",
    "linear_scan_step",
    "rnn_scan",
    "rnn_scan_step",
    "selective_scan",
    "selective_scan_step",
    "softmax_scan",
    "softmax_scan_step",
    "use_backend",
]
