"""OpenVINO's format, run by OpenVINO: Intel's and Arm's CPUs, Intel's GPUs and NPUs."""

import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from linvit.deploy.formats._record import Format
from linvit.deploy.job import Job, Run, quiet

__all__ = ["FORMAT"]


def write(job: Job, path: Path) -> None:
    """Write the graph to ``path`` and the weights to a ``.bin`` beside it; any batch size.

    "float16" halves the weights in the file; what they are computed in is chosen when the file is loaded, as bfloat16
    is (``INFERENCE_PRECISION_HINT``).
    """
    import openvino

    with quiet(), _unreported():
        model = openvino.convert_model(job.program())
        if job.precision == "int8":
            model = _quantized(model, job)
    model.inputs[0].set_names({"images"})
    for output, name in zip(model.outputs, job.outputs, strict=True):
        output.set_names({name})
    for key, value in job.metadata.items():
        model.set_rt_info(value, ["linvit", key])
    openvino.save_model(model, str(path), compress_to_fp16=job.precision == "float16")


@contextlib.contextmanager
def _unreported() -> Iterator[None]:
    """Keep OpenVINO's tools from reporting their use over the network, which they leave out in CI alone."""
    before = os.environ.get("CI")
    os.environ["CI"] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ["CI"]
        else:
            os.environ["CI"] = before


def load(path: Path, threads: int | None = None, precision: str = "float32") -> Run:
    """Open a file in OpenVINO on the CPU.

    The graph is compiled for the shape of the first images, and again for others: OpenVINO plans a fixed shape better
    (CARE-S0 runs 1.09 times as fast), and a camera has one.

    Args:
        path: The ``.xml``.
        threads: Threads to compute with; None takes OpenVINO's choice.
        precision: What to compute in: bfloat16, or otherwise float32.
    """
    import openvino

    config: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": {"bfloat16": "bf16"}.get(precision, "f32"),
    }
    if threads is not None:
        config["INFERENCE_NUM_THREADS"] = threads
    core = openvino.Core()
    model = core.read_model(str(path))

    @functools.lru_cache(maxsize=2)
    def request(*shape: int) -> Any:
        model.reshape(list(shape))
        return core.compile_model(model, "CPU", config).create_infer_request()

    def run(images: torch.Tensor) -> list[torch.Tensor]:
        return [torch.from_numpy(y.copy()) for y in request(*images.shape).infer([images.numpy()]).values()]

    return run


def metadata(path: Path) -> dict[str, str]:
    """Read the metadata of a file."""
    import openvino

    info = openvino.Core().read_model(str(path)).get_rt_info()
    return {key: value.astype(str) for key, value in info["linvit"].items()} if "linvit" in info else {}


def _quantized(model: Any, job: Job) -> Any:
    """Quantize dense convolutions and linear layers after training; the rest gains no time and costs accuracy.

    Measured in docs/deploy.md, as is that NNCF's treatment of transformers does worse than its default.
    """
    import nncf

    assert job.calibration is not None
    images = [image.numpy() for image in job.calibration.split(1)]
    nodes = model.get_ordered_ops()
    others = {node.get_type_name() for node in nodes} - {"Convolution", "MatMul"}
    products = [node.get_friendly_name() for node in nodes if node.get_type_name() == "MatMul" and not _is_linear(node)]
    ignored = nncf.IgnoredScope(types=sorted(others), names=products, validate=False)
    return nncf.quantize(model, nncf.Dataset(images), subset_size=len(images), ignored_scope=ignored)


def _is_linear(node: Any) -> bool:
    """Tell whether a product is with weights."""
    source = node.input_value(1).get_node()
    while source.get_type_name() in ("Convert", "Transpose", "Reshape"):
        source = source.input_value(0).get_node()
    return source.get_type_name() == "Constant"


FORMAT = Format(
    name="openvino",
    title="OpenVINO",
    purpose="Intel's and Arm's CPUs, Intel's GPUs and NPUs",
    suffix=".xml",
    companions=(".bin",),
    precisions=("float32", "float16", "int8"),
    converted=("float16",),
    loads_as=("bfloat16",),
    separate_groups=True,
    libraries=("openvino", "nncf"),
    packages=("openvino",),
    writer=write,
    loader=load,
    metadata=metadata,
    runtime="openvino",
)
