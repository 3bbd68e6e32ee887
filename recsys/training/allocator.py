"""How the process keeps memory between the steps of a training."""

import ctypes

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
"""Numbers of these settings in glibc's malloc.h."""


def keep_freed_memory() -> bool:
    """Let glibc keep what tensors on the CPU free for the tensors of the next step; True if done.

    By default it gives blocks of megabytes back to the system and asks for them anew, and the
    system clears each page again: on virtual machines that takes as long as the arithmetic, or
    several times as long. The process holds on to its peak memory in exchange. Elsewhere than on
    Linux with glibc nothing happens, and nothing is wrong.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no glibc
        return False
    # 32 MiB is the most that glibc takes here: larger tensors still come from the system.
    settings = ((_MMAP_THRESHOLD, 32 << 20), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 64 << 20))
    return all(mallopt(name, value) == 1 for name, value in settings)
