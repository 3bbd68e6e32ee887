"""Triton kernels compile for GPUs that are not at hand, and fit into their registers and memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from recsys.kernels.backends import OPS

pytest.importorskip("triton")
SHARED_BYTES = {80: 163 << 10, 90: 227 << 10}
"""Shared memory that one block may have."""


@pytest.mark.parametrize("op", OPS)
def test_kernels_compile_for_sm80_and_sm90_without_spilling(op):
    script = Path(__file__).with_name("ahead_of_time.py")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(script), op],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    compiled = [json.loads(line) for line in done.stdout.splitlines()]
    assert {record["sm"] for record in compiled} == {80, 90}
    for record in compiled:
        assert record["shared"] <= SHARED_BYTES[record["sm"]], record
        assert record["stack"] == 0, record
        assert record["local"] == 0, record
