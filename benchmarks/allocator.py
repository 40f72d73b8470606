"""What keeping freed memory (linvit.allocator) is worth on a CPU: processor time and peak memory of training and use.

    python benchmarks/allocator.py --out benchmarks/allocator.json

Each workload runs in fresh processes, with the system's setting and with linvit's in turns. A process computes one
thread, and times its steps after the first by its own processor time. More allocators can be preloaded for comparison:
``--preload /usr/lib/x86_64-linux-gnu/libjemalloc.so.2``.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from linvit.allocator import VARIABLE, keep_freed_memory
from linvit.bench.records import Record

WORKLOADS = {
    "CARE-S0, training at 224, batch 128": ("classifier", "care_s0", True, 128, 224),
    "CARE-S0, inference at 224, batch 128": ("classifier", "care_s0", False, 128, 224),
    "FLatten-Swin-T, training at 224, batch 32": ("classifier", "flatten_swin_tiny", True, 32, 224),
    "RetinaNet on CARE-S0, training at 800, batch 2": ("detector", "care_s0", True, 2, 800),
    "RetinaNet on CARE-S0, inference at 800": ("detector", "care_s0", False, 1, 800),
    "Semantic FPN on CARE-S0, training at 512, batch 8": ("segmenter", "care_s0", True, 8, 512),
    **{
        f"{name}, inference at {size}": ("classifier", name, False, 1, size)
        for name in ("care_s0", "flatten_pvt_v2_b0", "flatten_swin_tiny", "flatten_cswin_tiny", "linglo_b0")
        for size in (448, 1792)
    },
}


def classifier(name: str, training: bool, batch: int, size: int) -> Callable[[], Any]:
    import timm

    import linvit  # noqa: F401 -- registers the models

    model = timm.create_model(name).to(memory_format=torch.channels_last).train(training)
    images = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(batch) % 1000
    if not training:
        return lambda: model(images)
    return stepper(model, lambda: torch.nn.functional.cross_entropy(model(images), labels))


def detector(backbone: str, training: bool, batch: int, size: int) -> Callable[[], Any]:
    from linvit.heads.detection import DetectionModel

    model = DetectionModel(20, "retinanet", backbone).to(memory_format=torch.channels_last).train(training)
    images = [torch.rand(3, size, size * 4 // 3) for _ in range(batch)]
    boxes = torch.tensor([[100.0, 100.0, 300.0, 400.0], [500.0, 200.0, 900.0, 700.0]])
    targets = [{"boxes": boxes, "labels": torch.tensor([1, 2])} for _ in images]
    if not training:
        return lambda: model(images)
    return stepper(model, lambda: sum(model(images, targets).values()))


def segmenter(backbone: str, training: bool, batch: int, size: int) -> Callable[[], Any]:
    from linvit.heads.segmentation import Segmenter

    model = Segmenter(20, "fpn", backbone).to(memory_format=torch.channels_last).train(training)
    images = torch.rand(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
    target = torch.randint(0, 20, (batch, size, size))
    return stepper(model, lambda: torch.nn.functional.cross_entropy(model(images), target))


def stepper(model: torch.nn.Module, loss: Callable[[], Any]) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure(workload: str, steps: int) -> dict[str, Any]:
    """Run a workload in this process: processor seconds of each step after the first, and peak memory in bytes."""
    keep_freed_memory()
    torch.set_num_threads(1)
    kind, *arguments = WORKLOADS[workload]
    torch.manual_seed(0)
    with torch.inference_mode(not arguments[1]):
        step = globals()[kind](*arguments)
        step()
        seconds = []
        for _ in range(steps):
            begin = time.process_time()
            step()
            seconds.append(time.process_time() - begin)
    return {"seconds": seconds, "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def in_a_process(workload: str, allocator: str, steps: int) -> dict[str, Any]:
    preload = allocator if allocator not in ("system", "keep") else ""
    setting = {VARIABLE: "keep" if allocator == "keep" else "system", "LD_PRELOAD": preload}
    command = [sys.executable, __file__, "--workload", workload, "--steps", str(steps)]
    done = subprocess.run(command, env=os.environ | setting, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="processes of each kind (3)")
    parser.add_argument("--steps", type=int, default=2, help="timed steps of each (2)")
    parser.add_argument("--preload", nargs="+", default=[], metavar="FILE", help="more allocators to compare with")
    parser.add_argument("--out", type=Path, help="keep the raw values here, as JSON; what is there is not repeated")
    parser.add_argument("--workload", choices=WORKLOADS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.workload:
        print(json.dumps(measure(args.workload, args.steps)))
        return
    allocators = ["system", "keep", *args.preload]
    record = Record.resume(args.out, "Keeping freed memory: processor time and peak memory", {"steps": args.steps})
    for turn, workload, allocator in track(list(product(range(args.rounds), WORKLOADS, allocators)), "measuring"):
        of = {"workload": workload, "allocator": Path(allocator).name, "round": turn}
        if record.get(**of) is None:
            record.add(of, in_a_process(workload, allocator, args.steps))
    for workload, allocator in product(WORKLOADS, allocators):
        found = [cell.raw for cell in record.select(workload=workload, allocator=Path(allocator).name)]
        seconds = statistics.median(second for raw in found for second in raw["seconds"])
        peak = statistics.median(raw["peak_bytes"] for raw in found) / 2**20
        print(f"{workload}, {Path(allocator).name}: {seconds:.2f} s, {peak:,.0f} MiB")


if __name__ == "__main__":
    main()
