"""The one way into every operator: symbolic tracing, autocast and the choice of backend are decided here, once.

An operator is a function on tensors that decides in Python, by types and sizes, what it computes. ``@operator`` makes
one of its fast version and gives it what no call site then has to think of:

- Symbolic tracing (``torch.fx``, timm's and torchvision's feature extraction) keeps it as one call.
- Autocast is off inside: it would take sums over tokens back to half precision.
- ``backend`` chooses what runs: "reference", "torch" (the fast version) or "triton" (kernels, where there are some).
- TorchScript compiles the fast version.
"""

import functools
import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.fx

__all__ = ["BACKENDS", "ENVIRONMENT_VARIABLE", "operator", "use_backend"]

BACKENDS = ("auto", "reference", "torch", "triton")
ENVIRONMENT_VARIABLE = "LINVIT_KERNELS"
_default_backend = os.environ.get(ENVIRONMENT_VARIABLE, "auto")  # read once: compiled code could not follow a change
_kernel_devices = ("cuda",)  # where "auto" thinks of kernels; ROCm calls itself cuda, too

Function = TypeVar("Function", bound=Callable[..., Any])


def operator(
    *,
    reference: Callable[..., Any] | None = None,
    kernels: Callable[[], Callable[..., Any]] | None = None,
    autocast: bool = False,
) -> Callable[[Function], Function]:
    """Make an operator of its fast version.

    Args:
        reference: What reads like the formula, with the same arguments; the operator then takes ``backend``, one of
            :data:`BACKENDS`, as its last argument. None where there is nothing to choose.
        kernels: Imports and returns what runs on kernels, with the same arguments; called when it is asked for.
        autocast: Leave autocast as it is inside.

    Returns:
        A decorator. Of the operator, backend "auto" is what the environment variable ``LINVIT_KERNELS`` says. Where it
        says nothing, it is the kernels on a GPU if they take the call and agreed with the reference on a small case of
        its type, and the fast version everywhere else.
    """

    def decorate(fast: Function) -> Function:
        parameters = inspect.signature(fast).parameters
        arguments = list(parameters)
        defaults = {name: p.default for name, p in parameters.items() if p.default is not p.empty}

        @functools.wraps(fast)
        def call(*args, **kwargs):
            proxy = _first((args, kwargs), torch.fx.Proxy)
            if proxy is not None:
                return proxy.tracer.create_proxy("call_function", call, args, kwargs)
            device = _first((args, kwargs), torch.Tensor).device.type
            run: Callable[..., Any] = fast
            if reference is not None:
                backend = kwargs.pop("backend", "auto")
                if len(args) == len(arguments):  # by position, as the last one
                    args, backend = args[:-1], args[-1]
                if backend == "triton" and kernels is None:
                    raise ValueError(f"{fast.__name__} has no kernels: backend must be auto, reference or torch")
                backend = _named(backend)
                if backend == "auto" and kernels is not None and device in _kernel_devices:
                    named = defaults | dict(zip(arguments, args, strict=False)) | kwargs
                    complete = len(named) == len(arguments)  # otherwise the fast version says what is missing
                    backend = "triton" if complete and _kernels_take(fast.__name__, named) else "torch"
                if backend == "reference":
                    run = reference
                elif backend == "triton" and kernels is not None:
                    run = _load(kernels)
            if not autocast and torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
                with torch.autocast(device, enabled=False):
                    return run(*args, **kwargs)
            return run(*args, **kwargs)

        call.__prepare_scriptable__ = lambda: fast  # type: ignore[attr-defined]
        return call  # type: ignore[return-value]

    return decorate


@contextmanager
def use_backend(backend: str) -> Iterator[None]:
    """Make a backend what "auto" means inside, in place of what ``LINVIT_KERNELS`` says.

    Raises:
        ValueError: There is no such backend.
    """
    global _default_backend
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    before, _default_backend = _default_backend, backend
    try:
        yield
    finally:
        _default_backend = before


def _named(backend: str) -> str:
    name = "backend"
    if backend == "auto":
        name, backend = ENVIRONMENT_VARIABLE, _default_backend
    if backend not in BACKENDS:
        raise ValueError(f"{name} must be one of {', '.join(BACKENDS)}, got {backend!r}")
    return backend


def _load(kernels: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
    try:
        return kernels()
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        raise ValueError("backend 'triton' needs the package triton, which is for Linux alone") from None


def _kernels_take(name: str, arguments: dict[str, Any]) -> bool:
    """Whether "auto" gives a call to the kernels, which see plain tensors alone, differentiated backwards."""
    if torch.jit.is_tracing() or torch.compiler.is_exporting():
        return False
    if not torch.compiler.is_compiling():
        # No condition on sizes where it could become one of a compiled graph.
        if torch.autograd.forward_ad._current_level >= 0:
            return False
        for x in arguments.values():
            if isinstance(x, torch.Tensor):
                plain = type(x) in (torch.Tensor, torch.nn.Parameter)  # no DTensor, no FakeTensor
                if not plain or torch._C._functorch.is_functorch_wrapped_tensor(x):
                    return False
        v = arguments["v"]
        if v.numel() == 0 or v.shape[-2] < 16:  # fewer tokens than a kernel takes at a time
            return False
    from linvit.ops.agreement import kernels_agree

    return kernels_agree(name, arguments)


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
