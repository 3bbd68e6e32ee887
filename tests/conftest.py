"""What every test stands on."""

import os
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def _few_threads_and_poisoned_memory() -> None:
    """One thread (tiny tensors are slower on more); uninitialised memory holds NaN, not luck."""
    torch.set_num_threads(1)
    torch.utils.deterministic.fill_uninitialized_memory = True


@pytest.fixture
def real_data() -> Path:
    """The folder of real data sets; the test is skipped where there is none."""
    folder = os.environ.get("RECSYS_DATA")
    if not folder:
        pytest.skip("RECSYS_DATA is not set")
    return Path(folder)
