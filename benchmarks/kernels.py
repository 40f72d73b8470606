"""The kernels on a GPU: checked against float64, then timed against PyTorch in turns; record, table and chart.

    python benchmarks/kernels.py

Writes benchmarks/kernels.json cell by cell and goes on with it after a stop; then the table, benchmarks/kernels.md, and
the chart, docs/kernels.png.
Contenders of one line: the kernels, the same in PyTorch's operators, those compiled, and softmax attention
(``scaled_dot_product_attention``, with contiguous tensors), all in bfloat16. Then whole models, compiled, in bfloat16:
inference and a training step. So far it was only rehearsed, on a CPU (``--rehearse``).
"""

import argparse
import functools
import itertools
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # for a rehearsal; Triton, which timm imports, reads it once

import timm
import torch.nn.functional as F
from torch import Tensor

import linvit  # noqa: F401 -- registers the models
from linvit import ops
from linvit.bench import median, take_turns
from linvit.bench.records import Record
from linvit.files import atomic_write
from linvit.ops.agreement import TENSORS, TOLERANCES, largest_error

HERE = Path(__file__).parent
SIZES = (224, 448, 896, 1792)
LENGTHS = (256, 1024, 4096, 16384, 65536)
# Kind, batch, heads, head size, and the side of the pixels that are one token.
SHAPES = {
    "FLatten-Swin-T, stage 1": ("focused", 8, 3, 32, 4),
    "FLatten-Swin-T, stage 2": ("focused", 8, 6, 32, 8),
    "FLatten-PVT-T, stage 1": ("focused", 8, 1, 64, 4),
    "FLatten-PVT-T, stage 3": ("focused", 8, 5, 64, 16),
    "FLatten-DeiT-T": ("focused", 8, 3, 64, 16),
    "CARE-S0, stage 3": ("maps", 64, 2, 16, 16),
    "CARE-S0, stage 4": ("maps", 64, 2, 32, 32),
}
MODELS = {
    "flatten_swin_tiny": "swin_tiny_patch4_window7_224",
    "flatten_deit_tiny": "deit_tiny_patch16_224",
    "care_s0": None,
}
CASES: list[tuple[str, dict[str, Any]]] = [
    *(("linear_attention", {"feature_map": name}) for name in ("elu1", "relu", None)),
    *(("focused_linear_attention", {"power": power}) for power in (3.0, 4.0)),
    *((name, {}) for name in ("global_context", "local_context")),
]
CONTENDERS = ("kernels", "PyTorch", "compiled", "softmax")
Call = Callable[[], Any]


def attention_inputs(kind: str, batch: int, heads: int, size: int, tokens: int, device: str) -> list[Tensor]:
    """Return queries, keys and values as a model gives them, ``[B, h, N, d]``, and what focus needs beside them.

    Args:
        kind: "linear" and "focused" are slices of a projection, "maps" are plain attention over channels-first maps.
        batch: B.
        heads: h.
        size: Channels of a head, d.
        tokens: N.
        device: Where they are.
    """
    make = {"device": device, "dtype": torch.bfloat16}
    if kind == "maps":
        maps = torch.randn(batch, 3, heads, size, tokens, **make).transpose(3, 4)
        return [x.detach().requires_grad_() for x in maps.unbind(1)]
    projection = torch.randn(batch, tokens, 3, heads, size, **make).transpose(1, 3)
    inputs = [x.detach().requires_grad_() for x in projection.unbind(2)]
    if kind == "focused":
        inputs.append(torch.zeros(heads * size, **make).requires_grad_())
        inputs.append(torch.randn(1, tokens, heads * size, **make).requires_grad_())
    return inputs


def attend(kind: str, inputs: list[Tensor], backend: str) -> Tensor:
    """Attend as models do, and return ``[B, h, N, d]``."""
    if kind != "focused":
        return ops.linear_attention(*inputs, 1e-6, "elu1", backend)
    q, k, v, scale, positions = inputs
    heads = q.shape[1]
    q, k, v = (x.transpose(1, 2).flatten(2) for x in (q, k, v))
    out = ops.focused_linear_attention(q, k, v, scale, heads, 3.0, 1e-6, positions, backend)
    return out.unflatten(2, (heads, -1)).transpose(1, 2)


