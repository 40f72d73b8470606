"""The kernels on a GPU: checked against float64, then timed against PyTorch in turns; table, chart and raw times.

    python benchmarks/kernels.py

Writes benchmarks/kernels.json and docs/kernels.png, and prints the table. Contenders of one line: the kernels, the same
in PyTorch's operators, those compiled, and softmax attention (``scaled_dot_product_attention``), all in bfloat16. Then
whole models, compiled, in bfloat16: inference and a training step. So far it was only rehearsed, on a CPU.
"""

import argparse
import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor

import linvit  # noqa: F401 -- registers the models
from linvit import ops
from linvit.bench import median, take_turns
from linvit.files import atomic_write
from linvit.ops.agreement import TOLERANCES, largest_error

HERE = Path(__file__).parent
SIZES = (224, 448, 896, 1792)
LENGTHS = (256, 1024, 4096, 16384, 65536)
# Batch, heads, head size, and the side of the pixels that are one token; all of channels-last tokens but CARE's maps.
SHAPES = {
    "FLatten-Swin-T, stage 1": ("focused", 8, 3, 32, 4),
    "FLatten-Swin-T, stage 2": ("focused", 8, 6, 32, 8),
    "FLatten-PVT-T, stage 1": ("focused", 8, 1, 64, 4),
    "FLatten-PVT-T, stage 3": ("focused", 8, 5, 64, 16),
    "FLatten-DeiT-T": ("focused", 8, 3, 64, 16),
    "CARE-S0, stage 3": ("linear", 8, 4, 16, 16),
}
MODELS = {
    "flatten_swin_tiny": "swin_tiny_patch4_window7_224",
    "flatten_deit_tiny": "deit_tiny_patch16_224",
    "care_s0": None,
}
CASES = [
    *(("linear_attention", (name,)) for name in ("elu1", "relu")),
    *(("focused_linear_attention", (power,)) for power in (3.0, 4.0)),
    *((name, ()) for name in ("linear_attention", "global_context", "local_context")),
]


def attention_inputs(kind: str, batch: int, heads: int, size: int, tokens: int, device: str) -> list[Tensor]:
    """Return queries, keys and values as a model gives them, ``[B, h, N, d]``, and what focus needs beside them."""
    make = {"device": device, "dtype": torch.bfloat16}
    if kind == "linear":  # channels first
        maps = torch.randn(batch, 3, heads, size, tokens, **make).transpose(3, 4)
        return [x.detach().requires_grad_() for x in maps.unbind(1)]
    projection = torch.randn(batch, tokens, 3, heads, size, **make).transpose(1, 3)
    q, k, v = (x.detach().requires_grad_() for x in projection.unbind(2))
    scale, positions = torch.zeros(heads * size, **make), torch.randn(1, tokens, heads * size, **make)
    return [q, k, v, scale.requires_grad_(), positions.requires_grad_()]


def attend(kind: str, inputs: list[Tensor], backend: str) -> Tensor:
    """Attend as models do."""
    if kind == "linear":
        return ops.linear_attention(*inputs, 1e-6, "elu1", backend)
    q, k, v, scale, positions = inputs
    heads = q.shape[1]
    q, k, v = (x.transpose(1, 2).flatten(2) for x in (q, k, v))
    return ops.focused_linear_attention(q, k, v, scale, heads, 3.0, 1e-6, positions, backend)


def contenders(kind: str, inputs: list[Tensor], compiled: bool) -> dict[str, Callable[[], Tensor]]:
    """Return what is compared on the same tensors."""
    unfused = torch.compile(lambda: attend(kind, inputs, "torch"), dynamic=True) if compiled else None
    every = {
        "kernels": lambda: attend(kind, inputs, "triton"),
        "PyTorch": lambda: attend(kind, inputs, "torch"),
        "compiled": unfused,
        "softmax": lambda: F.scaled_dot_product_attention(*inputs[:3]),
    }
    return {name: call for name, call in every.items() if call is not None}


def clock(device: str) -> Callable[[], float]:
    """Return a clock that waits for the device."""
    from time import perf_counter

    def tell() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return perf_counter()

    return tell


def timed(calls: dict[str, Callable[[], Any]], device: str, rounds: int) -> dict[str, float | None]:
    """Return the median seconds of each in turns; None where memory does not suffice."""
    fit: dict[str, Callable[[], Any]] = {}
    for name, call in calls.items():
        try:
            call()
        except torch.OutOfMemoryError:
            continue
        fit[name] = call
    seconds = median(take_turns(fit, rounds, warmup=3, clock=clock(device)))
    return {name: seconds.get(name) for name in calls}


def bandwidth(device: str, size: int) -> float:
    """Return the bytes a second at which a tensor is copied, each read and written."""
    x = torch.empty(size, dtype=torch.uint8, device=device)
    y = torch.empty_like(x)
    seconds = timed({"copy": lambda: y.copy_(x)}, device, 20)["copy"]
    assert seconds is not None
    return 2 * size / seconds


def measure(label: str, kind: str, shape: tuple[int, int, int, int], device: str, rounds: int, compiled: bool) -> dict:
    """Time all contenders forward and backward."""
    inputs = attention_inputs(kind, *shape, device)
    calls = contenders(kind, inputs, compiled)
    with torch.no_grad():
        forward = timed(calls, device, rounds)
    backward_calls = {}
    for name, call in calls.items():
        if forward[name] is None:
            continue
        output = call()
        wanted, target = (inputs[:3] if name == "softmax" else inputs), torch.randn_like(output)
        backward_calls[name] = lambda o=output, w=wanted, t=target: torch.autograd.grad(o, w, t, retain_graph=True)
    backward = timed(backward_calls, device, rounds)
    # The least that can pass through memory: forward q, k, v and the output, backward these and four gradients.
    row = shape[0] * shape[1] * shape[2] * shape[3] * 2
    return {
        **{"label": label, "kind": kind, "shape": shape},
        **{"forward": forward, "backward": backward, "least_bytes": {"forward": 4 * row, "backward": 7 * row}},
    }


