"""What the kernels are compared on, in the interpreter and on a GPU: inputs of all layouts, against float64."""

from collections.abc import Callable

import torch

from linvit import ops

TOLERANCES = {torch.float64: 1e-11, torch.float32: 5e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
"""Of the largest error of an output or gradient, relative to its largest entry: two roundings of the type."""


def lay_out(x: torch.Tensor, layout: str) -> torch.Tensor:
    """Give ``[B, h, N, d]`` other strides: those of a qkv projection, of a channels-first map, or of neither."""
    if layout == "projection":
        padded = torch.stack((x, x, x)).permute(1, 3, 0, 2, 4).contiguous()  # [B, N, 3, h, d]
        return padded[:, :, 1].transpose(1, 2)
    if layout == "channels first":
        return x.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == "gaps":
        return x.repeat_interleave(2, dim=3)[..., ::2]
    return x.contiguous()


def random(*shape: int, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def compare(
    call: Callable[..., torch.Tensor],
    name: str,
    inputs: list[torch.Tensor],
    exact: Callable | None = None,
    cancelled: Callable[[list[torch.Tensor], list[torch.Tensor]], list[float]] | None = None,
) -> None:
    """Compare output and gradients of the kernels with those of the reference, or another function, in float64.

    Memory that a kernel should have written and did not is NaN.

    Args:
        call: Calls a function with inputs.
        name: The operator.
        inputs: The tensors.
        exact: What to compare with; None is the reference.
        cancelled: Returns, of inputs and their exact gradients, the largest term of the sums that each gradient is.
            Where terms cancel, the last digits of float32 are what is left: four of these are allowed.
    """
    dtype = inputs[0].dtype
    inputs = [x.requires_grad_() for x in inputs]
    doubles = [x.detach().double().requires_grad_() for x in inputs]
    torch.use_deterministic_algorithms(True)  # fills what is allocated with NaN
    try:
        output = call(getattr(ops, name), *inputs, backend="triton")
        target = random(*output.shape, dtype=dtype, device=output.device, seed=9)
        gradients = torch.autograd.grad(output, inputs, target)
    finally:
        torch.use_deterministic_algorithms(False)
    expected = call(exact or getattr(ops, f"{name}_reference"), *doubles)
    expected_gradients = torch.autograd.grad(expected, doubles, target.double())
    assert output.dtype == dtype
    digit = 4 * torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    terms = [0.0, *(cancelled(doubles, expected_gradients) if cancelled else [0.0] * len(inputs))]
    results = zip((output, *gradients), (expected, *expected_gradients), terms, strict=True)
    for i, (a, b, term) in enumerate(results):
        assert a.shape == b.shape
        error, allowed = (a.double() - b).abs().max(), TOLERANCES[dtype] * b.abs().max().clamp(min=1e-9) + digit * term
        assert error <= allowed, f"{'output' if i == 0 else f'gradient {i}'}: {error:.1e}, allowed {allowed:.1e}"


def compare_linear(dtype, feature_map, layout, n, m, d, e, batch=1, heads=2, device="cpu", exact=None) -> None:
    """Linear attention; features where there is no map are positive."""
    shapes = [(batch, heads, n, d), (batch, heads, m, d), (batch, heads, m, e)]
    q, k, v = (random(*shape, dtype=dtype, device=device, seed=i) for i, shape in enumerate(shapes))
    if feature_map is None:
        q, k = q.abs(), k.abs()
    inputs = [lay_out(x, layout).detach() for x in (q, k, v)]
    assert all(torch.equal(a, b) for a, b in zip(inputs, (q, k, v), strict=True))
    compare(lambda f, q, k, v, **backend: f(q, k, v, 1e-6, feature_map, **backend), "linear_attention", inputs, exact)


def compare_focused(dtype, power, n, m, heads, d, batch=1, positions=True, device="cpu", exact=None) -> None:
    """Focused linear attention over slices of a qkv projection, with a row that is negative throughout."""
    channels = heads * d
    width = max(n, m)
    projection = random(batch, width, 3 * channels, dtype=dtype, device=device)
    projection[:, 0] = -projection[:, 0].abs()
    q, k, v = projection.chunk(3, dim=2)
    inputs = [q[:, :n], k[:, :m], v[:, :m], random(1, 1, channels, dtype=dtype, device=device, seed=1)]
    if positions:
        inputs.append(random(1, m, channels, dtype=dtype, device=device, seed=2))

    def call(function, q, k, v, scale, positions=None, **backend):
        return function(q, k, v, scale, heads, power, positions=positions, **backend)

    compare(call, "focused_linear_attention", [x.detach() for x in inputs], exact)


def compare_pools(dtype, height, width, heads, d, kernel_size, batch=1, device="cpu") -> None:
    """Both pools, with saliencies spread so far that one token has nearly all the weight of most neighbourhoods.

    The gradient of its saliency is a small difference then, ``w_j g . (v_j - o)``: of digits that a rounded output has
    not.
    """
    saliency = random(batch, height * width, heads, dtype=dtype, device=device) * 30
    v = random(batch, height * width, 2 * heads * d, dtype=dtype, device=device, seed=1)[..., heads * d :]
    inputs = [saliency.detach(), v.detach()]

    def cancelled(inputs, gradients):  # the values' gradient is w_j g
        return [(inputs[1] * gradients[1]).abs().unflatten(2, (heads, d)).sum(dim=-1).max().item(), 0.0]

    compare(
        lambda f, s, v, **b: f(s, v, **b),
        "global_context",
        inputs,
        lambda s, v: ops.global_context(s, v, backend="torch"),
        cancelled,
    )
    compare(
        lambda f, s, v, **b: f(s, v, [height, width], kernel_size, **b),
        "local_context",
        inputs,
        lambda s, v, *sizes: ops.local_context(s, v, *sizes, backend="torch"),
        cancelled,
    )
