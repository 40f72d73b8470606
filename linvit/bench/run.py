"""Measure contenders against each other: outputs first, then time in turns, then memory."""

import platform
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from linvit.bench.contenders import Contender, channels_of, error_of, images_of, model_of
from linvit.bench.process import contender_memory
from linvit.bench.timing import CLOCKS, quartiles, take_turns
from linvit.catalogue import count_macs
from linvit.data.loading import cores
from linvit.deploy.export import BOUNDS
from linvit.deploy.formats import FORMATS

__all__ = ["Measurement", "machine", "measure", "speed_up"]


@dataclass(frozen=True)
class Measurement:
    """What one contender needs.

    Attributes:
        contender: The contender.
        params: Parameters of the model as trained.
        macs: Multiply-accumulates of the model as trained, for one image.
        seconds: Of each timed call with one image.
        batch: Images of a call whose throughput was measured.
        batch_seconds: Of each such call; empty if it was left out.
        memory: Peak growth of a fresh process, in bytes; None if it was left out.
        error: Largest error of the outputs, relative to the model's as trained in eager float32.
    """

    contender: Contender
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
        return self.error <= BOUNDS[self.contender.precision]


def measure(
    contenders: Sequence[Contender],
    rounds: int = 30,
    warmup: int = 3,
    batch: int = 0,
    memory: bool = True,
    clock: str = "wall",
    files: Path | None = None,
    progress: Callable[[Iterable[Any], int, str], Iterable[Any]] = lambda items, total, description: items,
) -> list[Measurement]:
    """Measure contenders in one run; they take turns.

    Args:
        contenders: What to measure, all different.
        rounds: Timed calls of each.
        warmup: Calls before them.
        batch: Images per call for the throughput; 0 leaves it out.
        memory: Measure peak memory, each contender in a process of its own.
        clock: "wall", or "cpu" for the processor time of this process.
        files: Folder where exported files stay; those that are there are not exported again. None for one that goes.
        progress: Wraps what is gone through, with its length and a description.

    Raises:
        ValueError: No contender, a contender twice, or an unknown clock.
    """
    if not contenders or len(set(contenders)) < len(contenders):
        raise ValueError(f"contenders must be one or more and all different, got {[each.name for each in contenders]}")
    if clock not in CLOCKS:
        raise ValueError(f"clock must be one of {', '.join(CLOCKS)}, got {clock!r}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = files or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        runs = {each.name: each.open(folder) for each in progress(contenders, len(contenders), "opening")}
        errors = {each.name: error_of(each, runs[each.name]) for each in contenders}

        def calls(size: int) -> dict[str, Callable[[], Any]]:
            return {each.name: partial(runs[each.name], _images(each, size)) for each in contenders}

        def track(turns: range) -> Iterable[int]:
            return progress(turns, len(turns), "timing")

        seconds = take_turns(calls(1), rounds, warmup, CLOCKS[clock], track)
        batch_seconds = take_turns(calls(batch), max(rounds // 3, 3), 1, CLOCKS[clock], track) if batch else {}
        tracked = progress(contenders, len(contenders), "memory") if memory else ()
        peaks = {each.name: contender_memory(each, folder) for each in tracked}
    measurements = []
    for contender in contenders:
        model = model_of(contender.model, contender.size)
        measurements.append(
            Measurement(
                contender=contender,
                params=sum(parameter.numel() for parameter in model.parameters()),
                macs=count_macs(model, (channels_of(model), *contender.size)),
                seconds=seconds[contender.name],
                batch=batch,
                batch_seconds=batch_seconds.get(contender.name, []),
                memory=peaks.get(contender.name),
                error=errors[contender.name],
            )
        )
    return measurements


def speed_up(one: Measurement, other: Measurement) -> float | None:
    """Return how many times faster ``other`` is than ``one``; None if they are one model and do not compute the same.

    Forms of one model have a speed-up only where the outputs of both are the model's; different models always have a
    ratio of times.
    """
    if one.contender.model == other.contender.model and not (one.agrees and other.agrees):
        return None
    return one.latency[1] / other.latency[1]


def machine() -> dict[str, Any]:
    """Describe where and with what was measured."""
    facts: dict[str, Any] = {"machine": platform.machine(), "cpus": cores()}
    facts["processor"] = torch.backends.cpu.get_cpu_capability()
    runtimes = [package for format in FORMATS.values() for package in format.packages]
    for package in ("torch", "timm", *runtimes):
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = None
    return facts


def _images(contender: Contender, batch: int) -> torch.Tensor:
    return images_of(batch, channels_of(model_of(contender.model, contender.size)), contender.size)
