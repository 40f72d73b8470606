"""How much accuracy a converted model gets back, in how many updates, and what distillation adds to it.

    linvit train --config small/vit_imagenette128 --data.root imagenette128 --out runs/vit
    python benchmarks/linearize_recovery.py runs/vit --data imagenette128 --out benchmarks/linearize_recovery.json

Three arms, the same data, updates and learning rates (but --scratch-lr), for each seed:

    distilled   converted with the original's weights, taught by the original (attention outputs and logits) and labels
    fine-tuned  converted with the original's weights, taught by the labels alone
    scratch     the converted architecture with new weights, taught by the labels alone

Each line of the table is an update at which all were validated; figures are top-1, mean and standard deviation over
the seeds. The output file is written after every run, and runs that it already holds are not repeated.
"""

import argparse
from pathlib import Path
from typing import Any

from _curves import Curve, draw_curves, mean_and_deviation, open_record, quiet_trainer, save_record
from lightning import Trainer, seed_everything
from torch.utils.data import Subset

from linvit.checkpoints import load_model
from linvit.data import ClassificationData
from linvit.linearization import MECHANISMS
from linvit.tasks.linearize import LinearizeTask

ARMS: dict[str, dict[str, Any]] = {
    "distilled": {},
    "fine-tuned": {"logit_weight": 0.0, "attention_weight": 0.0},
    "scratch": {"logit_weight": 0.0, "attention_weight": 0.0, "pretrained": False},
}


def trainer(args: argparse.Namespace, curve: Curve) -> Trainer:
    return quiet_trainer(
        args,
        curve,
        val_check_interval=1 / args.checks_per_epoch,
        limit_train_batches=args.train_batches,
        inference_mode=False,  # metrics reset in it could not be used in the training that follows
    )


def data(args: argparse.Namespace, seed: int) -> ClassificationData:
    images = ClassificationData(
        root=args.data,
        img_size=args.img_size,
        batch_size=args.batch_size,
        workers=args.workers,
        scale=(0.25, 1.0),
        color_jitter=0.2,
        crop_pct=1.0,
        seed=seed,
    )
    held_out = images.val_set
    images.val_set = Subset(held_out, range(0, len(held_out), args.val_every))  # in the order of the classes
    return images


def run(args: argparse.Namespace, arm: str, seed: int) -> dict[str, list]:
    """Train one arm and return its top-1 by update, update 0 being the conversion itself."""
    seed_everything(seed, verbose=False)
    images, curve = data(args, seed), Curve()
    task = LinearizeTask(
        images.num_classes,
        name=str(args.original),
        attention=args.attention,
        stages=args.stages,
        lr=args.scratch_lr if arm == "scratch" else args.lr,
        warmup_epochs=0.5,
        smoothing=0.0,
        **ARMS[arm],
    )
    training = trainer(args, curve)
    training.validate(task, images, verbose=False)
    training.fit(task, images)
    return {"steps": curve.steps, "top1": curve.top1}


def original_top1(args: argparse.Namespace) -> float:
    images, curve = data(args, 0), Curve()
    task = LinearizeTask(images.num_classes, name=str(args.original))
    task.model = load_model(args.original)
    trainer(args, curve).validate(task, images, verbose=False)
    return curve.top1[0]


def table(record: dict[str, Any]) -> str:
    """Return top-1 by update, ``mean ± deviation`` per arm."""
    lines = [f"original {record['original_top1']:.2%}; converted to {record['settings']['attention']} attention"]
    lines.append(f"{'update':>8}" + "".join(f"{arm:>18}" for arm in record["runs"]))
    steps = sorted({step for runs in record["runs"].values() for one in runs.values() for step in one["steps"]})
    for step in steps:
        cells = []
        for runs in record["runs"].values():
            found = [one["top1"][one["steps"].index(step)] for one in runs.values() if step in one["steps"]]
            cells.append(mean_and_deviation(found))
        lines.append(f"{step:>8}" + "".join(f"{cell:>18}" for cell in cells))
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("original", type=Path, help="run folder of the trained original")
    parser.add_argument("--data", help="folder with train/CLASS/IMAGE and val/CLASS/IMAGE (the embedded digits)")
    parser.add_argument("--img-size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--attention", choices=list(MECHANISMS), default="focused")
    parser.add_argument("--stages", type=int, nargs="+", help="stages or blocks to replace (all)")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--scratch-lr", type=float, default=1e-3)
    parser.add_argument("--checks-per-epoch", type=int, default=4)
    parser.add_argument("--train-batches", type=float, default=1.0, help="share of the training batches per epoch")
    parser.add_argument("--val-every", type=int, default=1, help="validate on every n-th held-out image")
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write all figures here, as JSON")
    parser.add_argument("--chart", type=Path, help="draw them here, as PNG")
    return parser.parse_args()


def main() -> None:
    args = parse()
    record = open_record(args.out, args, {"seeds", "arms", "out", "chart", "workers"})
    if "original_top1" not in record:
        record["original_top1"] = original_top1(args)
    for seed in args.seeds:
        for arm in args.arms:
            runs = record["runs"].setdefault(arm, {})
            if str(seed) in runs:
                continue
            runs[str(seed)] = run(args, arm, seed)
            print(f"seed {seed}, {arm}: {runs[str(seed)]['top1'][-1]:.2%}", flush=True)
            save_record(args.out, record)
    print(table(record))
    if args.chart:
        draw_curves(record["runs"], args.chart, ("original", record["original_top1"]))


if __name__ == "__main__":
    main()
