"""Export in any format: write, load the file in its runtime, compare with the model, and only then put it in place."""

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

import torch
from torch import Tensor, nn

from linvit.deploy.formats import find_format
from linvit.deploy.job import JobOptions, Run

__all__ = ["BOUNDS", "Check", "Export", "compare", "export_model"]

BOUNDS = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1, "int8": 0.25, "int8-full": 0.5}
"""Largest error relative to the largest output that an export may have, by precision.

Another order of summation stays far below the first. The last two are for logits of trained models: look at the
agreement.
"""


CLASSES = ("logits", "probabilities")
"""Outputs ``[B, classes]`` or, for each pixel, ``[B, classes, H, W]``."""


@dataclass(frozen=True)
class Check:
    """How far a file's outputs are from the model's, relative to the model's largest.

    ``top1_agreement`` is the share of images, or of their pixels, with the same most likely class; None where the
    outputs are no classes.
    """

    max_error: float
    mean_error: float
    top1_agreement: float | None
    images: int


@dataclass(frozen=True)
class Export:
    """An export that was put in place. ``check`` is None where nothing here can run it, and ``structure`` says more."""

    files: list[Path]
    bytes: int
    check: Check | None
    structure: str | None = None


def export_model(
    model: nn.Module,
    path: str | Path,
    format: str,
    images: Tensor,
    *,
    precision: str = "float32",
    bound: float | None = None,
    **options: Unpack[JobOptions],
) -> Export:
    """Write a model, run the file on images, compare, and put it in place only if it is good.

    Args:
        model: A model of linvit or timm, made by :func:`linvit.load_model` or ``timm.create_model``, or a network for
            detection or segmentation; it stays as it is.
        path: The file (or, where a format is one, folder) to write; what a format writes beside it has its name.
        format: A name in :data:`linvit.deploy.FORMATS`.
        images: What to compare on, as the exported model takes them.
        precision: "float32", "float16", "bfloat16", "int8" or "int8-full", as far as the format has it.
        bound: Largest error relative to the largest output; None takes :data:`BOUNDS`.
        **options: As for :func:`linvit.deploy.job.make_job`.

    Raises:
        ValueError: The format does not have the precision, or the file differs by more than the bound; what was there
            before is still there.
    """
    record = find_format(format)
    if precision not in record.precisions:
        raise ValueError(f"precision for {format} must be one of {', '.join(record.precisions)}, got {precision!r}")
    path = Path(path)
    bound = BOUNDS[precision] if bound is None else bound
    job = record.job(model, precision, **options)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        staged = Path(folder, path.stem + record.suffix)
        record.write(job, staged)
        check, structure = None, None
        if record.describe is not None:
            structure = record.describe(staged)
        else:
            check = compare(job.reference, record.load(staged), images, job.outputs[0] in CLASSES)
            if not check.max_error <= bound:  # a NaN is no pass
                raise ValueError(
                    f"the export differs from the model by {check.max_error:.1e} (bound {bound:.2g}): "
                    f"{path} was not written"
                )
        files = [_put_in_place(part, path.with_suffix(part.suffix)) for part in sorted(Path(folder).iterdir())]
    return Export(files, sum(map(_size, files)), check, structure)


@torch.inference_mode()
def compare(model: nn.Module, run: Run, images: Tensor, classes: bool = False) -> Check:
    """Run a model and a loaded file on the same images and compare what comes out, also the likeliest ``classes``."""
    expected = model(images)
    expected = [expected] if isinstance(expected, Tensor) else list(expected)
    actual = run(images)
    for whose, outputs in (("model", expected), ("file", actual)):
        if not all(output.isfinite().all() for output in outputs):
            raise ValueError(f"the {whose}'s outputs are not finite (NaN or infinite) on these images")
    errors = [
        (one.double() - other.double()).abs() / other.double().abs().max()
        for one, other in zip(actual, expected, strict=True)
    ]
    top1 = None
    if classes:
        top1 = (actual[0].argmax(1) == expected[0].argmax(1)).double().mean().item()
    return Check(
        max_error=max(error.max().item() for error in errors),
        mean_error=max(error.mean().item() for error in errors),
        top1_agreement=top1,
        images=len(images),
    )


def _put_in_place(part: Path, place: Path) -> Path:
    """Rename a finished file or folder to its place; an earlier folder there goes first, which a file need not."""
    if part.is_dir() and place.exists():
        shutil.rmtree(place)
    os.replace(part, place)
    return place


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
