"""How many processes load images, and how far something that takes long has come."""

import os
import sys
from collections.abc import Iterable
from typing import Any

__all__ = ["cores", "progress"]


def cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def progress(items: Iterable[Any], total: int, description: str) -> Iterable[Any]:
    """Show a progress bar on the standard error stream, where a person is watching it."""
    if not sys.stderr.isatty():
        return items
    from rich.console import Console
    from rich.progress import track

    return track(items, description, total=total, console=Console(stderr=True))
