"""The records beside this file, by name."""

import statistics
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from linvit.bench.records import Record

HERE = Path(__file__).parent
RUNTIMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "executorch": "ExecuTorch", "litert": "LiteRT"}
"""The runtimes of exported files, as tables name them."""


@cache
def record(name: str) -> Record:
    return Record.read(HERE / f"{name}.json")


def middle(name: str, **of: Any) -> float:
    """Return the median seconds of a cell."""
    raw = record(name).get(**of)
    assert raw, (name, of)
    return statistics.median(raw["seconds"])


def markdown(head: Iterable[Any], rows: Iterable[Iterable[Any]]) -> str:
    lines = [list(head), *rows]
    lines.insert(1, ["---"] * len(lines[0]))
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def spread(shares: list[float]) -> str:
    """Return ``mean ± standard deviation`` in per cent."""
    deviation = f" ± {statistics.stdev(shares):.2%}".replace("%", "") if len(shares) > 1 else ""
    return f"{statistics.mean(shares) * 100:.2f}{deviation} %"
