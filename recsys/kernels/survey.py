"""What runs each operation on this machine: the answer of `recsys kernels`."""

import importlib.metadata
from typing import Any

import torch

from recsys.kernels.backends import OPS, available_backends, choose, op_module


def survey(dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Versions, and for each device and operation the backend that runs, why, and those that could.

    `dtype` is that of the tensors. InputError where RECSYS_KERNELS asks for what cannot run.
    """
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    return {
        "versions": {name: _version(name) for name in ("torch", "numba", "triton")},
        "threads": torch.get_num_threads(),
        "dtype": str(dtype).removeprefix("torch."),
        "devices": [
            {
                "device": device,
                "name": _name(device),
                "ops": [_row(op, device, dtype) for op in OPS],
            }
            for device in devices
        ],
    }


def _row(op: str, device: str, dtype: torch.dtype) -> dict[str, Any]:
    found = op_module(op).dtype_obstacles(dtype)
    choice = choose(op, torch.device(device), "", found)
    return {
        "op": op,
        "backend": choice.backend,
        "reason": choice.reason,
        "available": available_backends(op, device, dtype),
    }


def _name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    return torch.backends.cpu.get_cpu_capability()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
