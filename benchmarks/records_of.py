"""The records beside this file, by name."""

import statistics
from functools import cache
from pathlib import Path
from typing import Any

from linvit.bench.records import Record

HERE = Path(__file__).parent


@cache
def record(name: str) -> Record:
    return Record.read(HERE / f"{name}.json")


def middle(name: str, **of: Any) -> float:
    """Return the median seconds of a cell."""
    raw = record(name).get(**of)
    assert raw, (name, of)
    return statistics.median(raw["seconds"])
