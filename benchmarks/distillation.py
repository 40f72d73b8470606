"""What a teacher adds: the same model, images and updates, with it and without it, over several seeds.

    python benchmarks/distillation.py --data imagenette128 --out benchmarks/distillation.json

The teacher is EfficientNet-Lite0, whose ImageNet weights come as a package; of its 1,000 classes it answers for those
of the data, found by the names of the folders (n01440764 and so on). Arms:

    labels   trained on the labels alone
    hard     half of the loss is the teacher's choice, learned by CARE's second head (the paper's way)
    soft     half of the loss is the teacher's class probabilities at a temperature, learned by that head

Figures are top-1 after the last epoch, mean and standard deviation over the seeds. The output file is written after
every run, and runs that it already holds are not repeated.
"""

import argparse
import json
import logging
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import timm
import torch
from lightning import Callback, LightningModule, Trainer, seed_everything
from torch.utils.data import DataLoader, Subset

from linvit.data import ClassificationData, collate
from linvit.files import atomic_write
from linvit.tasks import ClassificationTask
from linvit.tasks.distillation import Teacher, load_teacher
from linvit.tasks.faults import StepSeed

ARMS: dict[str, dict[str, Any]] = {
    "labels": {},
    "hard": {"distillation": "hard"},
    "soft": {"distillation": "soft"},
}


class Curve(Callback):
    """Notes top-1 and loss after each validation."""

    def __init__(self) -> None:
        self.top1: list[float] = []
        self.loss: list[float] = []

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.top1.append(float(trainer.callback_metrics["val/top1"]))
        self.loss.append(float(trainer.callback_metrics["val/loss"]))


def data(args: argparse.Namespace, seed: int) -> ClassificationData:
    images = ClassificationData(
        root=args.data,
        img_size=args.img_size,
        batch_size=args.batch_size,
        workers=args.workers,
        cache=True,
        scale=(0.25, 1.0),
        color_jitter=0.2,
        crop_pct=1.0,
        seed=seed,
    )
    if args.val_every > 1:
        held_out = images.val_set
        images.val_set = Subset(held_out, range(0, len(held_out), args.val_every))  # in the order of the classes
    return images


def run(args: argparse.Namespace, arm: str, seed: int) -> dict[str, Any]:
    """Train one arm; return its top-1 and loss by epoch, and the seconds that it took."""
    seed_everything(seed, verbose=False)
    images, curve = data(args, seed), Curve()
    taught = {} if arm == "labels" else {"teacher": "efficientnet_lite0", "teacher_size": args.teacher_size}
    task = ClassificationTask(
        images.num_classes,
        name=args.model,
        model_args={"layer_scale_init_value": 0.1} if args.model.startswith("care") else {},
        lr=args.lr,
        distillation_temperature=args.temperature,
        **taught,
        **ARMS[arm],
    )
    trainer = Trainer(
        accelerator=args.device,
        devices=1,
        precision=args.precision,
        max_epochs=args.epochs,
        limit_train_batches=args.train_batches,
        gradient_clip_val=1.0,
        num_sanity_val_steps=0,
        callbacks=[StepSeed(seed), curve],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    begin = time.perf_counter()
    trainer.fit(task, images)
    return {"top1": curve.top1, "loss": curve.loss, "seconds": round(time.perf_counter() - begin, 1)}


def teacher_top1(args: argparse.Namespace) -> float:
    """Return the teacher's own top-1 on what the student validates on."""
    images = data(args, 0)
    teacher = Teacher(load_teacher("efficientnet_lite0"), args.teacher_size)
    device = torch.device("cuda" if args.device in ("auto", "gpu", "cuda") and torch.cuda.is_available() else "cpu")
    teacher.meet(images.input_config(), images.classes, device)
    right = [
        (teacher(batch["image"].to(device)).argmax(1).cpu() == batch["target"]).float()
        for batch in DataLoader(images.val_set, args.batch_size, collate_fn=collate)
    ]
    return float(torch.cat(right).mean())


def table(record: dict[str, Any]) -> str:
    """Return a line for each arm."""
    lines = [f"teacher {record['teacher_top1']:.2%} top-1", f"{'arm':8}{'top-1':>18}{'seconds':>10}  runs"]
    for arm, runs in record["runs"].items():
        found = [one["top1"][-1] for one in runs.values()]
        spread = f" ± {statistics.stdev(found):.2%}" if len(found) > 1 else ""
        seconds = statistics.mean(one["seconds"] for one in runs.values())
        lines.append(f"{arm:8}{statistics.mean(found):.2%}{spread:>11}{seconds:>10.0f}  {len(found)}")
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder whose classes are named by ImageNet's wnids")
    parser.add_argument("--model", default="care_s0")
    parser.add_argument("--img-size", type=int, default=96)
    parser.add_argument("--teacher-size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--temperature", type=float, default=2.0)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--train-batches", type=float, default=1.0, help="share of the training batches per epoch")
    parser.add_argument("--val-every", type=int, default=1, help="validate on every n-th held-out image")
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write all figures here, as JSON")
    return parser.parse_args()


def main() -> None:
    args = parse()
    warnings.filterwarnings("ignore", module="lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    settings = {name: value for name, value in vars(args).items() if name not in ("seeds", "arms", "out", "workers")}
    versions = {"torch": torch.__version__, "timm": timm.__version__, "threads": torch.get_num_threads()}
    record: dict[str, Any] = {"settings": settings, "versions": versions, "teacher_top1": None, "runs": {}}
    if args.out and args.out.is_file():
        before = json.loads(args.out.read_text())
        if before["settings"] != settings:
            raise SystemExit(f"{args.out} holds runs with other settings: give another --out")
        record = before
    if record["teacher_top1"] is None:
        record["teacher_top1"] = teacher_top1(args)
    for seed in args.seeds:
        for arm in args.arms:
            runs = record["runs"].setdefault(arm, {})
            if str(seed) in runs:
                continue
            runs[str(seed)] = run(args, arm, seed)
            print(f"seed {seed}, {arm}: {runs[str(seed)]['top1'][-1]:.2%}", flush=True)
            if args.out:
                with atomic_write(args.out) as temporary:
                    temporary.write_text(json.dumps(record, indent=1))
    print(table(record))


if __name__ == "__main__":
    main()
