"""What the benchmarks that train share: quiet trainers, top-1 by update, records that survive a stop, a chart."""

import json
import logging
import statistics
import warnings
from argparse import Namespace
from pathlib import Path
from typing import Any

import timm
import torch
from lightning import Callback, LightningModule, Trainer
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from linvit.files import atomic_write


class Curve(Callback):
    """Notes top-1 after each validation."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.top1: list[float] = []

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.steps.append(trainer.global_step)
        self.top1.append(float(trainer.callback_metrics["val/top1"]))


def quiet_trainer(args: Namespace, curve: Curve, **kwargs: Any) -> Trainer:
    """Build a trainer that writes nothing, for ``args`` with device, precision and epochs."""
    warnings.filterwarnings("ignore", module="lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    return Trainer(
        accelerator=args.device,
        devices=1,
        precision=args.precision,
        max_epochs=args.epochs,
        gradient_clip_val=1.0,
        num_sanity_val_steps=0,
        callbacks=[curve],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **kwargs,
    )


def open_record(out: Path | None, args: Namespace, unrecorded: set[str]) -> dict[str, Any]:
    """Return the record that ``out`` holds, or a new one with the settings, versions and no runs.

    Raises:
        SystemExit: The file holds runs with other settings.
    """
    settings = {name: value for name, value in vars(args).items() if name not in unrecorded}
    settings = json.loads(json.dumps(settings, default=str))
    if out and out.is_file():
        record = json.loads(out.read_text())
        if record["settings"] != settings:
            raise SystemExit(f"{out} holds runs with other settings: give another --out")
        return record
    versions = {"torch": torch.__version__, "timm": timm.__version__, "threads": torch.get_num_threads()}
    return {"settings": settings, "versions": versions, "runs": {}}


def save_record(out: Path | None, record: dict[str, Any]) -> None:
    """Write the record, if there is a file to write to."""
    if out:
        with atomic_write(out) as temporary:
            temporary.write_text(json.dumps(record, indent=1))


def mean_and_deviation(shares: list[float]) -> str:
    """Return ``mean ± standard deviation`` of shares in per cent, the mean alone of one, and - of none."""
    spread = f" ± {statistics.stdev(shares):.2%}" if len(shares) > 1 else ""
    return f"{statistics.mean(shares):.2%}{spread}" if shares else "-"


def draw_curves(runs: dict[str, dict[str, dict]], path: Path, level: tuple[str, float] | None = None) -> None:
    """Draw top-1 by update: a line for each arm's mean over its seeds, and the range of the seeds around it.

    Args:
        runs: ``steps`` and ``top1`` of every run, by arm and seed. The seeds of an arm have the same steps.
        path: The picture to write.
        level: Name and height of a horizontal line to compare with.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for arm, seeds in runs.items():
        steps = next(iter(seeds.values()))["steps"]
        heights = list(zip(*(run["top1"] for run in seeds.values()), strict=True))
        (line,) = axes.plot(steps, [statistics.mean(values) for values in heights], marker="o", label=arm)
        lowest, highest = [min(values) for values in heights], [max(values) for values in heights]
        axes.fill_between(steps, lowest, highest, color=line.get_color(), alpha=0.2, linewidth=0)
    if level:
        axes.axhline(level[1], color="grey", linestyle=":", label=level[0])
    axes.set_xlabel("updates")
    axes.set_ylabel("top-1")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_write(path) as temporary:
        FigureCanvasAgg(figure).print_png(str(temporary))
