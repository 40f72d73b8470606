"""Count the bytes and operations of the kernels, of eager PyTorch, and the least there can be; no GPU is needed.

    python benchmarks/kernel_counts.py --out benchmarks/kernel_counts.json

The kernels run in Triton's interpreter, and every load, store, product and elementwise operation of theirs is counted
as it happens: of each launch the distinct bytes it reads and writes, which is what passes through memory if caches hold
what a launch reads again, and beside it all that it asks the caches for. Of eager PyTorch, and of what runs between
launches, the tensors of every operation are counted once each. The floor reads every input once and writes every output
once. A program takes all tokens of a head here, as it nearly does on a GPU whose processors all have work.
"""

import argparse
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

import numpy as np
import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from triton.runtime import interpreter

from linvit import ops
from linvit.bench.records import Record
from linvit.ops.focused import fused as focused
from linvit.ops.key_only import fused as key_only
from linvit.ops.linear import fused as linear

B, H, D, GRID = 1, 2, 64, (32, 32)
TOKENS = GRID[0] * GRID[1]


@dataclass
class Count:
    """What one way of computing takes: bytes of memory, bytes asked of caches, operations."""

    bytes: int = 0
    requested: int = 0
    operations: int = 0
    launches: int = 0


class _Tensors(TorchDispatchMode):
    """Counts the tensors of every operation that is no view, once each."""

    def __init__(self, count: Count):
        super().__init__()
        self.count = count

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "linvit":  # kernels count themselves; what runs between them is counted here
            with self:
                return OPDEFS[function.name()]._init_fn(*args, **(kwargs or {}))
        result = function(*args, **(kwargs or {}))
        moves = not function.is_view and "empty" not in str(function)
        if moves:
            tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor) and x.ndim > 0]
            size = sum(x.element_size() * _distinct(x) for x in tensors)
            self.count.bytes += size
            self.count.requested += size
            self.count.launches += 1
            if "mm" not in str(function):
                self.count.operations += sum(x.numel() for x in tree_leaves(result) if isinstance(x, Tensor))
        return result


def _distinct(x: Tensor) -> int:
    """Return how many entries lie in memory; an expanded axis is one."""
    return int(np.prod([size for size, stride in zip(x.shape, x.stride(), strict=True) if stride], dtype=np.int64))


def eager(run: Callable[[], Any]) -> Count:
    """Count what eager PyTorch does."""
    count, flops = Count(), FlopCounterMode(display=False)
    with flops, _Tensors(count):
        run()
    count.operations += flops.get_total_flops()
    return count


@contextmanager
def _watched(count: Count) -> Iterator[None]:
    """Watch all that kernels load, store and compute in the interpreter."""
    builder = interpreter.InterpreterBuilder
    before = {name: getattr(builder, name) for name in ("create_masked_load", "create_masked_store", "create_dot")}
    before |= {name: getattr(builder, name) for name in ("binary_op", "unary_op")}
    launches = {module: module.launch for module in (linear, focused, key_only)}
    splits = {module: module.shares for module in (linear, focused, key_only)}
    seen: dict[str, list[np.ndarray]] = {"read": [], "written": []}

    def note(kind: str, pointers: Any, mask: np.ndarray, size: int) -> None:
        addresses = pointers.data[mask.astype(bool)].ravel()
        seen[kind].append(addresses)
        count.requested += addresses.size * size

    def load(self, pointers, mask, *rest):
        result = before["create_masked_load"](self, pointers, mask, *rest)
        note("read", pointers, mask.data, result.data.dtype.itemsize)
        return result

    def store(self, pointers, value, mask, *rest):
        note("written", pointers, mask.data, value.data.dtype.itemsize)
        return before["create_masked_store"](self, pointers, value, mask, *rest)

    def dot(self, a, b, *rest):
        count.operations += 2 * a.data.size * b.data.shape[-1]
        return before["create_dot"](self, a, b, *rest)

    def elementwise(name: str) -> Callable:
        def run(self, first, *rest):
            result = before[name](self, first, *rest)
            count.operations += result.data.size if result.data.dtype.kind == "f" else 0
            return result

        return run

    def launched(kernel, grid, device, **arguments):
        for addresses in seen.values():
            addresses.clear()
        with _disable_current_modes():  # the interpreter's own tensors
            original(kernel, grid, device, **arguments)
        spans = _spans(arguments)
        count.launches += 1
        for addresses in seen.values():
            if addresses:
                distinct = np.unique(np.concatenate(addresses))
                count.bytes += sum(_bytes_at(distinct, *span) for span in spans)

    original = linear.launch
    builder.create_masked_load, builder.create_masked_store, builder.create_dot = load, store, dot
    builder.binary_op, builder.unary_op = elementwise("binary_op"), elementwise("unary_op")
    for module in launches:
        module.launch = launched  # type: ignore[attr-defined]
        module.shares = lambda tokens, *_: (1, tokens)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(builder, name, function)
        for module, function in launches.items():
            module.launch, module.shares = function, splits[module]  # type: ignore[attr-defined]


