"""States that the forward of selective_scan keeps, for the backward to recompute the others."""

CHUNK = 64
"""Steps from one kept state to the next: they take S / 64 of the memory of u.

Compiled into the kernels of `cpu`: after an edit remove the `__pycache__` folder.
"""


def num_checkpoints(total: int) -> int:
    """Places for the kept states of any sequences with T = total events together.

    The state before step i = 64, 128, … of the sequence from event `start` lies at place
    (start + i) // 64 - 1. Of two such numbers the later is 64 more or above, so no two share one.
    """
    return total // CHUNK
