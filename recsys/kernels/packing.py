"""Sequences on one flat time axis, the form that every fast kernel works on.

A batch [B, L, …] is the flat [B L, …] with sequence n at n L … (n + 1) L; packed sequences are
flat already, with sequence n at cu_seqlens[n] … cu_seqlens[n + 1]. So one kernel serves both.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from recsys.errors import InputError


@dataclass(frozen=True)
class Times:
    """Where N sequences lie on a time axis of T events."""

    cu_seqlens: Tensor
    """[N + 1] int64, 0 first, T last, never falling: sequence n is cu[n] … cu[n + 1]."""
    shape: torch.Size
    """Leading sizes of the user's tensors: (B, L), or (T,) where the sequences are packed."""

    @property
    def num_sequences(self) -> int:
        """N."""
        return len(self.cu_seqlens) - 1

    def flat(self, x: Tensor, name: str) -> Tensor:
        """[T, …] of [B, L, …] or [T, …]; InputError if its leading sizes are others."""
        if x.shape[: len(self.shape)] != self.shape:
            raise InputError(
                f"{name} must begin with sizes {tuple(self.shape)}, got {tuple(x.shape)}"
            )
        return x if len(self.shape) == 1 else x.flatten(0, 1)

    def unflat(self, x: Tensor) -> Tensor:
        """The user's form of a flat result."""
        return x if len(self.shape) == 1 else x.unflatten(0, self.shape)

    def flat_mask(self, mask: Tensor | None, name: str) -> Tensor | None:
        """[T] bool of [B, L] or [T] bool."""
        if mask is None:
            return None
        if mask.dtype != torch.bool or mask.dim() != len(self.shape):
            raise InputError(f"{name} must be bool of shape {tuple(self.shape)}")
        return self.flat(mask, name).contiguous()


def times_of(x: Tensor, cu_seqlens: Tensor | None) -> Times:
    """The sequences of x [B, L, …], or of x [T, …] where cu_seqlens [N + 1] is given."""
    if cu_seqlens is None:
        if x.dim() < 2:
            raise InputError(f"expected [batch, time, …], got shape {tuple(x.shape)}")
        rows = torch.arange(x.shape[0] + 1, device=x.device)
        return Times(rows * x.shape[1], x.shape[:2])
    if cu_seqlens.dim() != 1 or cu_seqlens.is_floating_point() or len(cu_seqlens) == 0:
        raise InputError("cu_seqlens must be a row of whole numbers, 0 first")
    return Times(cu_seqlens.to(device=x.device, dtype=torch.int64), x.shape[:1])


def state_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype that carries a scan: float32, or wider or complex where an input is."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def check_cu_seqlens(cu_seqlens: Tensor, total: int) -> None:
    """InputError where cu_seqlens (on the CPU) would lead a kernel out of its T = total events."""
    rising = bool((cu_seqlens[1:] >= cu_seqlens[:-1]).all())
    if not rising or int(cu_seqlens[0]) != 0 or int(cu_seqlens[-1]) != total:
        raise InputError(
            f"cu_seqlens must begin with 0, never fall and end with {total}, got "
            f"{cu_seqlens.tolist() if len(cu_seqlens) < 20 else 'another row'}"
        )


def check_shape(x: Tensor, shape: Sequence[int], name: str) -> None:
    """InputError where x has another shape."""
    if x.shape != torch.Size(shape):
        raise InputError(f"{name} must have shape {tuple(shape)}, got {tuple(x.shape)}")


def check_floating(**tensors: Tensor | None) -> None:
    """InputError where a tensor, called by its name, does not hold real floating numbers."""
    for name, x in tensors.items():
        if x is not None and not x.is_floating_point():
            raise InputError(f"{name} must be real floating numbers, got {x.dtype}")


def check_device(*tensors: Tensor | None) -> None:
    """InputError where tensors lie on different devices."""
    devices = {tensor.device for tensor in tensors if tensor is not None}
    if len(devices) > 1:
        raise InputError(f"tensors on different devices: {', '.join(map(str, devices))}")


class Padded:
    """Flat sequences as rows of equal length in walking order, for steps in plain torch.

    Walking order is time, or time from the end for `reverse`; shorter rows are filled at their end.
    """

    def __init__(self, cu_seqlens: Tensor, total: int, reverse: bool) -> None:
        self.total = total
        lengths_N = cu_seqlens.diff()
        self.num_rows = len(lengths_N)
        self.length = int(lengths_N.max()) if self.num_rows else 0
        self.equal = self.num_rows * self.length == total
        self.reverse = reverse
        if self.equal and not reverse:
            return
        steps_L = torch.arange(self.length, device=cu_seqlens.device)
        first, sign = (cu_seqlens[1:] - 1, -1) if reverse else (cu_seqlens[:-1], 1)
        self.real_NL = steps_L < lengths_N[:, None]
        self.places_NL = torch.where(self.real_NL, first[:, None] + sign * steps_L, 0)

    def pad(self, x: Tensor, fill: float = 0.0) -> Tensor:
        """[N, L, …] of [T, …], `fill` where a row has ended."""
        if self.equal and not self.reverse:
            return x.view(self.num_rows, self.length, *x.shape[1:])
        if self.equal:
            return x.view(self.num_rows, self.length, *x.shape[1:]).flip(1)
        rows = x[self.places_NL]
        rows[~self.real_NL] = fill
        return rows

    def unpad(self, x: Tensor) -> Tensor:
        """[T, …] of [N, L, …]."""
        if self.equal:
            return (x.flip(1) if self.reverse else x).flatten(0, 1)
        flat = x.new_empty(int(self.real_NL.sum()), *x.shape[2:])
        flat[self.places_NL[self.real_NL]] = x[self.real_NL]
        return flat


Definition = Callable[..., tuple[Tensor, tuple[Tensor, ...]]]
"""(inputs [N, L, …] each, state of [N, …] each) -> (outputs [N, L, …], final state)."""


def run_definition(
    definition: Definition,
    inputs: Sequence[Tensor],
    state: tuple[Tensor, ...],
    times: Times,
    reverse: bool = False,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """A definition written for [N, L, …], forward in time, over flat inputs of any packing.

    Packed sequences go one by one, equal ones together; `reverse` flips what goes in and comes out.
    """
    flip = (lambda x: x.flip(1)) if reverse else (lambda x: x)
    if len(times.shape) == 2:
        rows = [flip(x.unflatten(0, times.shape)) for x in inputs]
        y, final = definition(*rows, *state)
        return flip(y).flatten(0, 1), final
    check_cu_seqlens(times.cu_seqlens.cpu(), len(inputs[0]))
    bounds = times.cu_seqlens.tolist()
    outputs, finals = [], []
    for n, (start, end) in enumerate(pairwise(bounds)):
        rows = [flip(x[None, start:end]) for x in inputs]
        y, final = definition(*rows, *(part[n : n + 1] for part in state))
        outputs.append(flip(y)[0])
        finals.append(final)
    if not outputs:
        return definition(*(x[None] for x in inputs), *state)[0][0], state
    return torch.cat(outputs), tuple(torch.cat(parts) for parts in zip(*finals, strict=True))
