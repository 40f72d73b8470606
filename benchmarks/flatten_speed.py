"""FLatten's hosts against timm's own softmax models, in one run: inference and a training step, by image size.

    python benchmarks/flatten_speed.py --out benchmarks/flatten_speed.json

The two take turns; a ratio below 1 means that focused linear attention is faster. One image per step, float32.
timm has no PVT (v1) and no CSwin, so these hosts have no peer here.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import timm
import torch

import linvit  # noqa: F401 -- registers the models
from linvit.bench import median, take_turns
from linvit.bench.records import Record

PEERS = {
    "flatten_deit_tiny": "deit_tiny_patch16_224",
    "flatten_pvt_v2_b0": "pvt_v2_b0",
    "flatten_swin_tiny": "swin_tiny_patch4_window7_224",
}

PHASES = ["inference", "training step"]


def build(name: str, img_size: int) -> torch.nn.Module:
    fixed_size = not name.startswith("pvt_v2")
    return timm.create_model(name, **({"img_size": img_size} if fixed_size and "flatten_pvt" not in name else {}))


def work(name: str, img_size: int, training: bool) -> Callable[[], object]:
    torch.manual_seed(0)
    model = build(name, img_size).train(training)
    images = torch.randn(1, 3, img_size, img_size)
    if not training:
        return torch.inference_mode()(lambda: model(images))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        model(images).logsumexp(dim=-1).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 448, 896])
    parser.add_argument("--models", nargs="+", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=PHASES)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="write the raw times here, as JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    settings = {"threads": args.threads, "rounds": args.rounds}
    record = Record.resume(args.out, "FLatten's hosts and timm's softmax models, one image, float32", settings)
    print(f"{'':34}{'size':>6}{'linear':>12}{'softmax':>12}{'ratio':>8}")
    for phase in args.phases:
        for name in args.models:
            for img_size in args.sizes:
                of = {"phase": phase, "host": name, "img_size": img_size}
                if record.get(**of, model=name):
                    continue
                calls = {model: work(model, img_size, phase != "inference") for model in (name, PEERS[name])}
                seconds = take_turns(calls, args.rounds, warmup=2)
                linear, softmax = median(seconds).values()
                print(
                    f"{phase + ', ' + name:34}{img_size:>6}{linear * 1e3:9.1f} ms{softmax * 1e3:9.1f} ms"
                    f"{linear / softmax:8.2f}",
                    flush=True,
                )
                for model, values in seconds.items():
                    record.add({**of, "model": model}, {"seconds": values})


if __name__ == "__main__":
    main()
