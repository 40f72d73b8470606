"""Time several functions in turns, so that a machine's moods fall on all of them alike."""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

__all__ = ["CLOCKS", "median", "quartiles", "take_turns"]

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
"""Clocks by name. ``cpu`` counts this process's processor time, on which other programs have little influence."""


def take_turns(
    contenders: Mapping[str, Callable[[], Any]],
    rounds: int,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
    track: Callable[[range], Iterable[int]] = iter,
) -> dict[str, list[float]]:
    """Call each function once a round, in an order that turns from round to round.

    Args:
        contenders: Functions by name.
        rounds: How often each is timed.
        warmup: How often each is called first, untimed.
        clock: Tells the time in seconds.
        track: Wraps the rounds, to show how many are done.

    Returns:
        The seconds of each call, by name.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    for _ in range(warmup):
        for call in contenders.values():
            call()
    names = list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in track(range(rounds)):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            begin = clock()
            contenders[name]()
            seconds[name].append(clock() - begin)
    return seconds


def median(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    """Return the median of each contender."""
    return {name: statistics.median(values) for name, values in seconds.items()}


def quartiles(seconds: Sequence[float]) -> tuple[float, float, float]:
    """Return the lower quartile, the median and the upper quartile; of one value, that value."""
    if len(seconds) == 1:
        return (seconds[0],) * 3
    lower, middle, upper = statistics.quantiles(seconds, n=4, method="inclusive")
    return lower, middle, upper
