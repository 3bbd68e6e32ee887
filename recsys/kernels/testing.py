"""The measure of a kernel: its definition in float64, and what that loses in the same dtype."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Call = Callable[..., tuple[Tensor, ...]]
"""call(**tensors, backend=…) -> outputs and final states, in a fixed order."""

FACTOR = 4
"""How many times the error of the definition in the same dtype a kernel may make."""
ROUNDINGS = 8
"""Roundings of a result to its own dtype that are granted on top, for where that error is 0."""


def assert_matches_reference(
    call: Call, tensors: Mapping[str, Tensor | None], *backends: str
) -> None:
    """Outputs, states and all gradients of `call` on `backends` against its definition in float64.

    The error of each, in the maximum norm relative to the largest exact number, may be FACTOR times
    that of the definition run in the dtype of `tensors`, and ROUNDINGS roundings. The definition is
    the slow part: it runs once, however many backends are held to it.
    """
    doubled = {name: None if x is None else _doubled(x) for name, x in tensors.items()}
    exact = outcome(call, doubled, "reference")
    plain = outcome(call, tensors, "reference")
    assert backends
    for backend in backends:
        ours = outcome(call, tensors, backend)
        assert ours.keys() == exact.keys(), backend
        for name, wanted in exact.items():
            assert ours[name].dtype == plain[name].dtype, (backend, name)
            assert ours[name].shape == wanted.shape, (backend, name)
            error, allowed = relative_error(ours[name], wanted), relative_error(plain[name], wanted)
            allowed = FACTOR * allowed + ROUNDINGS * torch.finfo(ours[name].dtype).eps
            # Not `error > allowed`: a NaN must not pass.
            assert error <= allowed, f"{backend}, {name}: {error:.2e} is more than {allowed:.2e}"


def outcome(call: Call, tensors: Mapping[str, Tensor | None], backend: str) -> dict[str, Tensor]:
    """Outputs, and gradients of a fixed random weighting of them for every floating tensor."""
    given = {
        name: x.detach().clone().requires_grad_(x.is_floating_point() or x.is_complex())
        if x is not None
        else None
        for name, x in tensors.items()
    }
    outputs = call(**given, backend=backend)
    torch.autograd.backward([_weighted(y, seed) for seed, y in enumerate(outputs)])
    results = {f"output {i}": y.detach() for i, y in enumerate(outputs)}
    for name, x in given.items():
        if x is not None and x.requires_grad:
            assert x.grad is not None, f"no gradient for {name}"
            results[f"gradient of {name}"] = x.grad
    return results


def relative_error(got: Tensor, wanted: Tensor) -> float:
    """Largest difference over the largest wanted number (0 over 0 is 0)."""
    if wanted.numel() == 0:
        return 0.0
    wanted = _doubled(wanted)
    difference = float((_doubled(got) - wanted).abs().max())
    return difference / max(float(wanted.abs().max()), torch.finfo(torch.float32).tiny)


def _weighted(y: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.device)
    if y.is_complex():
        return (torch.view_as_real(y).to(torch.float64).sum(-1) * weights).sum()
    return (y.to(torch.float64) * weights).sum()


def _doubled(x: Tensor) -> Tensor:
    if not (x.is_floating_point() or x.is_complex()):
        return x
    return x.to(torch.complex128 if x.is_complex() else torch.float64)
