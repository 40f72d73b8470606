"""glibc's allocator, told to keep memory that was freed: training on a CPU is up to twice as fast.

By default glibc maps every block of 32 MB and more anew and unmaps it when it is freed, and the kernel clears all of
its pages at each step of a training. The commands of linvit keep such blocks instead. ``LINVIT_MALLOC=system`` leaves
the allocator as it is, and importing linvit as a library always does.
"""

import ctypes
import os
import sys

__all__ = ["VARIABLE", "keep_freed_memory"]

VARIABLE = "LINVIT_MALLOC"
"""Environment variable: "keep" (also when it is not set) or "system"."""

# Numbers of mallopt in glibc's malloc.h, and the variables by which a new process takes the same settings.
_SETTINGS = (
    (-4, "MALLOC_MMAP_MAX_", 0),  # no block is mapped on its own
    (-1, "MALLOC_TRIM_THRESHOLD_", 2**31 - 1),  # what is free at the heap's top stays there up to 2 GB
)
_PRELOADED = ("jemalloc", "tcmalloc", "mimalloc")


def keep_freed_memory() -> bool:
    """Make this process, and those that it starts, keep memory that was freed.

    Returns:
        Whether it does: not on other systems than Linux with glibc, with another allocator preloaded, with settings of
        glibc's that the user made, or where ``LINVIT_MALLOC`` is "system".

    Raises:
        ValueError: ``LINVIT_MALLOC`` is neither "keep" nor "system".
    """
    wanted = os.environ.get(VARIABLE) or "keep"
    if wanted not in ("keep", "system"):
        raise ValueError(f"{VARIABLE} must be keep or system, got {wanted!r}")
    if wanted == "system" or sys.platform != "linux" or _chosen_by_user():
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    taken = [libc.mallopt(number, value) for number, _, value in _SETTINGS]
    os.environ.update({variable: str(value) for _, variable, value in _SETTINGS})
    return taken == [1, 1]


def _chosen_by_user() -> bool:
    environment = os.environ
    if any(environment.get(variable, str(value)) != str(value) for _, variable, value in _SETTINGS):
        return True
    return "glibc.malloc" in environment.get("GLIBC_TUNABLES", "") or any(
        name in environment.get("LD_PRELOAD", "") for name in _PRELOADED
    )
