"""Time and peak memory of attention mechanisms against image size, in one run, as a chart.

    python benchmarks/attention_cost.py --out benchmarks/attention_cost.json --chart docs/attention_cost.png

One attention module as DeiT-T has it (192 channels, 3 heads, patches of 16x16), forward on one image, float32. The
mechanisms take turns at each size. "softmax (explicit)" writes the N x N weights out, as models without
``scaled_dot_product_attention`` do.
"""

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import matplotlib
import torch
from matplotlib import pyplot as plt
from torch import nn

from linvit.attention import FocusedLinearAttention, KeyOnlyAttention, LinearAttention, SoftmaxAttention
from linvit.bench import peak_memory, take_turns
from linvit.bench.records import Record

DIM, HEADS, PATCH = 192, 3, 16
MIB = 2**20
WHAT = "Time and peak memory of one attention (192 channels, 3 heads, patches of 16x16), forward, one image"


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
def measure(record: Record, img_size: int, rounds: int) -> None:
    """Add a cell for each mechanism at one size."""
    torch.manual_seed(0)
    grid = img_size // PATCH
    tokens = torch.randn(1, grid * grid, DIM)
    modules = {name: build(grid).eval() for name, build in MECHANISMS.items()}
    modules["softmax (explicit)"].load_state_dict(modules["softmax (fused)"].state_dict())
    fused, explicit = modules["softmax (fused)"](tokens), modules["softmax (explicit)"](tokens)
    assert (fused - explicit).abs().max() < 1e-4 * fused.abs().max()
    contenders = {name: lambda module=module: module(tokens) for name, module in modules.items()}
    seconds = take_turns(contenders, rounds, warmup=1)
    for name, call in contenders.items():
        of = {"mechanism": name, "img_size": img_size}
        record.add(of, {"seconds": seconds[name], "bytes": peak_memory(call)})


def cost(record: Record, name: str, img_size: int) -> tuple[float, float]:
    """Return the median seconds and the bytes of one cell."""
    raw = record.get(mechanism=name, img_size=img_size)
    assert raw
    return statistics.median(raw["seconds"]), raw["bytes"]


def chart(record: Record, sizes: list[int], path: Path) -> None:
    matplotlib.use("Agg")
    figure, (time_axes, memory_axes) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for name in MECHANISMS:
        style = "--" if name.startswith("softmax") else "-"
        seconds, peaks = zip(*(cost(record, name, size) for size in sizes), strict=True)
        time_axes.plot(sizes, [each * 1e3 for each in seconds], style, marker="o", label=name)
        memory_axes.plot(sizes, [each / MIB for each in peaks], style, marker="o", label=name)
    guide = [(size / sizes[-1]) ** 2 for size in sizes]
    seconds, peak = cost(record, "focused", sizes[-1])
    for axes, last in ((time_axes, seconds * 1e3), (memory_axes, peak / MIB)):
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
    parser.add_argument("--out", type=Path, help="keep the raw values here, as JSON")
    parser.add_argument("--chart", type=Path, help="draw them here, as PNG")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{'ms / MiB':>8}" + "".join(f"{name:>22}" for name in MECHANISMS))
    record = Record.resume(args.out, WHAT, {"threads": args.threads, "rounds": args.rounds})
    sizes = sorted(args.sizes)
    for img_size in sizes:
        if record.get(mechanism="focused", img_size=img_size) is None:
            measure(record, img_size, args.rounds)
        costs = [cost(record, name, img_size) for name in MECHANISMS]
        line = "".join(f"{seconds * 1e3:12.1f} /{peak / MIB:8.1f}" for seconds, peak in costs)
        print(f"{img_size:>8}{line}", flush=True)
    if 448 in sizes:
        pixels = (sizes[-1] / 448) ** 2
        for name in MECHANISMS:
            pairs = zip(cost(record, name, sizes[-1]), cost(record, name, 448), strict=True)
            time, memory = (large / small / pixels for large, small in pairs)
            print(f"{name}: per pixel, {sizes[-1]} over 448: time {time:.2f}, memory {memory:.2f}")
    if args.chart:
        chart(record, sizes, args.chart)


if __name__ == "__main__":
    main()
