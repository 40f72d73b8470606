"""A model with the rounding of 8-bit arithmetic in it: calibrated or trained, then converted for a runtime."""

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn
from torch.fx import GraphModule

from linvit.deploy.fusion import fuse, is_fused

__all__ = ["QuantizedModel", "fake_quantized", "quantize", "rebuild"]

BATCH = 16
"""Images that are looked at together while ranges are found."""


class QuantizedModel(nn.Module):
    """A classifier computed as an accelerator computes it, with the interface of the one that it was made from.

    Weights, activations and all between are rounded to 8 bits where they arise, and computed with in float32. In
    training mode ranges follow what goes through, until :meth:`freeze`, and the gradient is the one that the model
    without rounding has, at the loss of the rounded outputs. In evaluation mode it passes straight through one rounding
    after the other, which means nothing where rounded numbers are divided, features of few steps by a normaliser near
    zero: it has neither the length nor the direction of the gradient of the model.

    Attributes:
        graph: The fused model as a graph of torchao's PT2E, for images of one size, any batch.
        img_size: Their height and width in pixels.
    """

    def __init__(self, model: nn.Module, img_size: Sequence[int]):
        super().__init__()
        fused: Any = model if is_fused(model) else fuse(model)
        self.img_size = (int(img_size[0]), int(img_size[1]))
        self.frozen = False
        channels = resolve_model_data_config(fused)["input_size"][0]
        # In a tuple, so that its weights, which the graph has, too, are not kept twice.
        self._interface = (fused,)
        self.graph = fake_quantized(fused, torch.zeros(2, channels, *self.img_size))
        self.train(False)

    def forward(self, images: Tensor) -> Any:
        """Map images ``[B, C, H, W]`` of the one size to logits.

        Raises:
            ValueError: They have another size.
        """
        if tuple(images.shape[2:]) != self.img_size:
            height, width = self.img_size
            got = "x".join(map(str, images.shape[2:]))
            raise ValueError(f"a model in 8 bits takes images of one size, {height}x{width}, got {got}")
        if not self.training:
            return self.graph(images)
        with torch.no_grad():  # in the batches that ranges are found with: those of more images reach further
            rounded = torch.cat([self.graph(part) for part in images.split(BATCH)])
        if not torch.is_grad_enabled():
            return rounded
        observe(self.graph, False)
        with unrounded(self.graph):
            smooth = self.graph(images)
        observe(self.graph, not self.frozen)
        return smooth + (rounded - smooth).detach()

    def train(self, mode: bool = True) -> Self:
        """Let ranges follow what goes through (training mode), or leave them as they are."""
        observe(self.graph, mode and not self.frozen)
        if not mode:
            set_floors(self.graph)  # of the ranges of now
        return super().train(mode)

    def freeze(self) -> None:
        """Leave the ranges as they are from now on, in training mode, too."""
        self.frozen = True
        observe(self.graph, False)
        set_floors(self.graph)

    def calibrate(self, images: Tensor) -> None:
        """Set the ranges by images ``[N, C, H, W]``: the mean of what batches of 16 reach."""
        calibrate(self.graph, images)

    def converted(self) -> nn.Module:
        """Return the graph with weights in 8 bits and the rounding as operators, for the formats."""
        return converted(self.graph)

    def in_float(self) -> nn.Module:
        """Return a copy of the fused model with the weights of now and no rounding, for converters that round."""
        return copy.deepcopy(self._interface[0])

    def set_distilled_training(self, enable: bool = True) -> None:
        """Do nothing: there is one head."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "_interface":  # a copy that is not filled yet
                raise
            return getattr(self._interface[0], name)


def quantize(model: nn.Module, img_size: Sequence[int] | None = None, calibration: Tensor | None = None) -> Any:
    """Return a copy of a classifier in 8 bits, fused; see :class:`QuantizedModel`.

    Args:
        model: A trained classifier of linvit or timm.
        img_size: Height and width in pixels; None takes the model's.
        calibration: Images ``[N, C, H, W]`` as the model takes them, which set the ranges; without them it has none yet
            and must be trained.
    """
    size = resolve_model_data_config(model)["input_size"][1:] if img_size is None else img_size
    copied = copy.deepcopy(model).cpu().float().eval().to(memory_format=torch.contiguous_format)
    quantized = QuantizedModel(copied, size)
    if calibration is not None:
        quantized.calibrate(calibration)
    return quantized


def rebuild(model: nn.Module, description: dict[str, Any]) -> QuantizedModel:
    """Build what :attr:`QuantizedModel.img_size` describes around a fresh model, for its weights to be loaded."""
    return QuantizedModel(model.eval(), description["img_size"])


def fake_quantized(model: nn.Module, example: Tensor) -> GraphModule:
    """Trace a model in evaluation mode and put rounding into it; all tensors have the shapes that they will have."""
    from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e

    from linvit.deploy.quantization.quantizer import FullQuantizer, without_idle_nodes

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        dims = {0: torch.export.Dim("batch")}
        traced: Any = torch.export.export(model, (example,), dynamic_shapes=(dims,)).module()
        graph = _each_once(prepare_qat_pt2e(without_idle_nodes(traced), FullQuantizer()))
        for name in ("train", "eval"):  # torchao forbids both, for graphs with dropout; there is none here
            graph.__dict__.pop(name, None)
        with unrounded(graph):
            graph(example)  # ranges of channels get their shape
    for parameter in graph.parameters():
        parameter.requires_grad_(True)
    return graph


@torch.no_grad()
def calibrate(graph: GraphModule, images: Tensor) -> None:
    """Set the ranges of a graph by images: the mean of what batches reach, so that one odd image does not stretch them.

    Weights have the range that they have.
    """
    with unrounded(graph):
        observe(graph, True)
        for count, batch in enumerate(images.split(BATCH)):
            for fake in _fakes(graph):
                if not fake.is_per_channel:
                    fake.activation_post_process.averaging_constant = 1 / (count + 1)
            graph(batch)
    for fake in _fakes(graph):
        if not fake.is_per_channel:
            fake.activation_post_process.averaging_constant = 0.01
    observe(graph, False)
    set_floors(graph)


def set_floors(graph: GraphModule) -> None:
    """Make the floor of what is divided by one step of its range."""
    from linvit.deploy.quantization.quantizer import FLOOR

    for node in graph.graph.nodes:
        if node.target == torch.ops.aten.maximum.default and FLOOR in str(node.args[1].target):
            (rounding,) = node.users
            fake: Any = graph.get_submodule(rounding.target)
            graph.get_buffer(node.args[1].target).copy_(fake.scale[0])


def _each_once(graph: GraphModule) -> GraphModule:
    """Name each rounding once, by what it rounds: what shares a range has several, numbered in no certain order."""
    names: dict[int, str] = {}
    for node in graph.graph.nodes:
        if node.op == "call_module":
            rounding = graph.get_submodule(node.target)
            if id(rounding) not in names:
                name = f"range_of_{node.args[0].name}"
                while hasattr(graph, name):
                    name += "_"
                graph.add_submodule(name, rounding)
                names[id(rounding)] = name
            node.target = names[id(rounding)]
    # One by one: GraphModule.delete_all_unused_submodules sees the first name of each alone.
    for name, module in list(graph._modules.items()):
        if id(module) in names and name != names[id(module)]:
            delattr(graph, name)
    graph.recompile()
    return graph


def converted(graph: GraphModule) -> nn.Module:
    """Return a copy of a graph with weights in 8 bits and the rounding as operators."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done = convert_pt2e(copy.deepcopy(graph))
    for name in ("train", "eval"):
        done.__dict__.pop(name, None)
    return done.requires_grad_(False)


def observe(graph: GraphModule, on: bool) -> None:
    """Let the ranges of activations follow what goes through; those of weights always do, being what they are."""
    for fake in _fakes(graph):
        fake.enable_observer(on or fake.is_per_channel)


@contextmanager
def unrounded(graph: GraphModule) -> Iterator[None]:
    """Compute in float32 for a while."""
    for fake in _fakes(graph):
        fake.disable_fake_quant()
    try:
        yield
    finally:  # whether it rounds is part of a checkpoint, which training writes when it is stopped, too
        for fake in _fakes(graph):
            fake.enable_fake_quant()


def _fakes(graph: GraphModule) -> Iterator[Any]:
    return (module for module in graph.modules() if hasattr(module, "fake_quant_enabled"))
