"""CoreML packages for Apple's devices. They run on Apple's systems alone; elsewhere their structure is checked."""

import functools
from pathlib import Path
from typing import Any

import torch
from torch._decomp import get_decompositions

from linvit.deploy.formats._record import Format
from linvit.deploy.job import Job, quiet

__all__ = ["FORMAT"]


def write(job: Job, path: Path) -> None:
    """Write a package for one image of one size, for iOS 16 and macOS 13 or newer."""
    coremltools = _coremltools()
    precision = coremltools.precision.FLOAT32 if job.precision == "float32" else coremltools.precision.FLOAT16
    with quiet():
        package = coremltools.convert(
            job.program(dynamic_batch=False).run_decompositions(get_decompositions([torch.ops.aten.addcmul])),
            convert_to="mlprogram",
            inputs=[coremltools.TensorType(name="images", shape=tuple(job.example[:1].shape))],
            outputs=[coremltools.TensorType(name=name) for name in job.outputs],
            compute_precision=precision,
            minimum_deployment_target=coremltools.target.iOS16,
            skip_model_load=True,
        )
    package.user_defined_metadata.update(job.metadata)
    package.save(str(path))


def describe(path: Path) -> str:
    """Read a package back and say in words what is in it.

    Raises:
        ValueError: It is no ML program with one input.
    """
    coremltools = _coremltools()
    with quiet():
        spec = coremltools.models.MLModel(str(path), skip_model_load=True).get_spec()
    if spec.WhichOneof("Type") != "mlProgram" or len(spec.description.input) != 1:
        raise ValueError(f"{path} is no ML program with one input")
    (block,) = spec.mlProgram.functions["main"].block_specializations.values()
    (images,) = spec.description.input
    outputs = ", ".join(output.name for output in spec.description.output)
    shape = "x".join(map(str, images.type.multiArrayType.shape))
    return f"{len(block.operations)} operations, {images.name} {shape} to {outputs}"


@functools.cache
def _coremltools() -> Any:
    """Import the converter and teach it an operation that returns its input."""
    with quiet():
        import coremltools
        from coremltools.converters.mil import register_torch_op

    @register_torch_op
    def alias(context: Any, node: Any) -> None:
        context.add(context[node.inputs[0]], torch_name=node.name)

    return coremltools


FORMAT = Format(
    name="coreml",
    title="CoreML",
    purpose="iOS, macOS",
    suffix=".mlpackage",
    precisions=("float32", "float16"),
    converted=("float16",),
    any_batch=False,
    any_size=False,
    libraries=("coremltools",),
    writer=write,
    loader=None,
    describe=describe,
    runs_on="Apple's systems",
    runtime=None,
)
