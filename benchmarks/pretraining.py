"""What learning without labels adds: pretrained then trained, against labels alone for the same processor time.

    python benchmarks/pretraining.py --data imagenette128 --work runs/pretraining --out benchmarks/pretraining.json

A small CARE (1.3 M parameters) learns the features of EfficientNet-Lite0 on the training photos without their labels,
then the classes from all, a tenth or a hundredth of the labels. The other arm learns from the same labels alone, for as
many epochs as take the same processor time, pretraining and teacher included. The teacher was trained on ImageNet,
which holds these ten classes with their labels: what it knew already is measured beside them (kNN of its features, and
its own answers among the ten classes).

Arms, for each seed:

    pretrain      no labels; kNN of its features
    pretrained_X  trained from there with X % of the labels
    labels_X      from nothing with X % of the labels, the same total processor time

Every run is a command of linvit in a process of its own, whose processor time is counted, data loading and start
included. Top-1 is that after the last epoch on the 3,925 validation photos. Records are written after each arm; what
the output file holds is not repeated, so the command goes on where it was stopped.
"""

import argparse
import hashlib
import json
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from linvit.bench.process import run_command
from linvit.bench.records import Record
from linvit.checkpoints import class_names, load_model
from linvit.data import collate
from linvit.data.sources import open_source
from linvit.inference.probes import Extractor, knn_votes

SIZE = 64
NETWORK = {"depths": [1, 1, 2, 1], "dims": [8, 16, 32, 64], "layer_scale_init_value": 0.1}
FINE_TUNING = {"100": 4, "10": 15, "1": 60}
"""Epochs with each percentage of the labels."""


def command(*arguments: str, threads: int = 1) -> tuple[dict[str, Any], float]:
    """Run linvit; return the JSON that it prints and the processor seconds that it took."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    code, printed, seconds = run_command([sys.executable, "-m", "linvit", *arguments, "--json"], env=environment)
    if code or seconds is None:
        raise SystemExit(f"linvit {' '.join(arguments)} ended with {code}")
    return json.loads(printed), seconds


def train(out: Path, data: Path, seed: int, epochs: int, *more: str) -> tuple[dict[str, Any], float]:
    """Train for some epochs, with one validation at the end; a run that was cut off begins anew."""
    for path in out.glob("*"):
        path.unlink()
    settings = {
        "data.root": data,
        "data.img_size": SIZE,
        "data.crop_pct": 1.0,
        "data.batch_size": batch(data),
        "data.workers": 0,
        "data.cache": "true",
        "data.scale": "[0.25,1.0]",
        "data.color_jitter": 0.2,
        "model.model_args": json.dumps(NETWORK),
        "model.warmup_epochs": max(0.5, epochs / 20),
        "trainer.accelerator": "cpu",
        "trainer.max_epochs": epochs,
        "trainer.check_val_every_n_epoch": epochs,
        "trainer.gradient_clip_val": 1.0,
        "seed_everything": seed,
        "out": out,
    }
    return command("train", *(f"--{name}={value}" for name, value in settings.items()), *more)


def subset(data: Path, root: Path, share: float, seed: int) -> Path:
    """Link a share of each class's training photos, drawn by their names and the seed, and all validation photos."""
    if not root.is_dir():
        part = root.with_name(f"{root.name}.part")
        (part / "train").mkdir(parents=True, exist_ok=True)
        for folder in sorted((data / "train").iterdir()):
            photos = sorted(folder.iterdir(), key=lambda path: hashlib.sha256(f"{seed}{path.name}".encode()).digest())
            (part / "train" / folder.name).mkdir(exist_ok=True)
            for path in photos[: max(1, round(len(photos) * share))]:
                place = part / "train" / folder.name / path.name
                place.unlink(missing_ok=True)
                place.symlink_to(path.resolve())
        (part / "val").unlink(missing_ok=True)
        (part / "val").symlink_to((data / "val").resolve())
        part.rename(root)
    return root


def batches(root: Path) -> int:
    """Count the full batches of an epoch."""
    return images(root) // batch(root)


def images(root: Path) -> int:
    """Count the training photos."""
    return sum(1 for _ in root.glob("train/*/*"))


