"""What is to be exported, the same for every format: a model made ready, an example, names, metadata."""

import contextlib
import copy
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypedDict

import torch
from timm.data import resolve_input_data_config
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from linvit.attention import StripeAttention, WindowAttention
from linvit.deploy.fusion import FusedModel, fuse, is_fused, separate_groups
from linvit.deploy.fusion.attention import FusedStripeAttention, FusedWindowAttention
from linvit.deploy.quantization.model import QuantizedModel, calibrate, converted, fake_quantized
from linvit.heads import DenseModel
from linvit.registry import TASKS

__all__ = [
    "BATCH",
    "DTYPES",
    "INTEGER",
    "Features",
    "Job",
    "JobOptions",
    "Run",
    "WithPreprocessing",
    "input_config",
    "make_job",
    "quiet",
]

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

INTEGER = ("int8", "int8-full")
"""Dense layers in 8 bits and the rest in float32, or everything in 8 bits."""

BATCH = 32
"""For int8, ranges are the mean of what batches of so many images reach. Otherwise the rarest value of all sets them,
which costs agreement; smaller batches clip more, which costs the largest error."""

TILE = 32
"""Sides of an export for any size are multiples of it."""

Run = Callable[[Tensor], list[Tensor]]
"""A loaded file: a batch of images in, its outputs out."""


@dataclass(frozen=True)
class Job:
    """A model ready for export, and how.

    Attributes:
        model: Takes ``images``, returns a tensor or several.
        reference: The model as it is, in float32, with the same inputs and outputs.
        example: Images of the native size.
        outputs: Names of what it returns.
        precision: "float32", "float16", "bfloat16", "int8" or "int8-full".
        dynamic_size: Heights and widths in multiples of 32 are open, besides the batch.
        webgpu: A page computes on the GPU where the browser can.
        calibration: Images ``[B, ...]`` for int8.
        metadata: Texts to keep with the file.
    """

    model: nn.Module
    reference: nn.Module
    example: Tensor
    outputs: tuple[str, ...]
    precision: str = "float32"
    dynamic_size: bool = False
    webgpu: bool = False
    calibration: Tensor | None = None
    metadata: dict[str, str] = field(default_factory=dict)

    def program(self, dynamic_batch: bool = True) -> ExportedProgram:
        """Trace the model with ``torch.export``."""
        dims: dict[int, Any] = {0: Dim("batch")} if dynamic_batch else {}
        if self.dynamic_size:
            rows = 1 if self.example.dtype == torch.uint8 else 2
            dims |= {rows: TILE * Dim("height32", max=256), rows + 1: TILE * Dim("width32", max=256)}
        example = self.example if dynamic_batch else self.example[:1]
        with quiet(), torch.no_grad():
            return torch.export.export(self.model, (example,), dynamic_shapes=(dims,) if dims else None)


class Features(nn.Module):
    """The maps of a model's stages, or of the last four of its blocks: what a detector takes."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model
        self.indices = 4 if len(model.feature_info) > 4 else None
        self.names = tuple(f"map{i}" for i in range(min(4, len(model.feature_info))))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Map images to maps ``[B, C, H, W]``, finest first."""
        return tuple(self.model.forward_intermediates(images, indices=self.indices, intermediates_only=True))


class WithPreprocessing(nn.Module):
    """Images as a camera gives them in, probabilities (or maps) out.

    Args:
        model: On normalised images ``[B, 3, H, W]``.
        mean: Per channel, on a scale of 0 to 1.
        std: Likewise.
        softmax: Turn logits into probabilities.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], softmax: bool):
        super().__init__()
        self.model, self.softmax = model, softmax
        self.register_buffer("shift", 255 * torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("scale", 1 / (255 * torch.tensor(std)).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Any:
        """Map ``uint8`` images ``[B, H, W, 3]`` of the model's size to probabilities or whatever the model returns."""
        y = self.model((images.permute(0, 3, 1, 2).float() - self.shift) * self.scale)
        return y.softmax(dim=1) if self.softmax else y


