"""ONNX files, run by ONNX Runtime: servers, Windows, Android, browsers."""

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from linvit.deploy.formats._record import Format
from linvit.deploy.job import BATCH, Job, Run, quiet

__all__ = ["FORMAT", "load", "output_names", "write"]

WORTHWHILE = 50
"""Multiply-accumulates for each activation read or written from which a layer in 8 bits wins more than rounding costs.

Float32 over int8 with a bound of 0, 30, 50, 80, one thread of a processor with AVX512-VNNI: CARE-S0 1.13, 1.19, 1.23,
1.18; FLatten-PVT-T 1.47, 1.51, 1.51, 1.42; LinGlo-B0 1.14, 1.19, 1.20, 1.19; ``linvit bench`` measures others.
"""


def write(job: Job, path: Path) -> None:
    """Write one file: ``images`` to the job's outputs, any batch size."""
    import onnx

    with quiet():
        program = torch.onnx.export(
            job.program(),
            input_names=["images"],
            output_names=list(job.outputs),
            opset_version=21 if job.precision == "int8-full" else None,  # the first with integers of 16 bits
            dynamo=True,
            external_data=False,
        )
    assert program is not None
    proto = program.model_proto
    if job.precision == "int8":
        assert job.calibration is not None
        proto = _quantized(proto, job.calibration)
    onnx.helper.set_model_props(proto, job.metadata)
    onnx.save(proto, str(path))


def load(path: Path, threads: int | None = None, precision: str = "float32") -> Run:
    """Open a file in ONNX Runtime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Threads of a session would go on spinning after its call, and take the processor from what comes next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if metadata(path).get("precision") == "int8-full":
        # Kernels for integers add pairs of products in 16 bits where there are no dot products of 8 bits (AVX2), and
        # overflow. On a CPU such a file is for checking: compute what the graph says.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: [torch.from_numpy(y) for y in session.run(None, {"images": images.numpy()})]


def metadata(path: Path) -> dict[str, str]:
    """Read the metadata of a file."""
    import onnx

    return {prop.key: prop.value for prop in onnx.load(str(path), load_external_data=False).metadata_props}


def output_names(path: Path) -> list[str]:
    """Return the names of a file's outputs, in order."""
    import onnx

    return [output.name for output in onnx.load(str(path), load_external_data=False).graph.output]


def _quantized(proto: Any, calibration: Tensor) -> Any:
    """Quantize dense convolutions and linear layers after training: weights per channel, activations by their range.

    Products of attention stay in float32, and so does what has little arithmetic for what it reads and writes,
    depthwise convolutions above all: it gains no time and costs accuracy (docs/deploy.md). The classifier is always
    quantized. Weights take 7 bits, so that processors without dot-product instructions (AVX2), which add pairs of
    products in 16 bits, do not overflow.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches: Iterator[Tensor] = iter(calibration.split(BATCH))

        def get_next(self) -> dict[str, Any] | None:  # type: ignore[override]
            image = next(self.batches, None)
            return None if image is None else {"images": image.numpy()}

    with tempfile.TemporaryDirectory() as folder, quiet():
        plain, prepared, done = (Path(folder, f"{name}.onnx") for name in ("plain", "prepared", "done"))
        onnx.save(proto, str(plain))
        quant_pre_process(plain, prepared, skip_symbolic_shape=True)
        graph = onnx.load(prepared).graph
        weights = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
        left_out = [
            node.name
            for node in graph.node
            if node.op_type in ("Conv", "MatMul") and _reuse(node, weights.get(node.input[1])) < WORTHWHILE
        ]
        quantize_static(
            prepared,
            done,
            Images(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Gemm", "MatMul"],
            nodes_to_exclude=left_out,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"CalibMovingAverage": True},  # the mean, whatever its name
        )
        return onnx.load(done)


def _reuse(node: Any, weight: list[int] | None) -> float:
    """Return the multiply-accumulates of a node for each activation that it reads or writes; none without a weight."""
    if weight is None or len(weight) < 2:
        return 0.0
    if node.op_type == "MatMul":
        rows, columns = weight[-2:]
        return rows * columns / (rows + columns)
    attributes = {attribute.name: attribute for attribute in node.attribute}
    groups = attributes["group"].i if "group" in attributes else 1
    strides = attributes["strides"].ints if "strides" in attributes else ()
    read, written = weight[1] * groups * math.prod(strides), weight[0]  # for each position of the output
    return math.prod(weight) / (read + written)


FORMAT = Format(
    name="onnx",
    title="ONNX",
    purpose="servers, Windows, Android, browsers",
    suffix=".onnx",
    precisions=("float32", "float16", "int8", "int8-full"),
    libraries=("onnx", "onnxruntime", "onnxscript"),  # torch's exporter would ask for the last in many lines
    packages=("onnxruntime",),
    writer=write,
    loader=load,
    metadata=metadata,
    runtime="onnxruntime",
)