def contenders(kind: str, inputs: list[Tensor]) -> dict[str, tuple[Call, list[Tensor]]]:
    """Return what is compared, each with the tensors that its gradients are for."""
    plain = [x.detach().contiguous().requires_grad_() for x in inputs[:3]]  # others fused softmax would not take
    compiled = torch.compile(functools.partial(attend, kind), dynamic=True)
    return {
        "kernels": (lambda: attend(kind, inputs, "triton"), inputs),
        "PyTorch": (lambda: attend(kind, inputs, "torch"), inputs),
        "compiled": (lambda: compiled(inputs, "torch"), inputs),
        "softmax": (lambda: F.scaled_dot_product_attention(*plain), plain),
    }


def clock(device: str) -> Callable[[], float]:
    """Return a clock that waits for the device."""

    def tell() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    return tell


def attempt(name: str, call: Call) -> Any:
    """Return what a call returns, or None, with a line, if it fails: out of memory, or whatever a compiler says."""
    try:
        return call()
    except Exception as problem:
        print(f"  {name} left out: {type(problem).__name__}: {str(problem).strip().splitlines()[:1]}", flush=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None


def timed(calls: dict[str, Call], device: str, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each call in turns, without those that fail.

    A short one is called as often as fits into 5 ms between two looks at the clock, which then counts the device's time
    and not the way there.
    """
    tell, fit = clock(device), {}

    def repeat(call: Call, times: int) -> None:
        for _ in range(times):
            call()

    times = {}
    for name, call in calls.items():
        if attempt(name, lambda call=call: (call(), True)) is None:  # compiles, too
            continue
        begin = tell()
        call()
        times[name] = min(100, max(1, math.ceil(5e-3 / (tell() - begin))))
        fit[name] = functools.partial(repeat, call, times[name])
    if not fit:
        return {}
    found = take_turns(fit, rounds, warmup=1, clock=tell)
    return {name: [seconds / times[name] for seconds in values] for name, values in found.items()}


def bandwidth(device: str, size: int, rounds: int) -> list[float]:
    """Return the bytes a second at which a tensor of a size is copied, each read and written."""
    x = torch.empty(size, dtype=torch.uint8, device=device)
    y = torch.empty_like(x)
    return [2 * size / seconds for seconds in timed({"copy": lambda: y.copy_(x)}, device, rounds)["copy"]]


def difference(kind: str, inputs: list[Tensor]) -> float:
    """Return the largest difference of the kernels' output and PyTorch's operators', over the largest entry."""
    expected = attend(kind, inputs, "torch").float()
    return ((attend(kind, inputs, "triton").float() - expected).abs().max() / expected.abs().max()).item()


def measure(record: Record, of: dict[str, Any], kind: str, shape: tuple[int, ...], device: str, rounds: int) -> None:
    """Time all contenders forward and backward, and compare what kernels and PyTorch's operators return."""
    torch.compiler.reset()  # one compiled function sees every kind and grad mode; after eight it would give up
    inputs = attention_inputs(kind, *shape, device)
    calls = contenders(kind, inputs)
    with torch.no_grad():
        error = attempt("comparison", lambda: difference(kind, inputs))
        forward = timed({name: call for name, (call, _) in calls.items()}, device, rounds)
    if error is not None and not error <= TOLERANCES[torch.bfloat16]:
        print(f"  the kernels differ from PyTorch's operators by {error:.1e}", flush=True)
    backward_calls = {}
    for name, (call, wanted) in calls.items():
        output = attempt(name, call) if name in forward else None
        if output is not None:
            target = torch.randn_like(output)
            backward_calls[name] = functools.partial(torch.autograd.grad, output, wanted, target, retain_graph=True)
            del output
    backward = timed(backward_calls, device, rounds)
    # The least that can pass through memory: forward q, k, v and the output, backward these and three gradients.
    row = math.prod(shape) * 2
    for direction, seconds, rows in (("forward", forward, 4), ("backward", backward, 7)):
        raw = {"seconds": seconds, "least_bytes": rows * row, "error": error}
        record.add(of | {"direction": direction}, raw)


def model_step(name: str, of: dict[str, Any], training: bool, device: str, backend: str, **changes: Any) -> Call:
    """Return an inference or a training step in bfloat16, compiled."""
    torch.manual_seed(0)
    fixed = {} if name.startswith("care") else {"img_size": of["pixels"]}
    model = timm.create_model(name, **fixed, **changes).to(device).to(memory_format=torch.channels_last).train(training)
    images = torch.randn(of["batch"], 3, of["pixels"], of["pixels"], device=device)
    images = images.to(memory_format=torch.channels_last)
    run = torch.compile(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        with ops.use_backend(backend), torch.autocast(device, torch.bfloat16), torch.set_grad_enabled(training):
            output = run(images)
            if training:
                output.float().logsumexp(dim=-1).sum().backward()
                optimizer.step()
                optimizer.zero_grad()

    return step


def measure_model(record: Record, of: dict[str, Any], device: str, rounds: int, **changes: Any) -> None:
    """Time a model with kernels and without, and its host with softmax."""
    torch.compiler.reset()
    training, name = of["phase"] == "training step", of["model"]
    backends = {"kernels": (name, "triton"), "compiled": (name, "torch"), "softmax": (MODELS[name], "auto")}
    calls = {}
    for contender, (model, backend) in backends.items():
        if model:
            step = attempt(contender, lambda m=model, b=backend: model_step(m, of, training, device, b, **changes))
            if step is not None:
                calls[contender] = step
    record.add(of, {"seconds": timed(calls, device, rounds)})


def plan(rehearse: bool) -> Iterator[tuple[dict[str, Any], str, tuple[int, ...]]]:
    """Yield what tells one line of operators from the others, its kind and its shape ``(B, h, d, N)``."""
    if rehearse:
        for kind in ("linear", "focused", "maps"):
            yield {"operator": kind, "shape": "B1 H2 D16", "tokens": 20}, kind, (1, 2, 16, 20)
        return
    for kind, tokens in itertools.product(("linear", "focused"), LENGTHS):
        yield {"operator": kind, "shape": "B8 H16 D64", "tokens": tokens}, kind, (8, 16, 64, tokens)
    for (label, (kind, batch, heads, size, side)), pixels in itertools.product(SHAPES.items(), SIZES):
        tokens = (pixels // side) ** 2
        of = {"operator": kind, "shape": f"{label}, {pixels} pixels", "tokens": tokens}
        yield of, kind, (batch, heads, size, tokens)


def model_plan(rehearse: bool) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield what tells one line of models from the others, and how the model is changed."""
    phases = ("inference", "training step")
    if rehearse:
        for phase in phases:
            yield {"model": "flatten_deit_tiny", "pixels": 32, "batch": 1, "phase": phase}, {"depth": 1}
        return
    for name, (pixels, batch), phase in itertools.product(MODELS, ((224, 64), (448, 32), (896, 8)), phases):
        yield {"model": name, "pixels": pixels, "batch": batch, "phase": phase}, {}


def table(record: Record) -> str:
    """Return the medians as Markdown, and the share of the copy's bandwidth that the least of bytes makes."""
    lines = [f"| ms | {' | '.join(CONTENDERS)} | share of copy |", "|---|" + "---|" * (len(CONTENDERS) + 1)]
    copy = next(iter(record.select(what="copy"))).raw["bytes_per_second"]
    for cell in record.cells:
        if "seconds" not in cell.raw:
            continue
        of, middle = cell.of, median(cell.raw["seconds"])
        cells = [f"{middle[name] * 1e3:.3f}" if name in middle else "-" for name in CONTENDERS]
        share = ""
        if "least_bytes" in cell.raw:
            label = f"{of['operator']}, {of['shape']}, {of['tokens']} tokens, {of['direction']}"
            if "kernels" in middle:
                share = f"{cell.raw['least_bytes'] / middle['kernels'] / sorted(copy)[len(copy) // 2]:.0%}"
        else:
            label = f"{of['model']}, {of['pixels']} pixels, batch {of['batch']}, {of['phase']}"
        lines.append(f"| {label} | {' | '.join(cells)} | {share} |")
    return "\n".join(lines)


def chart(record: Record, path: Path) -> None:
    """Draw time against tokens, of the plain shapes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    kinds, directions = ("linear", "focused"), ("forward", "backward")
    figure, axes = plt.subplots(2, 2, figsize=(11, 8), layout="constrained", sharex=True)
    for axis, (kind, direction) in zip(axes.flat, itertools.product(kinds, directions), strict=True):
        rows = [
            (cell.of["tokens"], median(cell.raw["seconds"]))
            for cell in record.select(operator=kind, direction=direction)
            if cell.of["shape"].startswith("B")
        ]
        for name in CONTENDERS:
            points = sorted((tokens, middle[name] * 1e3) for tokens, middle in rows if name in middle)
            if points:
                axis.plot(*zip(*points, strict=True), "--" if name == "softmax" else "-", marker="o", label=name)
        axis.set(xscale="log", yscale="log", xlabel="tokens", ylabel="ms", title=f"{kind} attention, {direction}")
        axis.grid(alpha=0.3)
        axis.legend()
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)


def check(device: str, rehearse: bool) -> bool:
    """Compare the kernels with float64, and say what is wrong."""
    for name, settings in CASES[:1] if rehearse else CASES:
        for dtype in (torch.bfloat16,) if rehearse else TOLERANCES:
            types, allowed = dict.fromkeys(TENSORS[name], dtype), TOLERANCES[dtype]
            error = largest_error(name, device, types, **settings)
            print(f"{name} {settings} {dtype}: largest error {error:.1e}, allowed {allowed:.0e}", flush=True)
            if not error <= allowed:
                print("kernels.py: the kernels differ from the reference; nothing is measured", file=sys.stderr)
                return False
    return True


def main() -> int:
    """Check, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "kernels.json")
    parser.add_argument("--chart", type=Path, default=HERE.parent / "docs" / "kernels.png")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes, also in Triton's interpreter on a CPU")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not options.rehearse:
        print("kernels.py: there is no GPU here; --rehearse tries the script with tiny sizes", file=sys.stderr)
        return 2
    # Gradients are taken again and again from one output, whose buffers must not be given away.
    torch._functorch.config.donated_buffer = False
    if not check(device, options.rehearse):
        return 1
    name = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    settings = {"device": name, "rehearsed": options.rehearse}
    record = Record.resume(options.out, "time of the kernels, bfloat16", settings)
    if record.get(what="copy") is None:
        size = 2**20 if options.rehearse else 2**30
        record.add({"what": "copy"}, {"bytes_per_second": bandwidth(device, size, options.rounds)})
    for of, kind, shape in plan(options.rehearse):
        if record.get(**of, direction="backward") is None:
            print(of, flush=True)
            attempt("line", functools.partial(measure, record, of, kind, shape, device, options.rounds))
    for of, changes in model_plan(options.rehearse):
        if record.get(**of) is None:
            print(of, flush=True)
            measure_model(record, of, device, options.rounds, **changes)
    print(table(record))
    with atomic_write(options.out.with_suffix(".md")) as temporary:
        temporary.write_text(f"{name}, bfloat16, torch {torch.__version__}\n\n{table(record)}\n")
    chart(record, options.chart)
    lines = [cell.raw["seconds"] for cell in record.cells if "seconds" in cell.raw]
    failed = sum("kernels" not in seconds for seconds in lines)
    if failed:
        print(f"kernels.py: the kernels failed in {failed} of {len(lines)} lines", file=sys.stderr)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
