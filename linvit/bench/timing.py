"""Time several functions in turns, so that a machine's moods fall on all of them alike."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["median", "take_turns"]


def take_turns(sides: Mapping[str, Callable[[], Any]], rounds: int, warmup: int = 1) -> dict[str, list[float]]:
    """Call each function once a round, in an order that turns from round to round.

    Args:
        sides: Functions by name.
        rounds: How often each is timed.
        warmup: How often each is called first, untimed.

    Returns:
        The seconds of each call, by name.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    for _ in range(warmup):
        for call in sides.values():
            call()
    names = list(sides)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            begin = time.perf_counter()
            sides[name]()
            seconds[name].append(time.perf_counter() - begin)
    return seconds


def median(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    """Return the median of each side."""
    return {name: statistics.median(values) for name, values in seconds.items()}
