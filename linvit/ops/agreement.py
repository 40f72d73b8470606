"""Kernels check themselves: before they are used, each agrees with its reference on this device, or is left alone."""

import functools
import importlib
import operator
import warnings
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

__all__ = ["TENSORS", "TOLERANCES", "kernels_agree", "largest_error"]

TOLERANCES = {torch.float16: 4e-3, torch.bfloat16: 3e-2, torch.float32: 1e-4}
"""Of the largest error of an output or a gradient, relative to its largest entry; auto uses no kernels for others."""

TENSORS = {
    "linear_attention": ("q", "k", "v"),
    "focused_linear_attention": ("q", "k", "v", "scale", "positions"),
    "global_context": ("saliency", "v"),
    "local_context": ("saliency", "v"),
}
"""The tensors that an operator takes; positions may be missing."""

_SETTINGS = ("feature_map", "power", "eps")


def kernels_agree(name: str, arguments: dict[str, Any]) -> bool:
    """Whether an operator's kernels agree with its reference in float64, in output and gradients, on a small case.

    They are run once for each device and kind of call: the types of the tensors, the sizes of heads, and what the
    feature map is. All of these make another binary. If they differ, or do not run at all, a warning says so in one
    line.

    Args:
        name: The operator.
        arguments: Those of the call, by name, with defaults.
    """
    tensors = {key: arguments[key] for key in TENSORS[name] if arguments[key] is not None}
    if not all(x.dtype in TOLERANCES for x in tensors.values()):
        return False
    v = tensors["v"]
    heads = arguments.get("num_heads") or (tensors["saliency"].shape[-1] if "saliency" in tensors else 1)
    # A constant of the kernels, and so of a graph, too: index makes a number of a symbol.
    d, e = (operator.index(x.shape[-1] // heads) for x in (tensors.get("q", v), v))
    types = tuple((key, x.dtype) for key, x in tensors.items())
    settings = tuple((key, arguments[key]) for key in _SETTINGS if key in arguments)
    return _agree(name, str(v.device), types, (d, e), settings)


@torch.compiler.assume_constant_result
def _agree(*kind: Any) -> bool:  # a function of its own: compilers look through a cache
    return _check(*kind)


@functools.cache
def _check(
    name: str,
    device: str,
    types: tuple[tuple[str, torch.dtype], ...],
    sizes: tuple[int, int],
    settings: tuple[tuple[str, Any], ...],
) -> bool:
    try:
        error = largest_error(name, device, dict(types), sizes, **dict(settings))
    except Exception as problem:  # whatever a compiler or a driver may raise, the fast version works
        reason = f"{type(problem).__name__}: {str(problem).splitlines()[0] if str(problem) else ''}"
    else:
        if error <= max(TOLERANCES[dtype] for _, dtype in types):
            return True
        reason = f"they differ from the reference by {error:.1e}"
    kind = " and ".join(dict.fromkeys(str(dtype) for _, dtype in types))
    warnings.warn(
        f"linvit uses no kernels for {name} in {kind} with heads of {max(sizes)} on {device}: {reason}", stacklevel=2
    )
    return False


def largest_error(
    name: str, device: str, types: dict[str, torch.dtype], sizes: tuple[int, int] = (24, 24), **settings: Any
) -> float:
    """Return the largest error of the kernels' output and gradients on a small case, relative to the largest entry.

    Nothing of where it is called from changes it: no inference mode, autocast, default device, or mode that counts.

    Args:
        name: The operator.
        device: Where to run it.
        types: The types of its tensors, by name.
        sizes: Channels of a head, of keys and of values.
        settings: Its other arguments that are no sizes: feature map, power, epsilon.
    """
    operators: Any = importlib.import_module("linvit.ops")
    shapes, fixed = _case(name, *sizes)
    generator = torch.Generator().manual_seed(0)
    tensors = {
        key: torch.randn(shapes[key], generator=generator, device="cpu", dtype=torch.float32).to(dtype)
        for key, dtype in types.items()
    }
    if name == "linear_attention" and settings.get("feature_map") is None:
        tensors |= {key: tensors[key].abs() + 0.1 for key in ("q", "k")}
    results = []
    runs = (
        (functools.partial(getattr(operators, name), backend="triton"), device, None),
        (getattr(operators, f"{name}_reference"), "cpu", torch.float64),
    )
    with (
        _disable_current_modes(),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(torch.device(device).type, enabled=False),
    ):
        for function, place, dtype in runs:
            inputs = {key: x.to(place, dtype or x.dtype, copy=True).requires_grad_() for key, x in tensors.items()}
            output = function(**inputs, **fixed, **settings)
            target = torch.linspace(-1, 1, output.numel(), device="cpu", dtype=torch.float64).reshape(output.shape)
            gradients = torch.autograd.grad(output, list(inputs.values()), target.to(place, dtype or output.dtype))
            results.append([x.double().cpu() for x in (output, *gradients)])
    # A NaN must not pass as agreement.
    return max(
        ((a - b).abs().amax() / b.abs().amax()).nan_to_num(torch.inf).item() for a, b in zip(*results, strict=True)
    )


def _case(name: str, d: int, e: int) -> tuple[dict[str, tuple[int, ...]], dict[str, Any]]:
    """Return the shapes of a small case, with more tokens than a program takes at a time, and the sizes it is given."""
    shapes: dict[str, tuple[int, ...]]
    if name == "linear_attention":
        shapes = {"q": (2, 2, 70, d), "k": (2, 2, 90, d), "v": (2, 2, 90, e)}
        return shapes, {}
    if name == "focused_linear_attention":
        keys = (2, 90, 2 * d)
        shapes = {"q": (2, 70, 2 * d), "k": keys, "v": keys, "scale": (1, 1, 2 * d), "positions": (1, 90, 2 * d)}
        return shapes, {"num_heads": 2}
    shapes = {"saliency": (2, 90, 2), "v": (2, 90, 2 * e)}
    return shapes, {} if name == "global_context" else {"grid_size": [9, 10], "kernel_size": 3}
