"""What all Triton kernels are launched with: layouts, padded sizes, precision of products, shares of the tokens."""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = [
    "INTERPRETED",
    "accumulator",
    "alike",
    "check_supported",
    "launch",
    "layout",
    "once",
    "pool_tile",
    "power_of_two",
    "precision",
    "shares",
    "strides",
    "tile",
]

INTERPRETED = bool(triton.knobs.runtime.interpret)
"""Whether kernels run in Triton's interpreter, on the CPU (TRITON_INTERPRET=1 when Triton was imported)."""

_ACCUMULATORS = {torch.float64: (torch.float64, tl.float64)}


def accumulator(dtype: torch.dtype) -> tuple[torch.dtype, tl.dtype]:
    """Return the type in which sums over tensors of a type are kept: float32, or float64 for float64."""
    return _ACCUMULATORS.get(dtype, (torch.float32, tl.float32))


def precision(dtype: torch.dtype, hip: bool = torch.version.hip is not None) -> str:
    """Return how tensor cores multiply float32 numbers: at least as exactly as the input type keeps them."""
    if dtype == torch.float64 or hip:  # AMD's matrix cores take float32
        return "ieee"
    return "tf32" if dtype == torch.bfloat16 else "tf32x3"


def power_of_two(n: int) -> int:
    """Return the smallest power of two that is no smaller than ``n``."""
    return 1 << (n - 1).bit_length()


MAX_HEAD_SIZE = 128
MAX_PROGRAMS = 65535  # of the second and third axis of a grid


def check_supported(x: Tensor, *head_sizes: int) -> None:
    """Raise a ValueError if kernels cannot take ``x`` and others of its device, or heads of such sizes."""
    if x.device.type != "cuda" and not (INTERPRETED and x.device.type == "cpu"):
        raise ValueError(
            f"backend 'triton' needs a GPU (or TRITON_INTERPRET=1 in the environment), got a tensor on {x.device}"
        )
    if x.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise ValueError(f"backend 'triton' takes floating-point tensors, got {x.dtype}")
    if max(head_sizes) > MAX_HEAD_SIZE:
        raise ValueError(f"backend 'triton' takes heads of up to {MAX_HEAD_SIZE} channels, got {max(head_sizes)}")


def tile(
    d: int, e: int, kernel: str, dtype: torch.dtype, focus: bool = False, hip: bool = torch.version.hip is not None
) -> dict[str, int]:
    """Return a kernel's padded head size, columns of values and tokens at a time, slices of the values, and warps.

    Chosen so that every configuration fits: into 64 Ki registers, and into the 99 KiB of shared memory that a block has
    on the smallest of NVIDIA's processors that multiply in TF32 (sm_86 and sm_89), or into AMD's 64 KiB.
    """
    DP, EP = max(16, power_of_two(d)), max(16, power_of_two(e))
    widest, backward, heavy = max(DP, EP), kernel.endswith(("_backward", "_gradient")), kernel == "query_backward"
    if hip:
        EP = min(EP, 16 if widest == 128 and backward else 32)
        BN = 16 if backward and widest > 32 else 32
        return {"DP": DP, "EP": EP, "SLICES": triton.cdiv(e, EP), "BN": BN, "num_warps": 4}
    exact = dtype != torch.bfloat16  # three products of tensor cores instead of one, with as many operands
    wide = DP == 128
    EP = min(EP, (32 if heavy and (focus or not wide) else 16 if wide else 64) if exact else 32 if wide else 64)
    keys = kernel in ("key_backward", "key_gradient")
    crowded = (kernel == "key_backward" and widest > 32) or (kernel == "summarise" and focus and wide)
    narrow = (keys and wide) or (exact and (heavy or crowded))
    BN = 16 if narrow else 32 if exact or backward or widest > 32 else 64
    warps = 8 if widest > 32 or (exact and heavy) else 4
    return {"DP": DP, "EP": EP, "SLICES": triton.cdiv(e, EP), "BN": BN, "num_warps": warps}


