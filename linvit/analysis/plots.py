"""The curves of a training run."""

import csv
from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from linvit.files import save_picture

__all__ = ["ACCURACY", "plot_curves"]

ACCURACY = {"top1": "top-1", "top5": "top-5"}

_TRAIN, _VAL = "#6b7280", "#1d4ed8"
_OTHERS = ("#93b4f5", "#f59e0b", "#10b981", "#8b5cf6", "#ec4899")


def plot_curves(metrics_csv: str | Path, out_png: str | Path, metrics: Mapping[str, str] = ACCURACY) -> None:
    """Draw loss and accuracy by epoch.

    Args:
        metrics_csv: ``metrics.csv`` of a run folder, with columns ``epoch``, ``train/loss``, ``val/loss`` and one for
            each figure (``val/NAME``), of which any may be missing or have gaps.
        out_png: The picture to write.
        metrics: Names of the metrics with what to call them; the title says the best of the first.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    loss, shares = figure.subplots(1, 2)
    with Path(metrics_csv).open(newline="") as file:
        rows = list(csv.DictReader(file))
    _curve(loss, rows, "train/loss", "training", _TRAIN)
    _curve(loss, rows, "val/loss", "validation", _VAL)
    loss.set_ylabel("loss")
    for (name, label), color in zip(metrics.items(), (_VAL, *_OTHERS), strict=False):
        best = _curve(shares, rows, f"val/{name}", label, color)
        if best is not None and color == _VAL:
            epoch, value = best
            shares.plot(epoch, value, "o", color=_VAL, markersize=5)
            shares.set_title(f"best {label}: {value:.2%} in epoch {epoch}", fontsize=10)
    shares.set_ylabel("validation")
    shares.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    for axes in (loss, shares):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(color="#e5e7eb")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        if len(axes.get_legend_handles_labels()[1]) > 3:  # too many for a free corner
            axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
        elif axes.lines:
            axes.legend(frameon=False)
    save_picture(figure, out_png)


def _curve(axes: Axes, rows: list[dict[str, str]], column: str, label: str, color: str) -> tuple[int, float] | None:
    """Draw the last value of each epoch; return the epoch, from 1, and the value of the highest."""
    by_epoch = {int(row["epoch"]) + 1: float(row[column]) for row in rows if row.get(column)}
    if not by_epoch:
        return None
    axes.plot(
        list(by_epoch), list(by_epoch.values()), color=color, label=label, marker="." if len(by_epoch) < 30 else ""
    )
    best = max(by_epoch, key=by_epoch.__getitem__)
    return best, by_epoch[best]
