"""Measure sides against each other: outputs first, then time in turns, then memory."""

import os
import platform
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from linvit.bench.process import side_memory
from linvit.bench.sides import Side, count_macs, error_of, images_of, model_of
from linvit.bench.timing import CLOCKS, quartiles, take_turns
from linvit.deploy.export import BOUNDS

__all__ = ["Measurement", "machine", "measure", "speed_up"]


@dataclass(frozen=True)
class Measurement:
    """What one side needs.

    Attributes:
        side: The side.
        params: Parameters of the model as trained.
        macs: Multiply-accumulates of the model as trained, for one image.
        seconds: Of each timed call with one image.
        batch: Images of a call whose throughput was measured.
        batch_seconds: Of each such call; empty if it was left out.
        memory: Peak growth of a fresh process, in bytes; None if it was left out.
        error: Largest error of the outputs, relative to the model's as trained in eager float32.
    """

    side: Side
    params: int
    macs: int
    seconds: list[float]
    batch: int
    batch_seconds: list[float]
    memory: int | None
    error: float

    @property
    def latency(self) -> tuple[float, float, float]:
        """Return lower quartile, median and upper quartile of the seconds for one image."""
        return quartiles(self.seconds)

    @property
    def throughput(self) -> float | None:
        """Return images a second, by the median."""
        return self.batch / quartiles(self.batch_seconds)[1] if self.batch_seconds else None

    @property
    def agrees(self) -> bool:
        """Tell whether the outputs are the model's, within the bound of the precision."""
        return self.error <= BOUNDS[self.side.precision]


def measure(
    sides: Sequence[Side],
    rounds: int = 30,
    warmup: int = 3,
    batch: int = 0,
    memory: bool = True,
    clock: str = "wall",
    progress: Callable[[Iterable[Any], int, str], Iterable[Any]] = lambda items, total, description: items,
) -> list[Measurement]:
    """Measure sides in one run; they take turns.

    Args:
        sides: What to measure, all different.
        rounds: Timed calls of each.
        warmup: Calls before them.
        batch: Images per call for the throughput; 0 leaves it out.
        memory: Measure peak memory, each side in a process of its own.
        clock: "wall", or "cpu" for the processor time of this process.
        progress: Wraps what is gone through, with its length and a description.

    Raises:
        ValueError: No side, a side twice, or an unknown clock.
    """
    if not sides or len(set(sides)) < len(sides):
        raise ValueError(f"sides must be one or more and all different, got {[side.name for side in sides]}")
    if clock not in CLOCKS:
        raise ValueError(f"clock must be one of {', '.join(CLOCKS)}, got {clock!r}")
    with tempfile.TemporaryDirectory() as folder:
        runs = {side.name: side.open(Path(folder)) for side in progress(sides, len(sides), "opening")}
        errors = {side.name: error_of(side, runs[side.name]) for side in sides}

        def calls(size: int) -> dict[str, Callable[[], Any]]:
            return {side.name: partial(runs[side.name], _images(side, size)) for side in sides}

        def track(turns: range) -> Iterable[int]:
            return progress(turns, len(turns), "timing")

        seconds = take_turns(calls(1), rounds, warmup, CLOCKS[clock], track)
        batch_seconds = take_turns(calls(batch), max(rounds // 3, 3), 1, CLOCKS[clock], track) if batch else {}
        peaks = {}
        if memory:
            peaks = {side.name: side_memory(side, Path(folder)) for side in progress(sides, len(sides), "memory")}
    measurements = []
    for side in sides:
        model = model_of(side.model, side.size)
        measurements.append(
            Measurement(
                side=side,
                params=sum(parameter.numel() for parameter in model.parameters()),
                macs=count_macs(model, side.size),
                seconds=seconds[side.name],
                batch=batch,
                batch_seconds=batch_seconds.get(side.name, []),
                memory=peaks.get(side.name),
                error=errors[side.name],
            )
        )
    return measurements


def speed_up(one: Measurement, other: Measurement) -> float | None:
    """Return how many times faster ``other`` is than ``one``; None if they are one model and do not compute the same.

    Forms of one model have a speed-up only where the outputs of both are the model's; different models always have a
    ratio of times.
    """
    if one.side.model == other.side.model and not (one.agrees and other.agrees):
        return None
    return one.latency[1] / other.latency[1]


def machine() -> dict[str, Any]:
    """Describe where and with what was measured."""
    facts: dict[str, Any] = {"machine": platform.machine(), "cpus": len(os.sched_getaffinity(0))}
    facts["processor"] = torch.backends.cpu.get_cpu_capability()
    for package in ("torch", "timm", "onnxruntime", "openvino", "executorch"):
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = None
    return facts


def _images(side: Side, batch: int) -> torch.Tensor:
    channels = int(getattr(model_of(side.model, side.size), "in_chans", 3))
    return images_of(batch, channels, side.size)
