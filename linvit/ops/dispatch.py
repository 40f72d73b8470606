"""The one way into every operator: symbolic tracing, autocast and the choice of backend are decided here, once.

An operator is a function on tensors that decides in Python, by types and sizes, what it computes. ``@operator`` makes
one of its fast version and gives it what no call site then has to think of:

- Symbolic tracing (``torch.fx``, timm's and torchvision's feature extraction) keeps it as one call.
- Autocast is off inside: it would take sums over tokens back to half precision.
- ``backend`` chooses what runs.
- TorchScript compiles the fast version.
"""

import functools
import inspect
import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.fx

__all__ = ["BACKENDS", "ENVIRONMENT_VARIABLE", "operator"]

BACKENDS = ("auto", "reference", "torch")
ENVIRONMENT_VARIABLE = "LINVIT_KERNELS"
_default_backend = os.environ.get(ENVIRONMENT_VARIABLE, "auto")  # read once: compiled code could not follow a change

Function = TypeVar("Function", bound=Callable[..., Any])


def operator(*, reference: Callable[..., Any] | None = None, autocast: bool = False) -> Callable[[Function], Function]:
    """Make an operator of its fast version.

    Args:
        reference: What reads like the formula, with the same arguments; the operator then takes ``backend``, one of
            :data:`BACKENDS`, as its last argument. "auto" is what the environment variable ``LINVIT_KERNELS`` says, and
            the fast version where it says nothing. None where there is nothing to choose.
        autocast: Leave autocast as it is inside.

    Returns:
        A decorator.
    """

    def decorate(fast: Function) -> Function:
        arguments = list(inspect.signature(fast).parameters)

        @functools.wraps(fast)
        def call(*args, **kwargs):
            proxy = _first((args, kwargs), torch.fx.Proxy)
            if proxy is not None:
                return proxy.tracer.create_proxy("call_function", call, args, kwargs)
            run: Callable[..., Any] = fast
            if reference is not None:
                backend = kwargs.pop("backend", "auto")
                if len(args) == len(arguments):  # by position, as the last one
                    args, backend = args[:-1], args[-1]
                if _choose(backend) == "reference":
                    run = reference
            device = _first((args, kwargs), torch.Tensor).device.type
            if not autocast and torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
                with torch.autocast(device, enabled=False):
                    return run(*args, **kwargs)
            return run(*args, **kwargs)

        call.__prepare_scriptable__ = lambda: fast  # type: ignore[attr-defined]
        return call  # type: ignore[return-value]

    return decorate


def _choose(backend: str) -> str:
    name = "backend"
    if backend == "auto":
        name, backend = ENVIRONMENT_VARIABLE, _default_backend
    if backend not in BACKENDS:
        raise ValueError(f"{name} must be one of {', '.join(BACKENDS)}, got {backend!r}")
    return backend


def _first(arguments: Any, kind: type) -> Any:
    """Return the first instance of ``kind`` among arguments and in lists of them; None without one."""
    if isinstance(arguments, kind):
        return arguments
    if isinstance(arguments, dict):
        arguments = list(arguments.values())
    if isinstance(arguments, (list, tuple)):
        for argument in arguments:
            found = _first(argument, kind)
            if found is not None:
                return found
    return None
