"""Write a model as ONNX, run the file in ONNX Runtime, and compare the two."""

import contextlib
import io
import json
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from timm.models._input import get_model_input_config
from torch import Tensor, nn

from linvit.files import atomic_write

try:
    import onnx
    import onnxruntime
    import onnxscript  # noqa: F401 -- torch's exporter needs it, and would say so in many lines
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f'ONNX export needs {error.name}: pip install "linvit[deploy]"') from error

__all__ = ["Check", "check_onnx", "export_onnx"]


@dataclass
class Check:
    """How far a file's outputs are from the model's, relative to the model's largest."""

    max_error: float
    mean_error: float
    top1_agreement: float
    images: int


def export_onnx(
    model: nn.Module,
    path: str | Path,
    img_size: tuple[int, int],
    classes: list[str] | None = None,
) -> None:
    """Write a model as one ONNX file: ``images [batch, C, H, W]`` (preprocessed) to ``logits``; any batch size.

    Args:
        model: The model; it is put in evaluation mode.
        path: The file to write.
        img_size: Height and width in pixels.
        classes: Class names to keep in the file's metadata, under ``classes``, as JSON.
    """
    model = model.eval().cpu()
    images = torch.randn(2, get_model_input_config(model)["input_size"][0], *img_size)
    with _quiet():
        program = torch.onnx.export(
            model,
            (images,),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            external_data=False,
        )
    assert program is not None
    proto = program.model_proto
    if classes is not None:
        onnx.helper.set_model_props(proto, {"classes": json.dumps(list(classes))})
    with atomic_write(path) as temporary:
        onnx.save(proto, str(temporary))


@torch.inference_mode()
def check_onnx(model: nn.Module, path: str | Path, images: Tensor) -> Check:
    """Run a file and the model on the same preprocessed images ``[B, C, H, W]`` and compare the outputs."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    actual = torch.from_numpy(session.run(None, {"images": images.numpy()})[0]).double()
    expected = model.eval().cpu()(images).double()
    error = (actual - expected).abs() / expected.abs().max()
    return Check(
        max_error=error.max().item(),
        mean_error=error.mean().item(),
        top1_agreement=(actual.argmax(1) == expected.argmax(1)).double().mean().item(),
        images=len(images),
    )


@contextlib.contextmanager
def _quiet():
    """Keep the exporter's progress report to itself; its errors are raised."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
