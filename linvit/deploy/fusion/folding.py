"""The algebra of fusion: affine maps around linear layers move into their weights, computed in float64."""

import torch
from torch import Tensor, nn

__all__ = ["affine", "scale_inputs", "scale_outputs"]

Linear = nn.Linear | nn.Conv2d


def affine(norm: nn.BatchNorm2d | nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """Return the scale and shift per channel that a norm applies: a BatchNorm in all, a LayerNorm after normalising."""
    scale = norm.weight.detach().double()
    shift = torch.zeros_like(scale) if norm.bias is None else norm.bias.detach().double()
    if isinstance(norm, nn.BatchNorm2d):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = scale / torch.sqrt(norm.running_var.double() + norm.eps)
        shift = shift - norm.running_mean.double() * scale
    return scale, shift


@torch.no_grad()
def scale_outputs(layer: Linear, scale: Tensor, shift: Tensor | None = None) -> None:
    """Make ``layer(x)`` return what ``layer(x) * scale + shift`` was, per output channel."""
    bias = 0.0 if layer.bias is None else layer.bias.double() * scale
    _replace(layer, layer.weight.double() * _over(0, layer.weight, scale), bias if shift is None else bias + shift)


@torch.no_grad()
def scale_inputs(layer: Linear, scale: Tensor, shift: Tensor) -> None:
    """Make ``layer(x)`` return what ``layer(x * scale + shift)`` was, per input channel.

    A convolution must be dense and unpadded: a shift inside a border of zeros is no shift of the output.
    """
    weight = layer.weight.double()
    constant = (weight * _over(1, weight, shift)).flatten(1).sum(1)
    _replace(layer, weight * _over(1, weight, scale), constant + (0.0 if layer.bias is None else layer.bias.double()))


def _over(axis: int, weight: Tensor, values: Tensor) -> Tensor:
    shape = [1] * weight.ndim
    shape[axis] = -1
    return values.reshape(shape)


def _replace(layer: Linear, weight: Tensor, bias: Tensor | float) -> None:
    """Give a layer new weights, and a bias if it needs one now."""
    layer.weight.copy_(weight)
    if isinstance(bias, Tensor):
        layer.bias = nn.Parameter(bias.to(layer.weight.dtype), requires_grad=False)