def model_step(name: str, size: int, batch: int, training: bool, device: str, backend: str, compiled: bool) -> Callable:
    """Return an inference or a training step in bfloat16."""
    torch.manual_seed(0)
    fixed = {} if name.startswith("care") else {"img_size": size}
    model = timm.create_model(name, **fixed).to(device).to(memory_format=torch.channels_last).train(training)
    images = torch.randn(batch, 3, size, size, device=device).to(memory_format=torch.channels_last)
    run = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        with ops.use_backend(backend), torch.autocast(device, torch.bfloat16), torch.set_grad_enabled(training):
            output = run(images)
            if training:
                output.float().logsumexp(dim=-1).sum().backward()
                optimizer.step()
                optimizer.zero_grad()

    return step


def measure_model(name: str, size: int, batch: int, training: bool, device: str, rounds: int, compiled: bool) -> dict:
    """Time a model with kernels and without, and its host with softmax."""
    make = {"size": size, "batch": batch, "training": training, "device": device, "compiled": compiled}
    calls = {
        "kernels": model_step(name, backend="triton", **make),
        "PyTorch": model_step(name, backend="torch", **make),
    }
    if MODELS[name]:
        calls["softmax"] = model_step(MODELS[name], backend="auto", **make)
    phase = "training step" if training else "inference"
    return {"label": f"{name}, {size}, batch {batch}, {phase}", "seconds": timed(calls, device, rounds)}


def table(record: dict[str, Any]) -> str:
    """Return the times as Markdown, with the share of the copy's bandwidth that the least of bytes makes."""
    names = ("kernels", "PyTorch", "compiled", "softmax")
    lines = ["| ms | " + " | ".join(names) + " | share of copy |", "|---|" + "---|" * (len(names) + 1)]

    def cell(value: float | None) -> str:
        return "-" if value is None else f"{value * 1e3:.3f}"

    for row in record["operators"]:
        for direction in ("forward", "backward"):
            times = [row[direction].get(name) for name in names]
            share = row["least_bytes"][direction] / times[0] / record["copy_bytes_per_second"] if times[0] else 0
            cells = " | ".join(cell(value) for value in times)
            lines.append(f"| {row['label']}, {direction} | {cells} | {share:.0%} |")
    for row in record["models"]:
        cells = " | ".join(cell(row["seconds"].get(name)) for name in names)
        lines.append(f"| {row['label']} | {cells} | |")
    return "\n".join(lines)


def chart(record: dict[str, Any], path: Path) -> None:
    """Draw time against tokens."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = [row for row in record["operators"] if row["label"].startswith("B")]
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for axis, direction in zip(axes, ("forward", "backward"), strict=True):
        for name in ("kernels", "PyTorch", "compiled", "softmax"):
            points = [(row["shape"][3], row[direction].get(name)) for row in rows if row["kind"] == "linear"]
            points = [(tokens, seconds * 1e3) for tokens, seconds in points if seconds]
            if points:
                axis.plot(*zip(*points, strict=True), "--" if name == "softmax" else "-", marker="o", label=name)
        axis.set(xscale="log", yscale="log", xlabel="tokens", ylabel=f"{direction} (ms)")
        axis.grid(alpha=0.3)
        axis.legend()
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)


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
        print("kernels.py: there is no GPU here; --rehearse tries the script with TRITON_INTERPRET=1", file=sys.stderr)
        return 2

    errors = {}
    for name, settings in CASES[:1] if options.rehearse else CASES:
        for dtype in (torch.bfloat16,) if options.rehearse else TOLERANCES:
            error = largest_error(name, device, dtype, settings)
            errors[f"{name} {settings} {dtype}"] = error
            print(f"{name} {settings} {dtype}: largest error {error:.1e}, allowed {TOLERANCES[dtype]:.0e}", flush=True)
            if not error <= TOLERANCES[dtype]:
                print("kernels.py: the kernels differ from the reference; nothing is measured", file=sys.stderr)
                return 1
    record: dict[str, Any] = {"errors": errors, "torch": torch.__version__, "timm": timm.__version__}
    record["device"] = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    record["copy_bytes_per_second"] = bandwidth(device, 2**20 if options.rehearse else 2**30)
    record["operators"], record["models"] = [], []

    plan: list[tuple[str, str, tuple[int, int, int, int]]] = []
    if options.rehearse:
        plan = [("B1 H1 D16, 64 tokens", "linear", (1, 1, 16, 64)), ("focused", "focused", (1, 1, 16, 32))]
    else:
        for kind in ("linear", "focused"):
            plan += [(f"B8 H16 D64, {kind}, {n} tokens", kind, (8, 16, 64, n)) for n in LENGTHS]
        for label, (kind, batch, heads, size, side) in SHAPES.items():
            plan += [(f"{label}, {s} pixels", kind, (batch, heads, size, (s // side) ** 2)) for s in SIZES]
    for label, kind, shape in plan:
        record["operators"].append(measure(label, kind, shape, device, options.rounds, not options.rehearse))
        print(record["operators"][-1], flush=True)
    for name in [] if options.rehearse else MODELS:
        for size, batch in ((224, 64), (448, 32), (896, 8)):
            for training in (False, True):
                record["models"].append(measure_model(name, size, batch, training, device, options.rounds, True))
                print(record["models"][-1], flush=True)
    print(table(record))
    with atomic_write(options.out) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n")
    chart(record, options.chart)
    return 0


if __name__ == "__main__":
    sys.exit(main())