class _InTiles(nn.Module):
    """Images whose sides are multiples of 32, into a model that was traced for such: a runtime refuses all others.

    Without it, convolutions over patches would leave out the last rows and columns of others, and nobody would know.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Any:
        B, C, H, W = images.shape
        return self.model(images.reshape(B, C, H // TILE, TILE, W // TILE, TILE).flatten(4, 5).flatten(2, 3))


class _InPrecision(nn.Module):
    """A model computed in half precision, between float32 images and float32 outputs."""

    def __init__(self, model: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.model, self.dtype = model.to(dtype), dtype

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        y = self.model(images.to(self.dtype))
        return y.float() if isinstance(y, Tensor) else tuple(map(Tensor.float, y))


class JobOptions(TypedDict, total=False):
    """What :func:`make_job` and whoever calls it take by name; see there."""

    img_size: tuple[int, int] | None
    fused: bool
    features: bool
    preprocessing: bool
    dynamic_size: bool
    webgpu: bool
    calibration: Tensor | None
    classes: list[str] | None


def make_job(
    model: nn.Module,
    img_size: tuple[int, int] | None = None,
    *,
    precision: str = "float32",
    fused: bool = True,
    separate: bool = False,
    features: bool = False,
    preprocessing: bool = False,
    dynamic_size: bool = False,
    webgpu: bool = False,
    calibration: Tensor | None = None,
    classes: list[str] | None = None,
) -> Job:
    """Make a model ready for export.

    Args:
        model: A model of linvit or timm, or a network of :mod:`linvit.heads`; it stays as it is.
        img_size: Height and width in pixels; None takes the model's.
        precision: "float32", "float16", "bfloat16", "int8" or "int8-full".
        fused: Apply :func:`linvit.deploy.fuse`.
        separate: Keep CARE's channel groups separate tensors where they are wide; a fused model alone can.
        features: Export the stages' maps instead of the classifier; of a detector, the pyramid's.
        preprocessing: Take ``uint8`` images ``[B, H, W, 3]`` and return probabilities.
        dynamic_size: Take any height and width that is a multiple of 32.
        webgpu: Let a page compute on the GPU where the browser can.
        calibration: Images as the exported model takes them, for int8; a model that was trained for int8-full has no
            use for them.
        classes: Names of the classes, for the metadata.

    Raises:
        ValueError: The model's size cannot be dynamic or is not known, int8 has nothing to calibrate with, or a
            detector cannot be exported.
    """
    if precision not in (*DTYPES, *INTEGER):
        raise ValueError(f"precision must be one of {', '.join((*DTYPES, *INTEGER))}, got {precision!r}")
    is_trained = isinstance(model, QuantizedModel)
    if is_trained and (precision != "int8-full" or features or dynamic_size):
        raise ValueError("the model was trained in 8 bits: export its logits, at its size, with --precision int8-full")
    if precision in INTEGER and calibration is None and not is_trained:
        raise ValueError(f"precision {precision} needs calibration images: give --calibration IMAGE...")
    if precision == "int8-full" and dynamic_size:
        raise ValueError("precision int8-full is for images of one size: leave out --dynamic-size")
    if isinstance(model, QuantizedModel):
        if img_size is not None and tuple(img_size) != model.img_size:
            raise ValueError(f"the model was trained in 8 bits at {model.img_size}, got img_size {tuple(img_size)}")
        img_size = model.img_size
    config = input_config(model, img_size, dynamic_size)
    channels, height, width = config["input_size"]
    if isinstance(model, DenseModel) and (height % TILE or width % TILE):
        raise ValueError(f"img_size must be multiples of {TILE} to {model.task}, got {height}x{width}")
    if dynamic_size:
        _check_any_size(model, features)
    # ExecuTorch does not lower weights in channels-last.
    trained = copy.deepcopy(model).cpu().float().eval().to(memory_format=torch.contiguous_format)
    prepared = fuse(trained) if fused and not is_fused(trained) and not is_trained else copy.deepcopy(trained)
    if separate and is_fused(prepared):
        prepared = separate_groups(prepared)
    prepared, outputs = _body(prepared, features)
    reference, _ = _body(trained, features)
    if dynamic_size:
        prepared = _InTiles(prepared)
    if precision in ("float16", "bfloat16"):
        prepared = _InPrecision(prepared, DTYPES[precision])
    example = torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(0))
    if precision == "int8-full":
        prepared = _in_8_bits(prepared, example, calibration, config if preprocessing else None)
    if preprocessing:
        softmax = outputs == ("logits",)
        outputs = ("probabilities",) if softmax else outputs
        prepared, reference = (
            WithPreprocessing(each, config["mean"], config["std"], softmax) for each in (prepared, reference)
        )
        example = (example * 64 + 128).clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous()
    metadata = {
        "input_size": json.dumps([channels, height, width]),
        "mean": json.dumps(config["mean"]),
        "std": json.dumps(config["std"]),
        "interpolation": config["interpolation"],
        "crop_pct": json.dumps(config["crop_pct"]),
        "crop_mode": config["crop_mode"],
        "outputs": json.dumps(outputs),
    }
    if classes is not None and not features:
        metadata["classes"] = json.dumps(list(classes))
    return Job(prepared.eval(), reference, example, outputs, precision, dynamic_size, webgpu, calibration, metadata)


def _in_8_bits(model: nn.Module, example: Tensor, calibration: Tensor | None, config: dict[str, Any] | None) -> Any:
    """Return a model as a graph in 8 bits; ``config`` says how to normalise images that are as a camera gives them."""
    if isinstance(model, QuantizedModel):
        return model.converted()
    assert calibration is not None
    if config is not None:
        calibration = WithPreprocessing(nn.Identity(), config["mean"], config["std"], softmax=False)(calibration)
    graph = fake_quantized(model, example)
    calibrate(graph, calibration)
    return converted(graph)


def input_config(
    model: nn.Module, img_size: tuple[int, int] | None = None, dynamic_size: bool = False
) -> dict[str, Any]:
    """Return what a model sees, under timm's names.

    Args:
        model: A classifier, or a network of :mod:`linvit.heads`.
        img_size: Height and width in pixels; None takes the model's.
        dynamic_size: Take the next size that an export for any size can take: multiples of 32.

    Raises:
        ValueError: The model has no size of its own and none is given.
    """
    if isinstance(model, DenseModel):
        config = TASKS[model.task].load_export()(model).input_config()
    else:
        config = resolve_input_data_config(model)
    if img_size is not None:
        channels = config["input_size"][0] if config["input_size"] else 3
        config["input_size"] = (channels, *img_size)
    if config["input_size"] is None:
        raise ValueError("img_size: the model takes images of any size; give --img-size HEIGHTxWIDTH")
    if dynamic_size:  # a side of one times 32 would be taken for a constant
        channels, *sides = config["input_size"]
        config["input_size"] = (channels, *(max(2 * TILE, -(-side // TILE) * TILE) for side in sides))
    return config


def _check_any_size(model: nn.Module, features: bool) -> None:
    """Raise a ValueError if something in a model fixes the size of its images."""
    windows = WindowAttention | StripeAttention | FusedWindowAttention | FusedStripeAttention
    if any(isinstance(module, windows) for module in model.modules()):
        raise ValueError(f"{type(model).__name__} attends in windows, which fixes the size: leave out --dynamic-size")
    if isinstance(model, DenseModel) and model.task == "detect" and not features:
        raise ValueError("a detector's anchors fix the size: leave out --dynamic-size")


def _body(model: nn.Module, features: bool) -> tuple[nn.Module, tuple[str, ...]]:
    """Return what of a model is exported, and the names of its outputs."""
    inner = model.model if isinstance(model, FusedModel) else model
    if isinstance(inner, DenseModel):
        return TASKS[inner.task].load_export()(inner).body(features)
    if features:
        maps = Features(model)
        return maps, maps.names
    return model, ("logits",)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep exporters' progress reports and warnings to themselves; their errors are raised."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        void = io.StringIO()
        with warnings.catch_warnings(), contextlib.redirect_stdout(void), contextlib.redirect_stderr(void):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
