"""Which implementation of an operation runs, and why.

    reference   the definition, differentiated by autograd; never chosen on its own
    cpu         Numba kernels; where Numba is missing, the same as torch
    torch       in-place steps in plain torch with a hand-written backward; any device
    triton      Triton kernels on a CUDA device (on CPU tensors only under TRITON_INTERPRET=1)

An argument `backend=` goes before `use_backend`, that before the environment variable
RECSYS_KERNELS, that before the device of the tensors.
"""

import functools
import importlib
import importlib.util
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from recsys.errors import InputError, nearest

Backend = Literal["reference", "cpu", "torch", "triton"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
Obstacles = Mapping[str, str]
"""Backends that cannot run on given tensors, each with the reason."""

OPS = (
    "linear_scan",
    "softmax_scan",
    "selective_scan",
    "linear_attention",
    "rnn_scan",
    "linear_cross_entropy",
)
"""The operations: a folder of recsys.kernels each, with a function of the same name."""

_WITHOUT_NUMBA = {"linear_cross_entropy"}
"""Operations whose CPU form is matrix products of torch."""

_asked: ContextVar[str] = ContextVar("recsys_kernels_backend", default="")
_warned: set[str] = set()


class KernelWarning(UserWarning):
    """A slower implementation runs because a package is missing; given once for each reason."""


@dataclass(frozen=True)
class Choice:
    """What runs an operation."""

    op: str
    """Name of the operation."""
    backend: str
    """One of BACKENDS."""
    reason: str
    """Why this one, in a sentence for people."""


@contextmanager
def use_backend(backend: Backend) -> Iterator[None]:
    """Ask for a backend in every call inside the `with` block that names none itself."""
    token = _asked.set(_known(backend, "use_backend"))
    try:
        yield
    finally:
        _asked.reset(token)


def asked_backend(argument: str | None) -> str:
    """The backend somebody asked for, or "" where the device decides; InputError if unknown."""
    if argument is not None:
        return _known(argument, "backend")
    # The compiler cannot look into a context variable; `choose`, which it does not enter, can.
    return "" if torch.compiler.is_compiling() else _asked_around()


def _asked_around() -> str:
    if asked := _asked.get():
        return asked
    variable = os.environ.get("RECSYS_KERNELS", "")
    return _known(variable, "RECSYS_KERNELS") if variable else ""


def choose(op: str, device: torch.device, asked: str, obstacles: Obstacles) -> Choice:
    """What runs `op` on `device`; InputError where what was asked for cannot.

    `asked` is what `asked_backend` returned, `obstacles` what the operation itself cannot do.
    """
    asked = asked or _asked_around()
    if asked == "reference":
        return Choice(op, "reference", "asked for")
    missing = _missing(op, device) | dict(obstacles)
    if asked == "cpu" and "numba" in missing:
        return Choice(op, "torch", f"cpu asked for, but {missing['numba']}")
    if asked:
        if asked in missing:
            raise InputError(f"{op} cannot run on backend {asked!r}: {missing[asked]}")
        return Choice(op, asked, "asked for")
    preferred = {"cpu": "cpu", "cuda": "triton"}.get(device.type, "torch")
    if preferred == "cpu" and "numba" in missing:
        _warn_once(f"{missing['numba']}: kernels run as plain torch steps on the CPU, slower")
        return Choice(op, "torch", missing["numba"])
    if preferred not in missing:
        return Choice(op, preferred, f"tensors on {device.type}")
    if preferred == "triton" and "triton" not in obstacles:
        _warn_once(f"{missing['triton']}: kernels run as plain torch steps on the GPU, slower")
    return Choice(op, "torch", missing[preferred])


def explain(op: str, *arguments: Any, backend: Backend | None = None) -> Choice:
    """What `op` would run on its positional arguments, and why.

    >>> explain("linear_scan", torch.ones(2, 5, 4), torch.ones(2, 5, 4)).backend
    'cpu'
    """
    found = op_module(op).obstacles(*arguments)
    device = next(x.device for x in arguments if isinstance(x, Tensor))
    return choose(op, device, asked_backend(backend), found)


def available_backends(op: str, device: torch.device | str, dtype: torch.dtype) -> list[str]:
    """Backends of `op` that can run on tensors of a device and dtype, whatever their shapes."""
    missing = _missing(op, torch.device(device)) | dict(op_module(op).dtype_obstacles(dtype))
    return [backend for backend in BACKENDS if backend not in missing]


def op_module(op: str) -> Any:
    """The package of an operation; InputError for an unknown name."""
    if op not in OPS:
        raise InputError(f"unknown operation {op!r}{nearest(op, OPS)} (known: {', '.join(OPS)})")
    return importlib.import_module(f"recsys.kernels.{op}")


def dtype_obstacles(dtype: torch.dtype) -> dict[str, str]:
    """What holds for every operation: float64 is for the CPU."""
    if dtype in (torch.float64, torch.complex128):
        return {"triton": "the Triton kernels do not compute in float64"}
    return {}


def _missing(op: str, device: torch.device) -> dict[str, str]:
    """Backends that cannot run here on `device` at all, and `numba` where it is not installed."""
    missing = {}
    if device.type != "cpu":
        missing["cpu"] = f"the tensors are on {device.type}"
    elif op not in _WITHOUT_NUMBA and not _installed("numba"):
        missing["numba"] = "numba is not installed"
    if not _installed("triton"):
        missing["triton"] = "triton is not installed"
    elif device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        missing["triton"] = f"the tensors are on {device.type}"
    return missing


@functools.cache
def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _known(backend: str, where: str) -> str:
    if backend not in BACKENDS:
        names = ", ".join(BACKENDS)
        raise InputError(
            f"{where}: unknown backend {backend!r}{nearest(backend, BACKENDS)} (backends: {names})"
        )
    return backend


def _warn_once(reason: str) -> None:
    if reason not in _warned:
        _warned.add(reason)
        warnings.warn(reason, KernelWarning, stacklevel=4)
