"""Numba for the CPU kernels: compilation, threads over sequences, and exp that vectorises.

Kernels are compiled at their first call and kept on disk beside the source (or in the user's
cache folder). A kernel's file on disk does not notice a change in another file that it inlines:
after an edit of this one, remove the `__pycache__` folders.
"""

import math
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload
from torch import Tensor

SERIAL_BYTES = 1 << 20
"""Below this much memory traffic a second thread costs more than it brings."""
SHARES = 4
"""Parts of the work for each thread."""

Kernel = Callable[..., None]
_OPTIONS: Any = {"nogil": True, "fastmath": {"contract"}, "error_model": "numpy"}


def kernel(function: Kernel) -> Kernel:
    """Compile for the types of each call, free of the interpreter's lock, a*b+c as one step."""
    try:
        return numba.njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:  # no folder to keep compiled code in can be written
        return numba.njit(**_OPTIONS)(function)


def summing(function: Callable[..., Any]) -> Callable[..., Any]:
    """`inlined`, and free to add numbers in another order, so that sums over a row vectorise.

    The order is fixed when it is compiled. Not for code with `exp`, whose rounding needs the order
    as written.
    """
    options = _OPTIONS | {"fastmath": {"contract", "reassoc"}}
    return numba.njit(forceinline=True, **options)(function)


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """A part of kernels, inlined where it is called so that loops around it vectorise."""
    return numba.njit(forceinline=True, **_OPTIONS)(function)


def over_sequences(
    function: Kernel, *arrays: np.ndarray, cu_seqlens: np.ndarray, options: tuple[Any, ...] = ()
) -> None:
    """Call function(*arrays, cu_seqlens, first, last, *options) so that each sequence goes once.

    Threads (as many as torch has) take ranges of sequences with about equal numbers of events:
    results do not depend on their number.
    """
    num_sequences = len(cu_seqlens) - 1
    threads = min(torch.get_num_threads(), num_sequences)
    if threads <= 1 or sum(array.nbytes for array in arrays) < SERIAL_BYTES:
        function(*arrays, cu_seqlens, 0, num_sequences, *options)
        return
    # More shares than threads, taken one by one: torch's own threads spin for a while after their
    # work, and a thread of ours that has to wait for such a core must not hold up the others.
    shares = threads * SHARES
    cuts = np.searchsorted(cu_seqlens[:-1], np.arange(1, shares) * int(cu_seqlens[-1]) / shares)
    left = deque(pairwise([0, *cuts.tolist(), num_sequences]))

    def work() -> None:
        while left:
            try:
                first, last = left.popleft()
            except IndexError:  # another thread was faster
                return
            function(*arrays, cu_seqlens, first, last, *options)

    helpers = [_pool().submit(work) for _ in range(threads - 1)]
    work()
    for helper in helpers:
        helper.result()


def arrays(dtype: torch.dtype, *tensors: Tensor) -> list[np.ndarray]:
    """CPU tensors as contiguous arrays of `dtype`, without a copy where they are that already."""
    return [tensor.to(dtype).resolve_conj().contiguous().numpy() for tensor in tensors]


def mask(mask_T: Tensor | None) -> np.ndarray:
    """A bool tensor as an array; one of length 0 for None, since kernels have no None."""
    return _NO_MASK if mask_T is None else mask_T.numpy()


_NO_MASK = np.empty(0, dtype=np.bool_)

_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}


def _pool() -> ThreadPoolExecutor:
    """Threads for kernels: not Numba's own, which two callers at once bring to abort."""
    # By process, since threads do not survive a fork.
    key = (os.getpid(), torch.get_num_threads())
    if key not in _pools:
        _pools[key] = ThreadPoolExecutor(max_workers=key[1], thread_name_prefix="recsys-kernel")
    return _pools[key]


@intrinsic
def _float_of_bits(typing_context: Any, bits: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


@intrinsic
def _bits_of_float(typing_context: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.int32(types.float32), generate


_LOG2_E = np.float32(1.4426950408889634)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_ROUND = np.float32(12582912.0)  # 1.5 * 2**23: adding it leaves a whole number in the last bits
_ROUND_BITS = np.int32(np.float32(12582912.0).view(np.int32))
_LOWEST, _HIGHEST = np.float32(-87.33), np.float32(88.37)


@inlined
def _exp32(x):
    """2**k * exp(r) with |r| <= ln(2) / 2 and a polynomial of degree 6: within 1e-7 of exp."""
    # Written so that a NaN passes every comparison and comes out again.
    x = _LOWEST if x < _LOWEST else (_HIGHEST if x > _HIGHEST else x)
    shifted = np.float32(x * _LOG2_E + _ROUND)
    k = shifted - _ROUND
    r = (x - k * _LN2_HIGH) - k * _LN2_LOW
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + np.float32(1.0)
    return p * _float_of_bits(
        (_bits_of_float(shifted) - _ROUND_BITS + np.int32(127)) << np.int32(23)
    )


def exp(x: float) -> float:
    """e**x in kernels: float32 without a call into libm, so that loops vectorise; float64 exact.

    In float32 x below -87.3 gives 1e-38 and x above 88.3 gives 2e38, never 0 or infinity.
    """
    return math.exp(x)


@overload(exp, jit_options={"forceinline": True})
def _exp(x):
    if x == types.float32:
        return lambda x: _exp32(x)
    return lambda x: math.exp(x)


def sigmoid(x: float) -> float:
    """1 / (1 + e**-x) in kernels."""
    return 1 / (1 + math.exp(-x))


@overload(sigmoid, jit_options={"forceinline": True})
def _sigmoid(x):
    one = np.float32(1) if x == types.float32 else 1.0
    return lambda x: one / (one + exp(-x))


def tanh(x: float) -> float:
    """tanh in kernels, to 4e-7 of itself however small: states start near 0.

    In float32 a quotient of polynomials as in Eigen, one division and no exponential.
    """
    return math.tanh(x)


_ODD = [
    4.89352455891786e-03,
    6.37261928875436e-04,
    1.48572235717979e-05,
    5.12229709037114e-08,
    -8.60467152213735e-11,
    2.00018790482477e-13,
    -2.76076847742355e-16,
]
_EVEN = [4.89352518554385e-03, 2.26843463243900e-03, 1.18534705686654e-04, 1.19825839466702e-06]
_P0, _P1, _P2, _P3, _P4, _P5, _P6 = (np.float32(c) for c in _ODD)
_Q0, _Q1, _Q2, _Q3 = (np.float32(c) for c in _EVEN)
_END = np.float32(7.90531110763549805)  # from where on tanh rounds to 1


@overload(tanh, jit_options={"forceinline": True})
def _tanh(x):
    if x != types.float32:
        return lambda x: math.tanh(x)

    def rational(x):
        # Written so that a NaN passes every comparison and comes out again.
        x = -_END if x < -_END else (_END if x > _END else x)
        s = x * x
        p = _P4 + s * (_P5 + s * _P6)
        p = _P0 + s * (_P1 + s * (_P2 + s * (_P3 + s * p)))
        return x * p / (_Q0 + s * (_Q1 + s * (_Q2 + s * _Q3)))

    return rational
