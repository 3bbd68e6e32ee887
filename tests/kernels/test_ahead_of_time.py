"""Triton kernels compile for GPUs that are not at hand, and fit into their registers and memory."""

import importlib.util

import pytest

from recsys.kernels.backends import OPS

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)
SHARED_BYTES = {80: 163 << 10, 90: 227 << 10}
"""Shared memory that one block may have."""


@pytest.mark.parametrize("op", OPS)
def test_kernels_compile_for_sm80_and_sm90_without_spilling(op, ahead_of_time):
    compiled = ahead_of_time(op)
    assert {record["sm"] for record in compiled} == {80, 90}
    assert {record["kernel"].split(".")[0] for record in compiled} == {op}
    for record in compiled:
        assert record["shared"] <= SHARED_BYTES[record["sm"]], record
        assert record["stack"] == 0, record
        assert record["local"] == 0, record
