"""Training curves of one, two and four processes with the same total batch, on the embedded digits, as a chart.

    python benchmarks/distributed_curve.py --out benchmarks/distributed_curve.json --chart docs/distributed_curve.png

Each run is ``linvit train`` on the CPU (gloo) with the same seed and settings. Two small models: one with LayerNorm,
which computes the same whatever the number of processes, and CARE, whose BatchNorm takes its statistics from the images
of one process.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import lightning
import torch
from matplotlib import pyplot as plt

from linvit.files import atomic_write

MODELS = {
    "DeiT with focused attention (LayerNorm)": (
        "flatten_deit_tiny",
        {"img_size": 32, "patch_size": 4, "depth": 3, "embed_dim": 48, "num_heads": 3},
    ),
    "CARE (BatchNorm)": (
        "care_s0",
        {"depths": [1, 1, 1, 1], "dims": [8, 16, 32, 64], "layer_scale_init_value": 0.5},
    ),
}
PROCESSES = (1, 2, 4)
CURVES = {"train/loss": "training loss", "val/loss": "held-out loss", "val/top1": "held-out top-1"}


def train(name: str, model_args: dict[str, Any], processes: int, args: argparse.Namespace) -> dict[str, list[float]]:
    """Return the curves of a run, by epoch."""
    with tempfile.TemporaryDirectory() as place:
        settings = {
            "out": f"{place}/run",
            "model.name": name,
            "model.model_args": json.dumps(model_args),
            "model.lr": args.lr,
            "data.img_size": 32,
            "data.batch_size": args.batch // processes,
            "data.workers": 0,
            "data.crop_pct": 1.0,
            "trainer.accelerator": "cpu",
            "trainer.devices": processes,
            "trainer.precision": args.precision,
            "trainer.max_epochs": args.epochs,
        }
        given = [f"--{key}={value}" for key, value in settings.items()]
        subprocess.run([sys.executable, "-m", "linvit.cli.main", "train", *given], check=True)
        with open(f"{place}/run/metrics.csv", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    return {name: [float(row[name]) for row in rows] for name in CURVES}


def differences(runs: dict[str, dict[str, list[float]]]) -> dict[str, float]:
    """Return how far any curve is from that of one process, at most, in its unit."""
    return {
        name: max(abs(a - b) for run in runs.values() for a, b in zip(run[name], runs["1"][name], strict=True))
        for name in CURVES
    }


def draw(record: dict[str, Any], chart: Path) -> None:
    figure, axes = plt.subplots(len(MODELS), len(CURVES), figsize=(11, 6), sharex=True, layout="constrained")
    for row, (title, found) in zip(axes, record["models"].items(), strict=True):
        for axis, (name, label) in zip(row, CURVES.items(), strict=True):
            for (processes, run), style, width in zip(found["runs"].items(), ("-", "--", ":"), (5, 3, 2), strict=True):
                epochs = range(1, len(run[name]) + 1)
                axis.plot(epochs, run[name], style, linewidth=width, label=processes, alpha=0.4 if width == 5 else 1)
            axis.set_title(f"{title}\n{label}: {found['differences'][name]:.2g} apart at most", fontsize=9)
            axis.grid(alpha=0.3)
    for axis in axes[-1]:
        axis.set_xlabel("epoch")
    axes[0, 0].legend(title="processes")
    with atomic_write(chart) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch", type=int, default=64, help="images of an update, over all processes")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--precision", default="32-true", help="64-true leaves hardly any rounding to grow")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--chart", type=Path, required=True)
    args = parser.parse_args()
    record: dict[str, Any] = {
        "settings": {"epochs": args.epochs, "batch": args.batch, "lr": args.lr, "precision": args.precision},
        "versions": {"torch": torch.__version__, "lightning": lightning.__version__},
        "models": {},
    }
    for title, (name, model_args) in MODELS.items():
        runs = {str(count): train(name, model_args, count, args) for count in PROCESSES}
        record["models"][title] = {"name": name, "args": model_args, "differences": differences(runs), "runs": runs}
    with atomic_write(args.out) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n")
    draw(record, args.chart)
    for title, found in record["models"].items():
        print(title, found["differences"])


if __name__ == "__main__":
    main()
