"""The sides of a comparison: a model in a form (fused or as trained, precision, size) in a runtime."""

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from linvit.checkpoints import load_model
from linvit.deploy.export import compare, runtime
from linvit.deploy.job import Job, Run, make_job

__all__ = ["RUNTIMES", "Side", "count_macs", "model_of"]

RUNTIMES = {"eager": None, "compiled": None, "onnxruntime": "onnx", "openvino": "openvino", "executorch": "executorch"}
"""Runtimes, and the format that each one's files have."""


@dataclass(frozen=True)
class Side:
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
        """Tell this side from all others."""
        height, width = self.size
        return f"{self.model}, {self.runtime}, {self.form}, {height}x{width}, {self.precision}"

    @property
    def record(self) -> dict[str, Any]:
        """Return the attributes as plain data."""
        return asdict(self)

    def job(self) -> Job:
        """Make the model ready."""
        model = model_of(self.model, self.size)
        channels = int(getattr(model, "in_chans", 3))
        calibration = images_of(8, channels, self.size) if self.precision == "int8" else None
        job = make_job(
            model,
            self.size,
            precision=self.precision,
            fused=self.fused,
            separate=self.runtime == "openvino",
            calibration=calibration,
        )
        if self.precision == "int8" and RUNTIMES[self.runtime] is None:
            raise ValueError(f"precision int8 is for onnxruntime, openvino and executorch, not for {self.runtime}")
        return job

    def open(self, folder: Path) -> Run:
        """Make the side ready to run, writing its file, if it has one and it is not there, to a folder."""
        format = RUNTIMES[self.runtime]
        if format is None:
            return self._in_torch()
        module = runtime(format)
        if self.precision not in (*module.PRECISIONS, *(["bfloat16"] if format == "openvino" else [])):
            raise ValueError(f"precision for {self.runtime} must be one of {', '.join(module.PRECISIONS)}")
        path = folder / (re.sub(r"[^\w.-]+", "_", self.name) + module.SUFFIX)
        if not path.exists():
            job = self.job() if format != "openvino" or self.precision == "int8" else self._plain().job()
            module.export(job, path)
        if format == "openvino":
            return module.load(path, self.threads, self.precision)
        return module.load(path, self.threads)

    def _plain(self) -> "Side":
        return Side(**(self.record | {"precision": "float32", "size": tuple(self.size)}))

    def _in_torch(self) -> Run:
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        model: Any = self.job().model.to(self.device, memory_format=layout)  # type: ignore[call-overload]
        if self.runtime == "compiled":
            model = torch.compile(model)
        synchronize: Callable[[], None] = torch.cuda.synchronize if "cuda" in self.device else lambda: None

        @torch.inference_mode()
        def run(images: Tensor) -> list[Tensor]:
            y = model(images.to(self.device, memory_format=layout))
            synchronize()
            return [y]

        return run


@cache
def model_of(spec: str, size: tuple[int, int]) -> nn.Module:
    """Build a model for an image size, in evaluation mode; a registered name gives random weights, always the same."""
    if timm.is_model(spec) and not Path(spec).exists():
        torch.manual_seed(0)
        try:
            model = timm.create_model(spec, img_size=size)
        except TypeError:  # convolutional models know no image size
            model = timm.create_model(spec)
    else:
        model = load_model(spec)
        task = getattr(model, "task", None)
        if task is not None:
            raise ValueError(f"{spec} is a model to {task}: time its backbone, by name")
        if hasattr(model, "set_input_size"):
            model.set_input_size(size)  # type: ignore[operator]
    return model.eval()


def images_of(batch: int, channels: int, size: tuple[int, int]) -> Tensor:
    """Return random images, always the same."""
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(0))


def count_macs(model: nn.Module, size: tuple[int, int]) -> int:
    """Count multiply-accumulates for one image, as the catalogue does."""
    image = images_of(1, int(getattr(model, "in_chans", 3)), size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(image)
    return counter.get_total_flops() // 2


def error_of(side: Side, run: Run) -> float:
    """Return the largest error of a side's outputs, relative to the model's as it is in eager float32."""
    model = model_of(side.model, side.size)
    return compare(model, run, images_of(2, int(getattr(model, "in_chans", 3)), side.size)).max_error
