"""Freed memory is kept: a tensor of the next step takes no page of the system."""

import platform
import subprocess
import sys

import pytest

from recsys.training.allocator import keep_freed_memory

STEPS = """
import resource
import torch
from recsys.training.allocator import keep_freed_memory

def faults(steps):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        parts = [torch.ones(1 << 21) for _ in range(6)]  # 8 MB each
        del parts
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

assert keep_freed_memory()
faults(3)
# The best of three: the system itself may take pages from a process.
print(min(faults(10) for _ in range(3)))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_no_page_is_fetched_again_between_steps():
    command = [sys.executable, "-c", STEPS]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    # Without it, each of the ten steps fetches 12,000 pages.
    assert int(done.stdout) < 1000


def test_where_there_is_no_glibc_nothing_happens(monkeypatch):
    def no_library(name):
        raise OSError("no such library")

    monkeypatch.setattr("ctypes.CDLL", no_library)
    assert keep_freed_memory() is False
