"""Which layers of a model lose how much in 8 bits, each measured alone."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from linvit.deploy.quantization.model import calibrate, fake_quantized, unrounded

__all__ = ["Loss", "sensitivity"]


@dataclass(frozen=True)
class Loss:
    """What one layer in 8 bits, and all others in float32, does to the model's outputs.

    Attributes:
        layer: Where it is in the fused model, and what it computes there.
        error: Largest error relative to the largest output.
        top1_agreement: Share of images with the same most likely class.
    """

    layer: str
    error: float
    top1_agreement: float


@torch.no_grad()
def sensitivity(model: torch.nn.Module, images: Tensor, calibration: Tensor) -> tuple[int, Iterator[Loss]]:
    """Round one layer after the other to 8 bits, its weights and its output, and compare.

    Args:
        model: On images ``[B, C, H, W]``, returning logits, in evaluation mode.
        images: What to compare on.
        calibration: Images that set the ranges.

    Returns:
        How many layers there are, and the loss of each as it is measured, in the order of the model.
    """
    graph = fake_quantized(model, images[:1].expand(2, -1, -1, -1).contiguous())
    calibrate(graph, calibration)
    layers = _layers(graph)
    return len(layers), _losses(graph, layers, images)


@torch.no_grad()
def _losses(graph: GraphModule, layers: dict[str, list[Any]], images: Tensor) -> Iterator[Loss]:
    with unrounded(graph):
        expected = graph(images)
        for layer, fakes in layers.items():
            for fake in fakes:
                fake.enable_fake_quant()
            actual = graph(images)
            for fake in fakes:
                fake.disable_fake_quant()
            error = ((actual - expected).abs().max() / expected.abs().max()).item()
            agreement = (actual.argmax(1) == expected.argmax(1)).double().mean().item()
            yield Loss(layer, error, agreement)


def _layers(graph: GraphModule) -> dict[str, list[Any]]:
    """Return the rounding of each layer by its name: of its weights and of what it returns.

    What moves values returns them with the scale that they had, and its rounding changes nothing.
    """
    from linvit.deploy.quantization.quantizer import is_layer

    layers: dict[str, list[Any]] = {}
    for node in graph.graph.nodes:
        if node.op != "call_module":
            continue
        source, fake = node.args[0], graph.get_submodule(node.target)
        if getattr(fake, "is_per_channel", False):
            (user,) = node.users
            layers.setdefault(_title(user), []).append(fake)
        elif source.op == "placeholder":
            layers.setdefault("images", []).append(fake)
        elif is_layer(source) or source.op == "get_attr":
            layers.setdefault(_title(source if is_layer(source) else next(iter(node.users))), []).append(fake)
    # An operator with several outputs or of several parts of one module counts as one.
    return layers


def _title(node: Node) -> str:
    stack: dict[str, Any] = node.meta.get("nn_module_stack") or {}
    path = next((name for name, _ in reversed(stack.values()) if name), "")
    kind = str(node.target).removeprefix("aten.").split(".")[0]
    return f"{path.removeprefix('model.').removeprefix('model.')} {kind}".strip()
