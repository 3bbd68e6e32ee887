"""Softmax cross-entropy of x Wᵀ over a whole catalogue, without ever holding [N, V]."""

from recsys.kernels.linear_cross_entropy.chunked import linear_cross_entropy
from recsys.kernels.linear_cross_entropy.reference import linear_cross_entropy_reference

__all__ = ["linear_cross_entropy", "linear_cross_entropy_reference"]
