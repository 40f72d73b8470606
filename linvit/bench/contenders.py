"""The contenders of a comparison: a model in a form (fused or as trained, precision, size) in a runtime."""

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from linvit.checkpoints import is_registered, load_model
from linvit.deploy.export import compare
from linvit.deploy.formats import FORMATS, Format
from linvit.deploy.job import DTYPES, INTEGER, Job, Run, make_job

__all__ = ["RUNTIMES", "Contender", "channels_of", "error_of", "images_of", "model_of"]

RUNTIMES: dict[str, Format | None] = {
    "eager": None,
    "compiled": None,
    **{format.runtime: format for format in FORMATS.values() if format.runtime is not None},
}
"""Runtimes, and the format of their files."""

COMPILED = 256
"""Graphs of one module's code that may be compiled in a comparison; PyTorch's limit is 8."""


@dataclass(frozen=True)
class Contender:
    """What is timed.

    Attributes:
        model: A registered name (random weights: they do not change the speed), a run folder or a checkpoint file.
        runtime: One of :data:`RUNTIMES`.
        fused: After :func:`linvit.deploy.fuse`.
        size: Height and width in pixels.
        precision: "float32", "float16", "bfloat16" or "int8".
        channels_last: Layout of weights and images; for eager and compiled.
        device: Where eager and compiled compute.
        threads: Threads; None takes the runtime's choice.
    """

    model: str
    runtime: str = "eager"
    fused: bool = True
    size: tuple[int, int] = (224, 224)
    precision: str = "float32"
    channels_last: bool = False
    device: str = "cpu"
    threads: int | None = None

    @property
    def form(self) -> str:
        """Say in words what of the model is run."""
        return "fused" if self.fused else "as trained"

    @property
    def name(self) -> str:
        """Tell this contender from all others."""
        height, width = self.size
        return f"{self.model}, {self.runtime}, {self.form}, {height}x{width}, {self.precision}"

    @property
    def format(self) -> Format | None:
        """Return the format of its file; None where there is no file."""
        return RUNTIMES[self.runtime]

    @property
    def record(self) -> dict[str, Any]:
        """Return the attributes as plain data."""
        return asdict(self)

    def job(self) -> Job:
        """Make the model ready."""
        model = model_of(self.model, self.size)
        calibration = images_of(8, channels_of(model), self.size) if self.precision in INTEGER else None
        if self.format is not None:
            return self.format.job(model, self.precision, img_size=self.size, fused=self.fused, calibration=calibration)
        if self.precision not in DTYPES:
            raise ValueError(f"precision for {self.runtime} must be one of {', '.join(DTYPES)}, got {self.precision!r}")
        return make_job(model, self.size, precision=self.precision, fused=self.fused)

    def open(self, folder: Path) -> Run:
        """Make ready to run, writing the file, if there is one and it is not there, to a folder."""
        if self.format is None:
            return self._in_torch()
        path = folder / (re.sub(r"[^\w.-]+", "_", self.name) + self.format.suffix)
        if not path.exists():
            self.format.write(self.job(), path)
        return self.format.load(path, self.threads, self.precision)

    def _in_torch(self) -> Run:
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        model: Any = self.job().model.to(self.device, memory_format=layout)  # type: ignore[call-overload]
        if self.runtime == "compiled":
            # A graph for each size: after a first one the compiler would make the next for any size, which is slower.
            # Contenders of one family share their code, and past a limit of graphs for it the rest would run eager.
            torch._dynamo.config.recompile_limit = COMPILED
            model = torch.compile(model, dynamic=False)
        synchronize: Callable[[], None] = torch.cuda.synchronize if "cuda" in self.device else lambda: None

        @torch.inference_mode()
        def run(images: Tensor) -> list[Tensor]:
            y = model(images.to(self.device, memory_format=layout))
            synchronize()
            return [y]

        return run


@cache
def model_of(spec: str, size: tuple[int, int]) -> nn.Module:
    """Find the model that every command finds by this name, for an image size; weights of a name are random.

    Raises:
        ValueError: It is none, or one for another task than classification.
    """
    model = load_model(spec, untrained=is_registered(spec), img_size=size)
    task = getattr(model, "task", None)
    if task is not None:
        raise ValueError(f"{spec} is a model to {task}: time its backbone, by name")
    return model


def images_of(batch: int, channels: int, size: tuple[int, int]) -> Tensor:
    """Return random images, always the same."""
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(0))


def channels_of(model: nn.Module) -> int:
    """Return how many channels a model's images have."""
    return int(getattr(model, "in_chans", 3))


def error_of(contender: Contender, run: Run) -> float:
    """Return the largest error of a contender's outputs, relative to the model's as it is in eager float32.

    One image, as in the calls that are timed: the compiler makes a graph for each batch size.
    """
    model = model_of(contender.model, contender.size)
    return compare(model, run, images_of(1, channels_of(model), contender.size)).max_error
