"""Measure how much memory a call needs at its peak, beyond what is in use before it."""

import ctypes
import gc
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

__all__ = ["peak_memory"]

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


def peak_memory(call: Callable[[], Any], device: str = "cpu") -> int:
    """Call once and return the bytes that it added at the highest point.

    On the CPU this is resident memory of the whole process, scratch buffers of libraries included, as Linux counts it:
    freed memory is handed back first, so that the call cannot hide in it. On CUDA it is what torch allocated.

    Raises:
        OSError: The CPU's memory is asked for on another system than Linux.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if not _CLEAR_REFS.exists():
        raise OSError("peak memory on the CPU is read from /proc, which only Linux has")
    gc.collect()
    _return_free_memory()
    before = _resident("VmRSS")
    _CLEAR_REFS.write_text("5")  # the peak starts anew
    call()
    return max(_resident("VmHWM") - before, 0)


def _resident(field: str) -> int:
    match = re.search(rf"^{field}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    assert match is not None, f"no {field} in {_STATUS}"
    return int(match[1]) * 1024


def _return_free_memory() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; others return it by themselves
    if trim is not None:
        trim(0)
