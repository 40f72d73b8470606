"""Time and peak memory of attention mechanisms against image size, in one run, as a chart.

    python benchmarks/attention_cost.py --out benchmarks/attention_cost.json --chart docs/attention_cost.png

One attention module as DeiT-T has it (192 channels, 3 heads, patches of 16x16), forward on one image, float32. The
mechanisms take turns at each size. "softmax (explicit)" writes the N x N weights out, as models without
``scaled_dot_product_attention`` do.
"""

import argparse
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib import pyplot as plt
from torch import nn

from linvit.attention import FocusedLinearAttention, KeyOnlyAttention, LinearAttention, SoftmaxAttention
from linvit.bench import median, peak_memory, take_turns
from linvit.files import atomic_write

DIM, HEADS, PATCH = 192, 3, 16
MIB = 2**20


class ExplicitSoftmaxAttention(SoftmaxAttention):
    """Softmax attention with its N x N weights in memory."""

    def forward(self, x: torch.Tensor, grid_size: list[int] | None = None) -> torch.Tensor:
        B, N, C = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, HEADS, C // HEADS).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * (C // HEADS) ** -0.5).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


MECHANISMS: dict[str, Callable[[int], nn.Module]] = {
    "focused": lambda grid: FocusedLinearAttention(DIM, grid, HEADS),
    "linear (elu + 1)": lambda grid: LinearAttention(DIM, grid, HEADS),
    "key-only": lambda grid: KeyOnlyAttention(DIM, grid, HEADS),
    "softmax (fused)": lambda grid: SoftmaxAttention(DIM, grid, HEADS),
    "softmax (explicit)": lambda grid: ExplicitSoftmaxAttention(DIM, grid, HEADS),
}


@torch.inference_mode()
def measure(img_size: int, rounds: int) -> dict[str, Any]:
    torch.manual_seed(0)
    grid = img_size // PATCH
    tokens = torch.randn(1, grid * grid, DIM)
    modules = {name: build(grid).eval() for name, build in MECHANISMS.items()}
    modules["softmax (explicit)"].load_state_dict(modules["softmax (fused)"].state_dict())
    fused, explicit = modules["softmax (fused)"](tokens), modules["softmax (explicit)"](tokens)
    assert (fused - explicit).abs().max() < 1e-4 * fused.abs().max()
    sides = {name: lambda module=module: module(tokens) for name, module in modules.items()}
    seconds = take_turns(sides, rounds, warmup=1)
    return {
        "img_size": img_size,
        "seconds": seconds,
        "bytes": {name: peak_memory(side) for name, side in sides.items()},
    }


def per_pixel_ratio(cells: list[dict[str, Any]], name: str, key: str) -> float:
    """Cost per pixel at the largest size over that at 448."""

    def cost(cell: dict[str, Any]) -> float:
        value = median(cell["seconds"])[name] if key == "seconds" else cell["bytes"][name]
        return value / cell["img_size"] ** 2

    at_448 = next(cell for cell in cells if cell["img_size"] == 448)
    return cost(cells[-1]) / cost(at_448)


def chart(cells: list[dict[str, Any]], path: Path) -> None:
    matplotlib.use("Agg")
    sizes = [cell["img_size"] for cell in cells]
    figure, (time_axes, memory_axes) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for name in MECHANISMS:
        style = "--" if name.startswith("softmax") else "-"
        time_axes.plot(sizes, [median(cell["seconds"])[name] * 1e3 for cell in cells], style, marker="o", label=name)
        memory_axes.plot(sizes, [cell["bytes"][name] / MIB for cell in cells], style, marker="o", label=name)
    guide = [(size / sizes[-1]) ** 2 for size in sizes]
    for axes, last in (
        (time_axes, median(cells[-1]["seconds"])["focused"] * 1e3),
        (memory_axes, cells[-1]["bytes"]["focused"] / MIB),
    ):
        axes.plot(sizes, [0.6 * last * share for share in guide], ":", color="grey", label="proportional to pixels")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
        axes.set_xlabel("side of the image (pixels)")
        axes.grid(alpha=0.3)
    time_axes.set_ylabel("time of one attention (ms)")
    memory_axes.set_ylabel("peak memory (MiB)")
    time_axes.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 320, 448, 640, 896, 1280, 1792])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="write the raw figures here, as JSON")
    parser.add_argument("--chart", type=Path, help="draw them here, as PNG")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{'ms / MiB':>8}" + "".join(f"{name:>22}" for name in MECHANISMS))
    cells = []
    for img_size in sorted(args.sizes):
        cells.append(measure(img_size, args.rounds))
        times, memory = median(cells[-1]["seconds"]), cells[-1]["bytes"]
        line = "".join(f"{times[name] * 1e3:12.1f} /{memory[name] / MIB:8.1f}" for name in MECHANISMS)
        print(f"{img_size:>8}{line}", flush=True)
    if 448 in args.sizes:
        for name in MECHANISMS:
            ratios = [per_pixel_ratio(cells, name, key) for key in ("seconds", "bytes")]
            print(f"{name}: per pixel, {cells[-1]['img_size']} over 448: time {ratios[0]:.2f}, memory {ratios[1]:.2f}")
    if args.out:
        versions = {"torch": torch.__version__, "threads": args.threads, "machine": platform.machine()}
        record = versions | {"cpu_capability": torch.backends.cpu.get_cpu_capability(), "cells": cells}
        with atomic_write(args.out) as temporary:
            temporary.write_text(json.dumps(record, indent=1))
    if args.chart:
        chart(cells, args.chart)


if __name__ == "__main__":
    main()
