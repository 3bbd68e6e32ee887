"""Kernels run on poisoned memory; Triton kernels run interpreted where there is no GPU."""

import importlib.util
import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported, which no test has done yet


@pytest.fixture(autouse=True)
def _triton_where_it_is_installed(request):
    """Tests with backend="triton" are skipped where Triton does not exist (macOS, Windows)."""
    callspec = getattr(request.node, "callspec", None)
    asked = callspec.params.get("backend") if callspec else None
    if (asked == "triton" or "triton" in request.node.name) and not importlib.util.find_spec(
        "triton"
    ):
        pytest.skip("triton is not installed")


@pytest.fixture(autouse=True)
def _nan_in_fresh_memory():
    """torch.empty holds NaN, so that a number which no kernel wrote does not pass for one."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