def pool_tile(e: int) -> dict[str, int]:
    """Return the same of the kernels of key-only pooling: a thread holds the eight entries that it loads at once."""
    EP = max(16, power_of_two(e))
    warps = min(8, EP // 8)
    return {"E": e, "EP": EP, "BN": 8 * 32 * warps // EP, "num_warps": warps}


def layout(x: Tensor) -> tuple[int, int]:
    """Return which axis of ``x [B, h, N, d]`` has stride 1 (0 channels, 1 tokens, 2 neither), and the alignment.

    The alignment divides the strides of images, heads and tokens of layout 0: only then may a thread load several
    channels at once. A tensor of the same model has the same one at every image size.
    """
    if x.stride(3) == 1:
        return 0, math.gcd(16, *(stride for size, stride in zip(x.shape[:3], x.stride()[:3], strict=True) if size > 1))
    return (1, 1) if x.stride(2) == 1 else (2, 1)


def strides(**tensors: Tensor) -> dict[str, Any]:
    """Return strides, layout and alignment of tensors ``[B, h, N, d]`` as kernels take them.

    Raises:
        ValueError: An image of one reaches over 2^31 entries, which is what offsets within an image can tell.
    """
    arguments: dict[str, Any] = {}
    for name, x in tensors.items():
        reach = sum((size - 1) * stride for size, stride in zip(x.shape[1:], x.stride()[1:], strict=True))
        if reach >= 2**31:
            raise ValueError(f"backend 'triton' takes images of fewer than 2^31 entries, got {name} {list(x.shape)}")
        kind, align = layout(x)
        arguments |= {f"{name.upper()}_LAYOUT": kind, f"{name.upper()}_ALIGN": align}
        arguments |= {f"{name}_{axis}": stride // align for axis, stride in zip("bhn", x.stride()[:3], strict=True)}
        arguments[f"{name}_d"] = x.stride(3)
    return arguments


def alike(x: Tensor, channels: int, dtype: torch.dtype | None = None) -> Tensor:
    """Return an empty ``[B, h, N, channels]``, in memory ``[B, N, h, channels]``, or channels first where x is so."""
    B, h, N, _ = x.shape
    dtype = dtype or x.dtype
    if x.stride(3) == 1:
        return x.new_empty(B, N, h, channels, dtype=dtype).transpose(1, 2)
    return x.new_empty(B, h, channels, N, dtype=dtype).transpose(2, 3)


def shares(tokens: int, others: int, block: int, device: torch.device) -> tuple[int, int]:
    """Split tokens over programs, so that a device has work for all its processors, but no more than that.

    Args:
        tokens: How many there are.
        others: Programs that run for every share (batch times heads).
        block: Tokens that a program takes at a time.

    Returns:
        Programs, and the tokens of each, a multiple of ``block``.
    """
    processors = 2
    if device.type == "cuda":
        processors = torch.cuda.get_device_properties(device).multi_processor_count
    blocks = max(1, triton.cdiv(tokens, block))
    programs = min(blocks, triton.cdiv(4 * processors, max(1, others)))
    share = triton.cdiv(blocks, programs)
    return triton.cdiv(blocks, share), share * block


def once(backward: torch.library.CustomOpDef) -> None:
    """Have an operator that is a gradient say, in one line, that it has none itself."""

    def refuse(*_) -> None:
        raise RuntimeError("linvit's kernels can be differentiated once; backend='torch' can be so any number of times")

    backward.register_autograd(refuse)


def launch(kernel, grid: tuple[int, ...], device: torch.device, **arguments) -> None:
    """Run a kernel on the device of its tensors, if there is anything to do; it takes what it has a parameter for."""
    if 0 in grid:
        return
    if max(grid[1:]) > MAX_PROGRAMS:
        raise ValueError(f"{kernel.__name__} takes at most {MAX_PROGRAMS} heads, and blocks of tokens, got {grid[1:]}")
    names = kernel.arg_names
    chosen = {name: value for name, value in arguments.items() if name in names or name in ("num_warps", "num_stages")}
    if device.type == "cuda":
        with torch.cuda.device(device):
            kernel[grid](**chosen)
    else:
        kernel[grid](**chosen)
