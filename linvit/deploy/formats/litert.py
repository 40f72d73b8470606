"""LiteRT files (formerly TensorFlow Lite): Android's own runtime, and its GPU and NPU delegates."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from linvit.deploy.formats._record import Format, metadata_beside
from linvit.deploy.job import Job, Run, quiet

__all__ = ["FORMAT"]


def write(job: Job, path: Path) -> None:
    """Write a file for one image of one size; what describes it goes into a ``.json`` beside it."""
    with quiet(), _silent(), torch.no_grad():
        import litert_torch

        litert_torch.convert(job.model, (job.example[:1],)).export(str(path))
        if job.precision != "float32":
            path.write_bytes(_quantized(path, job))
    path.with_suffix(".json").write_text(json.dumps(job.metadata, indent=1))


def load(path: Path, threads: int | None = None, precision: str = "float32") -> Run:
    """Open a file in LiteRT on the CPU; a batch is run image by image."""
    with quiet(), _silent():
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(str(path), num_threads=threads)
        interpreter.allocate_tensors()
    (images,) = interpreter.get_input_details()
    outputs = _outputs(interpreter)

    def run(batch: Tensor) -> list[Tensor]:
        runs = []
        for image in batch.split(1):
            interpreter.set_tensor(images["index"], image.numpy())
            interpreter.invoke()
            runs.append([torch.from_numpy(interpreter.get_tensor(index)) for index in outputs])
        return [torch.cat(parts) for parts in zip(*runs, strict=True)]

    return run


def _outputs(interpreter: Any) -> list[int]:
    """Return the tensors of the outputs in the order of the model's: the runtime sorts them by name."""
    (signature,) = interpreter.get_signature_list()
    names = interpreter.get_signature_list()[signature]["outputs"]
    details = interpreter.get_signature_runner(signature).get_output_details()
    return [details[name]["index"] for name in sorted(names, key=lambda name: int(name.rpartition("_")[2]))]


def _quantized(path: Path, job: Job) -> bytes:
    """Store weights in float16, or quantize dense convolutions and linear layers after training, as other formats do.

    In int8 weights are symmetric, per channel, and activations take the ranges seen on the calibration images.
    """
    from ai_edge_quantizer import qtyping, quantizer
    from ai_edge_quantizer.calibrator import Calibrator
    from ai_edge_quantizer.recipe_manager import RecipeManager
    from ai_edge_quantizer.utils.qsv_utils import min_max_update

    recipe = RecipeManager()
    every = qtyping.TFLOperationName.ALL_SUPPORTED
    if job.precision == "float16":
        half = qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT)
        config = qtyping.OpQuantizationConfig(
            weight_tensor_config=half, compute_precision=qtyping.ComputePrecision.FLOAT, explicit_dequantize=True
        )
        recipe.add_quantization_config(
            regex=".*", operation_name=every, op_config=config, algorithm_key=quantizer.AlgorithmName.FLOAT_CASTING
        )
        work = quantizer.Quantizer(str(path), recipe.get_quantization_recipe())
        return bytes(work.quantize().quantized_model)  # type: ignore[arg-type]
    dense = (qtyping.TFLOperationName.CONV_2D, qtyping.TFLOperationName.FULLY_CONNECTED)
    for operation in dense:
        recipe.add_static_config(regex=".*", operation_name=operation, activation_num_bits=8, weight_num_bits=8)
    work = quantizer.Quantizer(str(path), recipe.get_quantization_recipe())
    assert job.calibration is not None
    images = [{"args_0": image.numpy()} for image in job.calibration.split(1)]
    # The quantizer's own way is a moving average, in which the first image counts for most.
    seen = Calibrator(str(path), qsv_update_func=min_max_update)
    seen.calibrate({"serving_default": images}, recipe)
    return bytes(work.quantize(seen.get_model_qsvs()).quantized_model)  # type: ignore[arg-type]


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep what the runtime's C++ code says from the standard error stream."""
    saved = os.dup(2)
    try:
        with tempfile.TemporaryFile() as void:
            os.dup2(void.fileno(), 2)
            yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


FORMAT = Format(
    name="litert",
    title="LiteRT",
    purpose="Android, its GPUs and NPUs",
    suffix=".tflite",
    companions=(".json",),
    precisions=("float32", "float16", "int8"),
    converted=("float16",),
    any_batch=False,
    any_size=False,
    libraries=("litert_torch", "ai_edge_litert", "ai_edge_quantizer"),
    packages=("ai-edge-litert",),
    install="it wants an environment of its own: make litert, then .venv-litert/bin/linvit export ...",
    writer=write,
    loader=load,
    metadata=metadata_beside,
    runtime="litert",
)
