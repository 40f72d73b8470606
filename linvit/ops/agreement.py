"""Kernels check themselves: before they are used, each agrees with its reference on this device, or is left alone."""

import functools
import importlib
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["TOLERANCES", "kernels_agree", "largest_error"]

TOLERANCES = {torch.float16: 4e-3, torch.bfloat16: 3e-2, torch.float32: 1e-4}
"""Of the largest error of an output or a gradient, relative to its largest entry; auto uses no kernels for others."""


@torch.compiler.assume_constant_result
def kernels_agree(name: str, device: str, dtype: torch.dtype, settings: tuple[str | float, ...]) -> bool:
    """Whether an operator's kernels agree with its reference in float64, in output and gradients, on a small case.

    They are run once for each device, type and kind (what ``settings`` of the call say). If they differ, or do not run
    at all, a warning says so in one line.

    Args:
        name: The operator.
        device: Where to run it.
        dtype: The type of the inputs.
        settings: Its arguments that are neither tensors nor sizes: feature map, power, epsilon.
    """
    return dtype in TOLERANCES and _agree(name, device, dtype, settings)


@functools.cache
def _agree(name: str, device: str, dtype: torch.dtype, settings: tuple[str | float, ...]) -> bool:
    try:
        error = largest_error(name, device, dtype, settings)
    except Exception as problem:  # whatever a compiler or a driver may raise, the fast version works
        reason = f"{type(problem).__name__}: {str(problem).splitlines()[0] if str(problem) else ''}"
    else:
        if error <= TOLERANCES[dtype]:
            return True
        reason = f"they differ from the reference by {error:.1e}"
    warnings.warn(f"linvit uses no kernels for {name} in {dtype} on {device}: {reason}", stacklevel=2)
    return False


def largest_error(name: str, device: str, dtype: torch.dtype, settings: tuple[str | float, ...]) -> float:
    """Return the largest error of the kernels' output and gradients on a small case, relative to the largest entry."""
    operators: Any = importlib.import_module("linvit.ops")
    shapes, call = _case(name, settings)
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    results = []
    runs = (
        (functools.partial(getattr(operators, name), backend="triton"), device, dtype),
        (getattr(operators, f"{name}_reference"), "cpu", torch.float64),
    )
    with torch.enable_grad(), torch.autocast(torch.device(device).type, enabled=False):
        for function, place, kind in runs:
            inputs = [x.detach().to(place, kind).requires_grad_() for x in tensors]
            output = call(function, *inputs)
            target = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).reshape(output.shape)
            gradients = torch.autograd.grad(output, inputs, target.to(place, kind))
            results.append([x.double().cpu() for x in (output, *gradients)])
    # A NaN must not pass as agreement.
    return max(
        ((a - b).abs().amax() / b.abs().amax()).nan_to_num(torch.inf).item() for a, b in zip(*results, strict=True)
    )


def _case(name: str, settings: tuple[str | float, ...]) -> tuple[list[tuple[int, ...]], Callable[..., Tensor]]:
    """Return the shapes of a small case, with more tokens than a program takes at a time, and how it is called."""
    if name == "linear_attention":
        feature_map = next((x for x in settings if isinstance(x, str)), None)
        shapes: list[tuple[int, ...]] = [(2, 2, 70, 24), (2, 2, 90, 24), (2, 2, 90, 24)]
        if feature_map is not None:
            return shapes, lambda function, q, k, v: function(q, k, v, 1e-6, feature_map)
        return shapes, lambda function, q, k, v: function(q.abs() + 0.1, k.abs() + 0.1, v)
    if name == "focused_linear_attention":
        power = next((x for x in settings if isinstance(x, float)), 3.0)
        return [
            (2, 70, 48),
            (2, 90, 48),
            (2, 90, 48),
            (1, 1, 48),
            (1, 90, 48),
        ], lambda function, q, k, v, s, p: function(q, k, v, s, 2, power, positions=p)
    if name == "global_context":
        return [(2, 90, 2), (2, 90, 48)], lambda function, s, v: function(s, v)
    return [(2, 90, 2), (2, 90, 48)], lambda function, s, v: function(s, v, [9, 10], 3)
