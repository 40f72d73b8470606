"""What 8 bits cost a trained classifier: rounded after training, or trained with the rounding.

    python benchmarks/quantization.py --data imagenette128 --work runs/quantization --out benchmarks/quantization.json

A CARE-S0 and a FLatten-PVT-T learn Imagenette's photos at 64x64, once each. Then, as commands of linvit, each a
process of its own whose processor time is counted:

    float32   the model itself
    int8, int8-full   the files of `linvit export`, ranges from 300 training photos
    trained   `linvit train --config quantize` for half an epoch, then `export --precision int8-full`, for each seed
    longer    the same training, float32, without rounding: what the half epoch alone adds, for each seed

Top-1 is that of `linvit eval FILE` on the 3,925 validation photos, in the file's own runtime. Records are written after
each; what the output file holds is not repeated, so the command goes on where it was stopped.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from linvit.bench.process import run_command
from linvit.bench.records import Record
from linvit.deploy import FORMATS

SIZE = 64
MODELS = {
    "care_s0": {"trainer.max_epochs": 6},
    "flatten_pvt_tiny": {"trainer.max_epochs": 5},
}
"""What is trained, and how long."""
TRAINING = {
    "data.img_size": SIZE,
    "data.crop_pct": 1.0,
    "data.batch_size": 64,
    "data.workers": 0,
    "data.cache": "true",
    "data.scale": "[0.35,1.0]",
    "data.color_jitter": 0.2,
    "trainer.gradient_clip_val": 1.0,
    "trainer.accelerator": "cpu",
}
ON = {"trainer.max_epochs": 1, "trainer.limit_train_batches": 0.5, "model.warmup_epochs": 0.05}
"""Half an epoch."""
GENTLY = {
    "model.lr": 5e-5,
    "model.min_lr": 1e-6,
    "model.weight_decay": 0.0,
    "model.smoothing": 0.0,
    "model.distillation": "soft",
    "model.distillation_weight": 0.5,
}
"""The settings of the recipe ``quantize``, without the rounding."""


def command(*arguments: str) -> tuple[Any, float]:
    """Run linvit on one thread; return the JSON that it prints and the processor seconds that it took."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    code, printed, seconds = run_command([sys.executable, "-m", "linvit", *arguments, "--json"], env=environment)
    if code or seconds is None:
        raise SystemExit(f"linvit {' '.join(arguments)} ended with {code}")
    return json.loads(printed), seconds


class Measurements:
    """The commands of one model, and where its runs lie."""

    def __init__(self, name: str, data: Path, work: Path, formats: list[str], record: Record):
        self.name, self.data, self.formats, self.record = name, data, formats, record
        self.work = work / name
        self.base = self.work / "float32"

    def train(self, out: Path, seed: int, *more: str, **settings: Any) -> float:
        """Train into a folder; a run that was cut off goes on. Return the processor seconds of this call."""
        if (out / "last.ckpt").is_file():
            return command("train", "--resume", str(out))[1]
        given = {"data.root": self.data, "seed_everything": seed, "out": out, **TRAINING, **settings}
        return command("train", *more, *(f"--{key}={value}" for key, value in given.items()))[1]

    def top1(self, model: Path) -> float:
        said, _ = command("eval", str(model), str(self.data), "--workers=0", f"--img-size={SIZE}")
        return said["top1"]

    def cell(self, arm: str, seed: int, format: str, measure: Any) -> None:
        of = {"model": self.name, "arm": arm, "format": format, "seed": seed}
        if self.record.get(**of) is None:
            self.record.add(of, measure())
            print(of, self.record.get(**of), flush=True)

    def file(self, model: Path, precision: str, format: str) -> dict[str, Any]:
        """Export a model, and measure the file."""
        path = model / f"{precision}{FORMATS[format].suffix}"
        photos = str(self.data / "train")
        # LiteRT finds ranges anew for models that have learned theirs, too.
        options = ["--calibration", photos] if model == self.base or format == "litert" else []
        # Agreement on validation photos is part of what is printed; no bound, as accuracy is what is asked for.
        check = ["--images", str(self.data / "val"), "--bound", "1e9"]
        size = [f"--img-size={SIZE}"]
        told, _ = command(
            "export", str(model), "--to", format, "--precision", precision, "--out", str(path), *size, *options, *check
        )
        return {"top1": self.top1(path), "megabytes": told["megabytes"], "agreement": told["top1_agreement"]}

    def run(self, seeds: int) -> None:
        """Measure what is missing."""
        if not (self.base / "model.safetensors").is_file():
            start = {"model.lr": 1e-3, "model.warmup_epochs": 0.5, **MODELS[self.name]}
            self.train(self.base, 0, f"--model.name={self.name}", **start)
        self.cell("float32", 0, "torch", lambda: {"top1": self.top1(self.base)})
        for format in self.formats:
            for precision in ("int8", "int8-full"):
                self.cell(precision, 0, format, lambda p=precision, f=format: self.file(self.base, p, f))
        for seed in range(seeds):
            out = self.work / f"trained-{seed}"
            told = ("--config=quantize", f"--model.name={self.base}")
            self.cell("trained", seed, "torch", lambda s=seed, o=out, t=told: self.trained(o, s, *t, **ON))
            for format in self.formats:
                self.cell("trained", seed, format, lambda o=out, f=format: self.file(o, "int8-full", f))
        for seed in range(seeds):
            out = self.work / f"longer-{seed}"
            told = (f"--model.name={self.name}", f"--model.pretrained={self.base}", f"--model.teacher={self.base}")
            self.cell("longer", seed, "torch", lambda s=seed, o=out, t=told: self.trained(o, s, *t, **ON, **GENTLY))

    def trained(self, out: Path, seed: int, *more: str, **settings: Any) -> dict[str, Any]:
        """Train into a folder, if that is not done, and measure the result."""
        done = (out / "model.safetensors").is_file()
        seconds = None if done else self.train(out, seed, *more, **settings)
        return {"top1": self.top1(out), "seconds": seconds}


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="Imagenette: train/CLASS/* and val/CLASS/*")
    parser.add_argument("--work", type=Path, required=True, help="where the runs go")
    parser.add_argument("--out", type=Path, required=True, help="JSON of the records")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--formats", nargs="+", default=["onnx"], help="onnx, executorch, litert")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    settings = {"size": SIZE, "models": MODELS, "training": TRAINING, "trained_on": ON}
    record = Record.resume(args.out, (__doc__ or "").splitlines()[0], settings)
    for name in args.models:
        Measurements(name, args.data, args.work, args.formats, record).run(args.seeds)


if __name__ == "__main__":
    main()
