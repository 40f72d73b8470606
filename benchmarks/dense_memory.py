"""Peak memory of a backbone's forward pass against image size, linear next to softmax attention, as a chart.

    python benchmarks/dense_memory.py --out benchmarks/dense_memory.json --chart docs/dense_memory.png

One image, float32, inference on the CPU; the maps that a detection or segmentation head takes, without the head. Each
value comes from a process of its own and is the highest resident memory during the forward pass above that before it,
weights included in the latter. "explicit" writes the N x N attention weights out, as models without
``scaled_dot_product_attention`` do. What needs more than the limit is left out.
"""

import argparse
import multiprocessing
import resource
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import matplotlib
import torch
from matplotlib import pyplot as plt
from timm.layers import set_fused_attn

from linvit.bench import peak_memory
from linvit.bench.records import Record
from linvit.heads.backbone import Backbone

MIB = 2**20
EXPLICIT = " (explicit)"
PANELS = {
    "DeiT-T": ["flatten_deit_tiny", "deit_tiny_patch16_224", f"deit_tiny_patch16_224{EXPLICIT}"],
    "PVTv2-B0": ["flatten_pvt_v2_b0", "pvt_v2_b0", f"pvt_v2_b0{EXPLICIT}"],
    "Swin-T": ["flatten_swin_tiny", "swin_tiny_patch4_window7_224"],
    "linear in every stage": ["care_s0", "linglo_b0", "flatten_pvt_tiny"],
}
ANY_SIZE = {
    "deit_tiny_patch16_224": {"dynamic_img_size": True},
    "swin_tiny_patch4_window7_224": {"strict_img_size": False},
}


@torch.inference_mode()
def measure(contender: str, img_size: int, limit: int, threads: int) -> int | None:
    """Return the bytes of one forward pass; None beyond the limit. Runs in a process of its own."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    name = contender.removesuffix(EXPLICIT)
    if contender != name:
        set_fused_attn(False)
    maps = Backbone(name, (4, 8, 16, 32), args=ANY_SIZE.get(name)).eval().body
    maps(torch.randn(1, 3, 64, 64))  # libraries set themselves up at the first call
    image = torch.randn(1, 3, img_size, img_size)
    in_use = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (in_use + limit, resource.RLIM_INFINITY))
    try:
        return peak_memory(lambda: maps(image))
    except RuntimeError as error:
        if "allocate" not in str(error):
            raise
        return None


def chart(record: Record, path: Path) -> None:
    matplotlib.use("Agg")
    figure, panels = plt.subplots(1, len(PANELS), figsize=(4 * len(PANELS), 4), sharey=True, layout="constrained")
    for axes, (title, names) in zip(panels, PANELS.items(), strict=True):
        for name in names:
            cells = [(cell.of["img_size"], cell.raw["bytes"]) for cell in record.select(backbone=name)]
            points = [(size, value / MIB) for size, value in cells if value is not None]
            linear = name.startswith(("flatten", "care", "linglo"))
            axes.plot(*zip(*points, strict=True), "-" if linear else "--", marker="o", label=name)
        sizes = [cell.of["img_size"] for cell in record.select(backbone=names[0])]
        axes.set_title(title)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
        axes.set_xlabel("side of the image (pixels)")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    panels[0].set_ylabel("peak memory (MiB)")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024, 1536, 2048])
    parser.add_argument("--limit", type=float, default=6.0, help="most memory of one pass, in GiB")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="keep the raw values here, as JSON")
    parser.add_argument("--chart", type=Path, help="draw them here, as PNG")
    args = parser.parse_args()
    limit = int(args.limit * 1024 * MIB)
    context = multiprocessing.get_context("forkserver")  # imports once; every measurement starts from there
    context.set_forkserver_preload(["linvit.heads.backbone"])
    what = "Peak memory of a backbone's forward pass, one square image, float32"
    record = Record.resume(args.out, what, {"threads": args.threads, "limit": limit})
    print(f"{'peak MiB at':36}" + "".join(f"{size:>9}" for size in args.sizes))
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
        for name in [name for names in PANELS.values() for name in names]:
            print(f"{name:36}", end="", flush=True)
            for size in args.sizes:
                if (found := record.get(backbone=name, img_size=size)) is None:
                    found = {"bytes": pool.submit(measure, name, size, limit, args.threads).result()}
                    record.add({"backbone": name, "img_size": size}, found)
                value = found["bytes"]
                print(f"{'over' if value is None else f'{value / MIB:.0f}':>9}", end="", flush=True)
            print()
    if args.chart:
        chart(record, args.chart)


if __name__ == "__main__":
    main()
