"""Freed memory is kept: a tensor of the next step takes no page of the system. The peak is told."""

import platform
import subprocess
import sys

import numpy as np
import pytest

from recsys.training.memory import keep_freed_memory, peak_rss_mb

STEPS = """
import resource
import torch
from recsys.training.memory import keep_freed_memory

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


def test_the_peak_of_memory_is_at_least_a_large_block():
    block = np.ones(8_000_000)
    assert block.nbytes / 1e6 < peak_rss_mb() < 1e6


def test_the_peak_is_of_this_process_and_not_of_the_one_that_started_it():
    block = np.ones(1_000_000_000, np.uint8)
    code = "import torch; from recsys.training.memory import peak_rss_mb; print(peak_rss_mb())"
    assert 50 < float(subprocess.check_output([sys.executable, "-c", code])) < block.nbytes / 1e6
