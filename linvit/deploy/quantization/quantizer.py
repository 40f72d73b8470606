"""What of a traced model is held in 8 bits: all of it."""

import math
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.fake_quantize import FakeQuantize
from torchao.quantization.pt2e.observer import MovingAverageMinMaxObserver, MovingAveragePerChannelMinMaxObserver
from torchao.quantization.pt2e.quantizer import (
    QuantizationAnnotation,
    QuantizationSpec,
    QuantizationSpecBase,
    Quantizer,
    SharedQuantizationSpec,
)
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

__all__ = ["FLOOR", "FullQuantizer", "is_layer", "without_idle_nodes"]

_aten = torch.ops.aten

_WEIGHTED = {_aten.conv2d.default, _aten.linear.default}
"""Their second argument is a weight, with its output channels first."""

_IDLE = {
    _aten.dropout.default,
    _aten.detach.default,
    _aten.to.dtype,
    _aten.alias.default,
    _aten.contiguous.default,
    _aten.clone.default,
}
"""In a float32 graph for inference they return what they take."""

_MOVING = {
    _aten.permute.default,
    _aten.transpose.int,
    _aten.reshape.default,
    _aten.view.default,
    _aten.flatten.using_ints,
    _aten.unflatten.int,
    _aten.unsqueeze.default,
    _aten.squeeze.dim,
    _aten.slice.Tensor,
    _aten.narrow.default,
    _aten.select.int,
    _aten.expand.default,
    _aten.repeat.default,
    _aten.roll.default,
}
"""They move values and compute none: what comes out has the scale of what went in."""

_PARTS = {_aten.chunk.default, _aten.split.Tensor, _aten.split_with_sizes.default, _aten.unbind.int}
"""The same, in parts."""

_DIVIDING = {_aten.div.Tensor: 1, _aten.reciprocal.default: 0}
"""By which of their arguments they divide."""

FLOOR = "floor_of_"
"""Names of the constants below which nothing that is divided by can be rounded, which would be to zero."""

# Not torchao's fused rounding: its steps are 6e-5 at least, and keys divided by their number are smaller than that.
ACTIVATION = QuantizationSpec(
    dtype=torch.int8,
    quant_min=-128,
    quant_max=127,
    qscheme=torch.per_tensor_affine,
    observer_or_fake_quant_ctr=FakeQuantize.with_args(observer=MovingAverageMinMaxObserver),
)
WIDE = QuantizationSpec(
    dtype=torch.int16,
    quant_min=-32767,
    quant_max=32767,
    qscheme=torch.per_tensor_symmetric,
    observer_or_fake_quant_ctr=FakeQuantize.with_args(observer=MovingAverageMinMaxObserver),
)
"""Of what is divided by: eight bits would round the least of it to zero. And of products that are divided.

These differ from token to token as their divisors do: in eight bits most would have a few steps.
"""
WEIGHT = QuantizationSpec(
    dtype=torch.int8,
    quant_min=-127,
    quant_max=127,
    qscheme=torch.per_channel_symmetric,
    ch_axis=0,
    # The range of a weight is the one that it has now, not an average of those that it had.
    observer_or_fake_quant_ctr=FakeQuantize.with_args(
        observer=MovingAveragePerChannelMinMaxObserver, averaging_constant=1.0
    ),
)