def batch(root: Path) -> int:
    """Return the images per batch: 64, fewer where an epoch would have less than four updates."""
    return min(64, max(8, images(root) // 4))


def study(args: argparse.Namespace, seed: int, record: Record) -> None:
    """Run what is missing of a seed."""

    def arm(name: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        found = record.get(arm=name, seed=seed)
        if found is None:
            found = run()
            record.add({"arm": name, "seed": seed}, found)
            print(name, seed, found, flush=True)
        return found

    data = args.data if args.share == 1 else subset(args.data, args.work / "data", args.share, 0)
    backbone = args.work / f"pretrain-{seed}"

    def knn(model: Path) -> float:
        said, _ = command("eval", str(model), str(data), "--knn", "--workers", "0", "--img-size", str(SIZE))
        return said["knn"]["top1"]

    def pretrain() -> dict[str, Any]:
        told = ("--task=pretrain", "--model.cache=true", f"--data.views={args.views}", "--model.teacher_size=96")
        said, seconds = train(backbone, data, seed, args.epochs, *told, "--model.lr=2e-3")
        for path in backbone.glob("*.cache"):
            path.unlink()
        return {"seconds": seconds, "epochs": args.epochs, "explained": said["explained"], "knn": knn(backbone)}

    def root(percent: str) -> Path:
        share = int(percent) / 100
        return data if share == 1 else subset(data, args.work / f"data_{percent}-{seed}", share, seed)

    def tune(percent: str) -> dict[str, Any]:
        out, epochs = args.work / f"pretrained_{percent}-{seed}", FINE_TUNING[percent]
        said, seconds = train(out, root(percent), seed, epochs, f"--model.pretrained={backbone}", "--model.lr=1e-3")
        seen = epochs * batches(root(percent)) * batch(root(percent))
        return {"seconds": seconds, "epochs": epochs, "images": seen, "top1": said["top1"]}

    def alone(percent: str, allowed: float, price: float, start: float) -> dict[str, Any]:
        epochs = max(1, round((allowed - start) / price / (batches(root(percent)) * batch(root(percent)))))
        out = args.work / f"labels_{percent}-{seed}"
        said, seconds = train(out, root(percent), seed, epochs, "--model.lr=1e-3")
        return {"seconds": seconds, "allowed": allowed, "epochs": epochs, "top1": said["top1"]}

    spent = arm("pretrain", pretrain)["seconds"]
    tuned = {percent: arm(f"pretrained_{percent}", lambda percent=percent: tune(percent)) for percent in ("100", "10")}
    # The seconds of a run are a start and a price per image.
    most, least = tuned["100"], tuned["10"]
    price = (most["seconds"] - least["seconds"]) / (most["images"] - least["images"])
    start = least["seconds"] - price * least["images"]
    for percent in ("10", "100", "1"):
        allowed = spent + arm(f"pretrained_{percent}", lambda percent=percent: tune(percent))["seconds"]
        arm(f"labels_{percent}", lambda percent=percent, given=allowed: alone(percent, given, price, start))


def teacher(args: argparse.Namespace, record: Record) -> None:
    """Measure what the teacher knew: kNN of its features, and its answers among the ten classes."""
    if record.get(arm="teacher", seed=0):
        return
    model: Any = load_model("package:efficientnet_lite0")
    data = args.data if args.share == 1 else subset(args.data, args.work / "data", args.share, 0)
    extractor = Extractor(model, img_size=96)
    source = open_source("folder", str(data), 0.2)
    bank, asked = (
        extractor.extract(DataLoader(part, 64, collate_fn=collate))  # type: ignore[arg-type]
        for part in (source.train(extractor.transform, False), source.held_out(extractor.transform, False))
    )
    votes = knn_votes(bank.features, bank.targets, asked.features, len(source.classes))
    names = class_names(model)
    with torch.inference_mode():
        logits = model.get_classifier()(asked.features)[:, [names.index(name) for name in source.classes]]
    right = {"knn": votes, "top1": logits}
    record.add(
        {"arm": "teacher", "seed": 0},
        {name: float((scores.argmax(1) == asked.targets).float().mean()) for name, scores in right.items()},
    )


def table(record: Record) -> str:
    """Return mean and standard deviation of each arm."""
    lines = ["arm, top-1 or kNN in %: mean +- deviation (seeds), processor seconds"]
    for name in dict.fromkeys(cell.of["arm"] for cell in record.cells):
        found = [cell.raw for cell in record.select(arm=name)]
        seconds = statistics.mean(raw.get("seconds", 0) for raw in found)
        for metric in ("top1", "knn"):
            if values := [100 * raw[metric] for raw in found if metric in raw]:
                spread = f" +- {statistics.stdev(values):.2f}" if len(values) > 1 else ""
                mean = f"{statistics.mean(values):6.2f}{spread} ({len(values)})"
                lines.append(f"{name:15} {metric:5} {mean}  {seconds:7.0f}")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="Imagenette: train/CLASS/* and val/CLASS/*")
    parser.add_argument("--work", type=Path, required=True, help="where the runs go")
    parser.add_argument("--out", type=Path, required=True, help="JSON of the records")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=6, help="of pretraining")
    parser.add_argument("--views", type=int, default=3, help="crops of an image that the teacher sees")
    parser.add_argument("--share", type=float, default=1.0, help="share of the training photos that there are at all")
    parser.add_argument("--table", action="store_true", help="only print the table")
    args = parser.parse_args()
    args.data = args.data.resolve()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.table:
        print(table(Record.read(args.out)))
        return
    settings = {"size": SIZE, "network": NETWORK, "fine_tuning": FINE_TUNING}
    settings |= {name: getattr(args, name) for name in ("epochs", "views", "share")}
    record = Record.resume(args.out, (__doc__ or "").splitlines()[0], settings)
    teacher(args, record)
    for seed in range(args.seeds):
        study(args, seed, record)
    print(table(record))


if __name__ == "__main__":
    main()
