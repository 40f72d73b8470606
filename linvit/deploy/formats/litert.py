"""LiteRT files (formerly TensorFlow Lite): Android's own runtime, and its GPU and NPU delegates."""

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from linvit.deploy.formats._record import Format, metadata_beside
from linvit.deploy.job import BATCH, Job, Run, quiet
from linvit.deploy.quantization import model as quantization

__all__ = ["FORMAT"]


def write(job: Job, path: Path) -> None:
    """Write a file for one image of one size; what describes it goes into a ``.json`` beside it."""
    with quiet(), _silent(), torch.no_grad():
        import litert_torch
        from litert_torch.fx_infra.decomp import add_pre_convert_decomp

        add_pre_convert_decomp(torch.ops.aten.elu.default, _elu)
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


def _elu(x: Tensor, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Tensor:
    """Return ELU without large numbers.

    The converter's own takes the exponential of all ``x`` and drops it where ``x`` is positive. Those are the largest
    values of a CARE, 1e5 and more: too much for half precision, and in 8 bits they left no step to what is negative.
    """
    below = alpha * ((input_scale * x.clamp(max=0)).exp() - 1)
    return scale * (x.clamp(min=0) + below)


def _outputs(interpreter: Any) -> list[int]:
    """Return the tensors of the outputs in the order of the model's: the runtime sorts them by name."""
    (signature,) = interpreter.get_signature_list()
    names = interpreter.get_signature_list()[signature]["outputs"]
    details = interpreter.get_signature_runner(signature).get_output_details()
    return [details[name]["index"] for name in sorted(names, key=lambda name: int(name.rpartition("_")[2]))]


def _quantized(path: Path, job: Job) -> bytes:
    """Store weights in float16, or quantize after training: dense convolutions and linear layers, or everything.

    In int8 weights are symmetric, per channel, and activations have the mean of the ranges of batches of photos.
    """
    from ai_edge_quantizer import qtyping, quantizer
    from ai_edge_quantizer.recipe_manager import RecipeManager

    recipe = RecipeManager()
    names = qtyping.TFLOperationName
    if job.precision == "float16":
        half = qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT)
        config = qtyping.OpQuantizationConfig(
            weight_tensor_config=half, compute_precision=qtyping.ComputePrecision.FLOAT, explicit_dequantize=True
        )
        casting = quantizer.AlgorithmName.FLOAT_CASTING
        recipe.add_quantization_config(".*", names.ALL_SUPPORTED, config, casting)
        work = quantizer.Quantizer(str(path), recipe.get_quantization_recipe())
        return bytes(work.quantize().quantized_model)  # type: ignore[arg-type]
    whole = job.precision == "int8-full"
    for operation in (names.ALL_SUPPORTED,) if whole else (names.CONV_2D, names.FULLY_CONNECTED):
        recipe.add_static_config(regex=".*", operation_name=operation, activation_num_bits=8, weight_num_bits=8)
    assert job.calibration is not None
    seen = _ranges(path, job.calibration.split(quantization.BATCH if whole else BATCH), recipe)
    if whole:
        left = quantizer.AlgorithmName.NO_QUANTIZE
        for end in (names.INPUT, names.OUTPUT):  # images and outputs are float32 in every file
            recipe.add_quantization_config(".*", end, algorithm_key=left)
        for name in _in_float(path):
            recipe.add_quantization_config(f"^{re.escape(name)};", names.ALL_SUPPORTED, algorithm_key=left)
    work = quantizer.Quantizer(str(path), recipe.get_quantization_recipe())
    return bytes(work.quantize(seen).quantized_model)  # type: ignore[arg-type]


def _ranges(path: Path, batches: Iterable[Tensor], recipe: Any) -> dict[str, dict[str, Any]]:
    """Return the least and the greatest value of each tensor: the mean of what batches of images reach.

    The quantizer's own way is a moving average over images, in which the first counts for most.
    """
    from ai_edge_quantizer.calibrator import Calibrator
    from ai_edge_quantizer.utils.qsv_utils import min_max_update

    seen: list[dict[str, dict[str, Any]]] = []
    for batch in batches:
        calibrator = Calibrator(str(path), qsv_update_func=min_max_update)
        calibrator.calibrate({"serving_default": [{"args_0": image.numpy()} for image in batch.split(1)]}, recipe)
        seen.append(calibrator.get_model_qsvs())
    return {
        name: {end: sum(each[name][end] for each in seen) / len(seen) for end in ranges}
        for name, ranges in seen[0].items()
    }


def _in_float(path: Path) -> set[str]:
    """Name what eight bits cannot hold: divisors, products that are divided, and what is masked, up to the softmax.

    The least of a divisor, a sum or a variance, would be rounded to zero; a mask of minus infinity to the least of what
    it hides. Products that are divided (attention before its normaliser) differ from token to token as their divisors
    do: most would have a few steps.
    """
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes(), 0))
    (graph,) = model.subgraphs
    builtin = schema.BuiltinOperator
    kinds = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in model.operatorCodes]
    operators = [(kinds[each.opcodeIndex], set(each.inputs) - {-1}, each.outputs[0]) for each in graph.operators]
    found: set[int] = set()
    masked = {index for index, tensor in enumerate(graph.tensors) if _has_mask(tensor, model.buffers[tensor.buffer])}
    for kind, inputs, output in operators:
        if masked & inputs:
            found.add(output)
            if kind not in (builtin.SOFTMAX, builtin.EXP):
                masked.add(output)
    divisors: set[int] = set()
    divided: set[int] = set()
    is_constant = [_is_constant(model.buffers[tensor.buffer]) for tensor in graph.tensors]
    products = {builtin.BATCH_MATMUL, builtin.FULLY_CONNECTED}  # the latter where there is one head
    moves = {builtin.RESHAPE, builtin.TRANSPOSE}
    sums = {builtin.ADD, builtin.MAXIMUM, builtin.MEAN, *moves}
    for (kind, inputs, output), operator in zip(reversed(operators), reversed(graph.operators), strict=True):
        if kind in (builtin.DIV, builtin.RSQRT):
            divisors.add(operator.inputs[-1])
            found.add(output)
            if kind == builtin.DIV:
                divided.add(operator.inputs[0])
        if output in divided and kind in moves:
            found.add(output)
            divided |= inputs
        if output in divided and kind in products and not is_constant[operator.inputs[1]]:
            found.add(output)
        if output in divisors:
            found.add(output)
            if kind in sums:
                divisors |= inputs
    return {graph.tensors[index].name.decode() for index in found}


def _has_mask(tensor: Any, buffer: Any) -> bool:
    """Tell whether a constant has minus infinity in it, which the converter writes as the least number of float32."""
    if tensor.type != 0 or not _is_constant(buffer):
        return False
    return bool((torch.frombuffer(bytearray(buffer.data), dtype=torch.float32) < -1e30).any())


def _is_constant(buffer: Any) -> bool:
    return buffer.data is not None and len(buffer.data) > 0


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
    precisions=("float32", "float16", "int8", "int8-full"),
    converted=("float16", "int8-full"),
    any_batch=False,
    any_size=False,
    libraries=("litert_torch", "ai_edge_litert", "ai_edge_quantizer"),
    loads_with=("ai_edge_litert",),
    packages=("ai-edge-litert",),
    install="it wants an environment of its own: make litert, then .venv-litert/bin/linvit export ...",
    writer=write,
    loader=load,
    metadata=metadata_beside,
    runtime="litert",
)
