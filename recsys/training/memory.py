"""The memory of a process: kept between the steps of a training, and its peak."""

import ctypes
import resource
import sys
from pathlib import Path

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


def peak_rss_mb() -> float:
    """Largest resident memory of this process so far, in MB (10^6 bytes)."""
    # What getrusage says on Linux begins at the peak of the process that started this one.
    status = Path("/proc/self/status")
    _, found, rest = status.read_text().partition("VmHWM:") if status.is_file() else ("", "", "")
    if found:
        return round(int(rest.split()[0]) * 1024 / 1e6, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak * (1 if sys.platform == "darwin" else 1024) / 1e6, 1)
