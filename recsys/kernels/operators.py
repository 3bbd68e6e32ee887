"""Operations as torch operators: opaque to torch.compile, differentiable once.

Not `torch.library.custom_op`: its first call imports torch's compiler, 1.3 s and 150 MB that a
service which only reads out a model has no use for.
"""

import functools
import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from recsys.errors import InputError
from recsys.kernels.backends import Obstacles, choose

_FILES = {"cpu": "cpu", "torch": "walk", "triton": "fused"}
"""The file of an operation's folder that holds a backend's `forward` and `backward`."""

_LIBRARY = torch.library.Library("recsys", "DEF")


def implementation(op: str, device: torch.device, asked: str, obstacles: Obstacles) -> Any:
    """The module whose `forward` and `backward` run `op` on `device`; see `choose`."""
    backend = choose(op, device, asked, obstacles).backend
    if backend not in _FILES:  # use_backend around a compiled function
        raise InputError(f"a compiled function takes backend={backend!r} as an argument only")
    return importlib.import_module(f"recsys.kernels.{op}.{_FILES[backend]}")


def in_own_precision(device: torch.device) -> AbstractContextManager[Any]:
    """A block in which products are not rounded by an autocast around it: states and sums are in
    float32 whatever the inputs are, and what rounds its products says so by an argument."""
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def define(name: str, run: Callable[..., Any], shapes: Callable[..., Any]) -> Callable[..., Any]:
    """The operator recsys::name that calls `run`; its annotations are the schema.

    `shapes`, with the same arguments, returns empty tensors of the results' shapes and dtypes.
    """

    @functools.wraps(run)
    def implemented(*arguments: Any) -> Any:
        tensors = [x for x in arguments if isinstance(x, Tensor)]
        if any(map(_has_tangent, tensors)):
            raise NotImplementedError(
                f"recsys::{name} has no forward-mode derivative; backend='reference' has"
            )
        with in_own_precision(tensors[0].device):
            return run(*arguments)

    _LIBRARY.define(name + torch.library.infer_schema(run, mutates_args=()))
    _LIBRARY.impl(name, implemented, "CompositeExplicitAutograd")
    torch.library.register_fake(f"recsys::{name}", shapes, lib=_LIBRARY)
    operator: Callable[..., Any] = getattr(torch.ops.recsys, name)
    return operator


def _has_tangent(x: Tensor) -> bool:
    return forward_ad.unpack_dual(x).tangent is not None


def differentiate(name: str, save: Callable[..., None], backward: Callable[..., Any]) -> None:
    """Give recsys::name a gradient: `save(ctx, inputs, output)`, `backward(ctx, *grads)`.

    `backward` should call recsys::{name}_backward, which is closed to a second differentiation.
    """

    def no_second_derivative(ctx: Any, *grads: Any) -> None:
        raise NotImplementedError(
            f"recsys::{name} has no second derivative; backend='reference' has"
        )

    torch.library.register_autograd(f"recsys::{name}", backward, setup_context=save, lib=_LIBRARY)
    torch.library.register_autograd(f"recsys::{name}_backward", no_second_derivative, lib=_LIBRARY)