def _spans(arguments: dict[str, Any]) -> list[tuple[int, int, int]]:
    """Return of every storage among the arguments its first address, the one after its last, and its entries' size."""
    spans = {}
    for x in arguments.values():
        if isinstance(x, Tensor) and x.numel():
            storage = x.untyped_storage()
            spans[storage.data_ptr()] = (storage.data_ptr(), storage.data_ptr() + storage.nbytes(), x.element_size())
    return list(spans.values())


def _bytes_at(addresses: np.ndarray, first: int, last: int, size: int) -> int:
    return int(((addresses >= first) & (addresses < last)).sum()) * size


def fused(run: Callable[[], Any]) -> Count:
    """Count what the kernels do, and what runs between them."""
    count = Count()
    with _watched(count), _Tensors(count):
        run()
    return count


def floor(reads: list[Tensor], writes: list[Tensor]) -> Count:
    """Count every input and output once."""
    return Count(bytes=sum(x.numel() * x.element_size() for x in (*reads, *writes)))


def operators(dtype: torch.dtype) -> dict[str, tuple[Callable[..., Tensor], list[Tensor]]]:
    """Return of every operator how it is called with a backend, and its inputs as models give them."""
    C = H * D
    projection = torch.randn(B, TOKENS, 3, C, dtype=dtype)
    heads = [x.unflatten(2, (H, D)).transpose(1, 2) for x in projection.unbind(2)]
    tokens = list(projection.unbind(2))
    scale, positions = torch.randn(1, 1, C, dtype=dtype), torch.randn(1, TOKENS, C, dtype=dtype)
    saliency = torch.randn(B, TOKENS, H)
    return {
        "linear, elu + 1": (lambda q, k, v, b: ops.linear_attention(q, k, v, 1e-6, "elu1", b), heads),
        "linear, relu": (lambda q, k, v, b: ops.linear_attention(q, k, v, 1e-6, "relu", b), heads),
        "focused": (
            lambda q, k, v, s, p, b: ops.focused_linear_attention(q, k, v, s, H, 3.0, 1e-6, p, b),
            [*tokens, scale, positions],
        ),
        "global context": (lambda s, v, b: ops.global_context(s, v, b), [saliency, tokens[2]]),
        "local context 3x3": (lambda s, v, b: ops.local_context(s, v, list(GRID), 3, b), [saliency, tokens[2]]),
    }


def measure(name: str, dtype: torch.dtype) -> dict[str, dict[str, dict[str, int]]]:
    """Count an operator, forward and backward, in all three ways."""
    call, inputs = operators(dtype)[name]
    inputs = [x.detach().requires_grad_() for x in inputs]
    counts: dict[str, dict[str, Count]] = {"forward": {}, "backward": {}}
    for way, backend, counter in (("fused", "triton", fused), ("eager", "torch", eager)):
        kept: list[Tensor] = []
        counts["forward"][way] = counter(lambda b=backend, kept=kept: kept.append(call(*inputs, b)))
        output, target = kept[0], torch.randn_like(kept[0])
        counts["backward"][way] = counter(lambda o=output, t=target: torch.autograd.grad(o, inputs, t))
    counts["forward"]["floor"] = floor(inputs, [output])
    counts["backward"]["floor"] = floor([*inputs, target], inputs)
    return {direction: {way: asdict(count) for way, count in ways.items()} for direction, ways in counts.items()}


def main() -> None:
    """Count all and write the records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="keep the counts here, as JSON")
    options = parser.parse_args()
    record = Record.resume(
        options.out, "bytes and operations of attention", {"batch": B, "heads": H, "head_size": D, "tokens": TOKENS}
    )
    for dtype in (torch.bfloat16, torch.float32):
        for name in operators(torch.float32):
            kind = str(dtype).removeprefix("torch.")
            if record.get(operator=name, type=kind, direction="backward") is None:
                for direction, ways in measure(name, dtype).items():
                    record.add({"operator": name, "type": kind, "direction": direction}, ways)
            for direction in ("forward", "backward"):
                ways = record.get(operator=name, type=kind, direction=direction) or {}
                moved = {way: f"{count['bytes'] / TOKENS:,.0f}" for way, count in ways.items()}
                print(f"{name}, {kind}, {direction}, bytes a token: {moved}", flush=True)


if __name__ == "__main__":
    main()