class FullQuantizer(Quantizer):
    """Annotates every tensor of numbers: activations with one range each, weights with one for each channel.

    Biases stay as they are: runtimes hold them in 32 bits, with the scale of what they are added to. What is divided by
    has 16 bits, and a floor of one step, so that nothing is divided by zero. Products that are divided have 16, too.
    What can be minus infinity stays in float, up to the softmax or exponential that makes a zero of it.
    """

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        """Put a floor under what is divided by."""
        for node in list(model.graph.nodes):
            place = _DIVIDING.get(node.target, len(node.args))
            below = node.args[place] if place < len(node.args) else None
            if not isinstance(below, Node) or not _is_numbers(below):
                continue
            name = FLOOR + node.name
            model.register_buffer(name, torch.zeros(()))
            with model.graph.inserting_before(node):
                floor = model.graph.get_attr(name)
                floored = model.graph.call_function(_aten.maximum.default, (below, floor))
            floored.meta |= {"val": below.meta["val"], "nn_module_stack": node.meta.get("nn_module_stack", {})}
            node.update_arg(place, floored)
        model.recompile()
        return model

    def annotate(self, model: GraphModule) -> GraphModule:
        """Say of each node how its inputs and its output are held."""
        wide, unbounded = _wide(model), _unbounded(model)
        for node in model.graph.nodes:
            if node.op != "call_function" or not (_is_numbers(node) or node.target in _PARTS) or node in unbounded:
                continue
            inputs: dict[Node, QuantizationSpecBase | None] = {}
            for place, source in enumerate(node.args):
                for each in source if isinstance(source, (list, tuple)) else [source]:
                    if not isinstance(each, Node) or not _is_numbers(each) or _is_floor(each) or each in unbounded:
                        continue
                    if node.target in _WEIGHTED and place == 1:
                        inputs[each] = WEIGHT
                    elif node.target not in _WEIGHTED or place == 0:
                        inputs[each] = WIDE if each in wide else ACTIVATION
            output: QuantizationSpecBase | None = WIDE if node in wide else ACTIVATION
            if node.target in _PARTS:
                output = None
            elif node.target in _MOVING:
                output = SharedQuantizationSpec((next(iter(inputs)), node))
            elif _is_part(node):
                (parts,) = node.all_input_nodes
                inputs, output = {}, SharedQuantizationSpec((parts.all_input_nodes[0], parts))
            node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(inputs, output, _annotated=True)
        return model

    def validate(self, model: GraphModule) -> None:
        """Accept whatever was annotated."""


def _wide(model: GraphModule) -> set[Node]:
    """Find products that are only divided; what is only divided by, added to it or moved on the way there."""
    wide = {
        node
        for node in model.graph.find_nodes(op="call_function", target=_aten.matmul.default)
        if node.users and all(user.target == _aten.div.Tensor and user.args[0] is node for user in node.users)
    }
    passing = {_aten.maximum.default, _aten.add.Tensor, *_MOVING}
    for node in reversed(model.graph.nodes):
        if node.op != "call_function" or not _is_numbers(node) or _is_part(node):
            continue
        if all(
            (user in wide and user.target in passing) or (user.target in _DIVIDING and node.target in passing)
            for user in node.users
        ):
            wide.add(node)
    return wide


def _unbounded(model: GraphModule) -> set[Node]:
    """Find what can be minus infinity, which no range of integers has: masks, and what hides behind them."""
    found: set[Node] = set()
    passing = {_aten.where.self, _aten.maximum.default, _aten.sub.Tensor, *_MOVING}
    for node in model.graph.nodes:
        if -math.inf in node.args or (node.target in passing and not found.isdisjoint(node.all_input_nodes)):
            found.add(node)
    return found


def is_layer(node: Node) -> bool:
    """Tell whether a node computes something, which a report can name: it does not merely move values."""
    return node.op == "call_function" and _is_numbers(node) and node.target not in _MOVING and not _is_part(node)


def without_idle_nodes(model: GraphModule) -> GraphModule:
    """Take out, in place, the nodes of a traced float32 model that change nothing."""
    for node in list(model.graph.nodes):
        if node.target == _aten._assert_tensor_metadata.default or (node.op == "call_module" and "guard" in node.name):
            model.graph.erase_node(node)
        elif node.op == "call_function" and node.target in _IDLE:
            node.replace_all_uses_with(node.args[0])
            model.graph.erase_node(node)
    model.graph.eliminate_dead_code()
    model.recompile()
    return model


def _is_part(node: Node) -> bool:
    source: Any = node.args[0] if node.args else None
    return isinstance(source, Node) and source.target in _PARTS


def _is_numbers(node: Node) -> bool:
    value = node.meta.get("val")
    if value is None and node.op == "get_attr":
        return True
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _is_floor(node: Node) -> bool:
    return node.op == "get_attr" and FLOOR in str(node.target)
