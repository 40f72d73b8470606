"""Pictures of a training run: its curves and its confusion matrix."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from linvit.files import atomic_write

MOST_CLASSES_WITH_COUNTS = 25
MOST_CLASSES_WITH_NAMES = 60
LONGEST_NAME = 18

ACCURACY = {"top1": "top-1", "top5": "top-5"}

_TRAIN, _VAL = "#6b7280", "#1d4ed8"
_OTHERS = ("#93b4f5", "#f59e0b", "#10b981", "#8b5cf6", "#ec4899")


def plot_curves(metrics_csv: str | Path, out_png: str | Path, figures: Mapping[str, str] = ACCURACY) -> None:
    """Draw loss and accuracy by epoch.

    Args:
        metrics_csv: ``metrics.csv`` of a run folder, with columns ``epoch``, ``train/loss``, ``val/loss`` and one for
            each figure (``val/NAME``), of which any may be missing or have gaps.
        out_png: The picture to write.
        figures: Names of the figures with what to call them; the title says the best of the first.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    loss, shares = figure.subplots(1, 2)
    with Path(metrics_csv).open(newline="") as file:
        rows = list(csv.DictReader(file))
    _curve(loss, rows, "train/loss", "training", _TRAIN)
    _curve(loss, rows, "val/loss", "validation", _VAL)
    loss.set_ylabel("loss")
    for (name, label), color in zip(figures.items(), (_VAL, *_OTHERS), strict=False):
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
    _save(figure, out_png)


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


def plot_confusion(matrix: np.ndarray, classes: Sequence[str], out_png: str | Path) -> None:
    """Draw a confusion matrix, shaded by the share of each true class; counts and names where there is room.

    Args:
        matrix: ``[C, C]`` counts, true classes down and predicted classes across.
        classes: Names of the C classes.
        out_png: The picture to write.
    """
    matrix = np.asarray(matrix)
    count = len(classes)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = float(np.clip(2.5 + 0.42 * count, 4.5, 12))
    # A pixel or more for each class, and the square root of the share: or else rare mistakes would not be seen.
    figure = Figure(figsize=(side + 1, side), dpi=max(100.0, 1.5 * count / side), layout="constrained")
    axes = figure.subplots()
    norm = PowerNorm(0.5, vmin=0, vmax=1)
    image = axes.imshow(share, cmap="Blues", norm=norm, interpolation="nearest")
    figure.colorbar(image, ax=axes, format=PercentFormatter(1.0), label="share of the true class", shrink=0.8)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    total = matrix.sum()
    axes.set_title(f"{total:,} images, {np.trace(matrix) / max(total, 1):.2%} right", fontsize=11)
    if count <= MOST_CLASSES_WITH_NAMES:
        names = [name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…" for name in classes]
        size = 9 if count <= MOST_CLASSES_WITH_COUNTS else 6.5
        upright = max(map(len, names), default=0) > 3
        axes.set_xticks(range(count), names, fontsize=size, rotation=90 if upright else 0)
        axes.set_yticks(range(count), names, fontsize=size)
    if count <= MOST_CLASSES_WITH_COUNTS:
        for (row, column), value in np.ndenumerate(matrix):
            if value:
                color = "white" if norm(share[row, column]) > 0.6 else "black"
                axes.text(column, row, f"{value:,}", ha="center", va="center", color=color, fontsize=8)
    _save(figure, out_png)


def plot_comparison(scores: Mapping[str, Mapping[str, float]], out_png: str | Path) -> None:
    """Draw models beside each other, a group of bars for each figure.

    Args:
        scores: For each model its figures by name, shares from 0 to 1; all models have the same ones.
        out_png: The picture to write.
    """
    names = list(next(iter(scores.values())))
    height = 0.8 / len(scores)
    figure = Figure(figsize=(8, 1.2 + 0.32 * len(names) * (len(scores) + 1)), layout="constrained")
    axes = figure.subplots()
    for row, (model, figures) in enumerate(scores.items()):
        places = [index + row * height for index in range(len(names))]
        bars = axes.barh(places, [figures[name] for name in names], height, label=model, color=f"C{row}")
        axes.bar_label(bars, [f"{figures[name]:.1%}" for name in names], padding=3, fontsize=8)
    axes.set_yticks([index + height * (len(scores) - 1) / 2 for index in range(len(names))], names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.08)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=8)
    _save(figure, out_png)


def _save(figure: Figure, path: str | Path) -> None:
    with atomic_write(path) as temporary:
        FigureCanvasAgg(figure).print_png(str(temporary))
