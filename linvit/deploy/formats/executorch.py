"""ExecuTorch programs with the XNNPACK backend: PyTorch's own runtime for phones."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from linvit.deploy.formats._record import Format, metadata_beside
from linvit.deploy.job import Job, Run, quiet

__all__ = ["FORMAT"]


def write(job: Job, path: Path) -> None:
    """Write a program for one image of one size; what describes it goes into a ``.json`` beside it."""
    with quiet():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower
        from executorch.kernels import quantized  # noqa: F401  # what rounds where XNNPACK does not
    with _AttentionByFormula():
        program = job.program(dynamic_batch=False)
    with quiet():
        if job.precision == "int8":
            program = _quantized(program, job)
        elif job.precision == "float16":
            program = program.run_decompositions(_NORMS)
        edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner(configs=_configs())])
        path.write_bytes(edge.to_executorch().buffer)
    path.with_suffix(".json").write_text(json.dumps(job.metadata, indent=1))


def load(path: Path, threads: int | None = None, precision: str = "float32") -> Run:
    """Open a program in ExecuTorch's Python runtime; a batch is run image by image.

    Args:
        path: The ``.pte``.
        threads: Must be None: the runtime's threads are set for the process, by its affinity.

    Raises:
        ValueError: The backend refuses what it was given.
    """
    from executorch.kernels import quantized  # noqa: F401  # the runtime finds them among torch's
    from executorch.runtime import Runtime

    program = Runtime.get().load_program(str(path))
    try:
        method: Any = program.load_method("forward")
    except RuntimeError as error:
        raise ValueError(f"XNNPACK does not run {path.name}, this model in this precision: {error}") from error

    def run(images: Tensor) -> list[Tensor]:
        # The outputs live in memory that the next call overwrites.
        runs = [[y.clone() for y in method.execute([image.contiguous()])] for image in images.split(1)]
        return [torch.cat(parts) for parts in zip(*runs, strict=True)]

    run.__dict__["program"] = program  # the method needs it alive
    return run


class _AttentionByFormula(TorchFunctionMode):
    """Traces softmax attention as what it is lowered to.

    The fused kernel's output lies otherwise in memory: a reshape that was traced as a view of that need not be one. (A
    model that calls ``view`` where it counts on the fused kernel's layout cannot be lowered.)
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return (_attention if func is F.scaled_dot_product_attention else func)(*args, **(kwargs or {}))


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *args: Any, **kwargs: Any
) -> Tensor:
    if attn_mask is not None and attn_mask.dtype == torch.bool:  # this operator adds every mask
        attn_mask = torch.where(attn_mask, 0.0, -torch.inf).to(query.dtype)
    return torch.ops.aten._scaled_dot_product_attention_math(query, key, value, attn_mask, *args, **kwargs)[0]


def _layer_norm(x: Tensor, shape: list[int], weight: Any, bias: Any, eps: float, cudnn: bool = True) -> Tensor:
    weight, bias = (None if t is None else t.float() for t in (weight, bias))
    return torch.native_layer_norm(x.float(), shape, weight, bias, eps)[0].to(x.dtype)


def _group_norm(x: Tensor, groups: int, weight: Any, bias: Any, eps: float, cudnn: bool = True) -> Tensor:
    weight, bias = (None if t is None else t.float() for t in (weight, bias))
    sizes = x.shape[0], x.shape[1], x[0, 0].numel()
    return torch.native_group_norm(x.float(), weight, bias, *sizes, groups, eps)[0].to(x.dtype)


_NORMS = {torch.ops.aten.layer_norm.default: _layer_norm, torch.ops.aten.group_norm.default: _group_norm}
"""ExecuTorch's kernels of these add in the type of the input: in float16, 512 channels go entirely wrong (1.5.1)."""


def _quantized(program: Any, job: Job) -> Any:
    """Quantize dense convolutions and linear layers after training; as in the other formats, the rest costs accuracy.

    Symmetric, weights per channel, activations by the ranges seen on the calibration images.
    """
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    assert job.calibration is not None
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    quantizer.set_filter_function(_is_dense)
    observed = prepare_pt2e(program.module(), quantizer)
    with torch.no_grad():
        for image in job.calibration.split(1):
            observed(image)
    return torch.export.export(convert_pt2e(observed), (job.example[:1],))


def _configs() -> list[Any]:
    """Return what XNNPACK takes, in a form that leaves to other kernels what it would refuse the whole program for.

    These are integers of 16 bits, what moves integers, or joins them, from one scale to another, and what pads them and
    returns fractions.
    """
    from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS

    return [_careful(config) for config in ALL_PARTITIONER_CONFIGS]


def _careful(config: Any) -> Any:
    class Careful(config):
        def check_constraints(self, node: Any, ep: Any) -> bool:
            before, own, after = (_roundings(side) for side in (node.all_input_nodes, (node,), node.users))
            name = node.target.__name__
            moves = any(word in name for word in ("cat", "pad", "permute", "slice", "squeeze", "view"))
            joins = moves and len(before | own | after) > 1
            pads_across = "pad" in name and before != after
            if joins or pads_across or any(kind == torch.int16 for *_, kind in before | own | after):
                return False
            return bool(super().check_constraints(node, ep))

    return Careful


def _roundings(nodes: Iterable[Any]) -> set[tuple[Any, ...]]:
    """Return scale, zero point, range and type of what rounds, or takes rounding back, among nodes."""
    return {node.args[1:6] for node in nodes if "quantize_per_tensor" in str(node.target)}


def _is_dense(node: Any) -> bool:
    """Tell whether a node of a traced program is a linear layer, or a convolution in one group."""
    groups = node.args[6] if len(node.args) > 6 else 1
    return node.target == torch.ops.aten.linear.default or (
        node.target == torch.ops.aten.conv2d.default and groups == 1
    )


FORMAT = Format(
    name="executorch",
    title="ExecuTorch",
    purpose="Android and iOS, PyTorch's runtime",
    suffix=".pte",
    companions=(".json",),
    precisions=("float32", "float16", "int8", "int8-full"),
    any_batch=False,
    any_size=False,
    any_threads=False,
    libraries=("executorch.exir", "torchao"),
    packages=("executorch",),
    writer=write,
    loader=load,
    metadata=metadata_beside,
    runtime="executorch",
)
