"""Pictures of metrics: a confusion matrix, and models beside each other."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from linvit.files import save_picture

__all__ = ["plot_comparison", "plot_confusion"]

MOST_CLASSES_WITH_COUNTS = 25
MOST_CLASSES_WITH_NAMES = 60
LONGEST_NAME = 18


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
    save_picture(figure, out_png)


def plot_comparison(scores: Mapping[str, Mapping[str, float]], out_png: str | Path) -> None:
    """Draw models beside each other, a group of bars for each metric.

    Args:
        scores: For each model its metrics by name, shares from 0 to 1; all models have the same ones.
        out_png: The picture to write.
    """
    names = list(next(iter(scores.values())))
    height = 0.8 / len(scores)
    figure = Figure(figsize=(8, 1.2 + 0.32 * len(names) * (len(scores) + 1)), layout="constrained")
    axes = figure.subplots()
    for row, (model, metrics) in enumerate(scores.items()):
        places = [index + row * height for index in range(len(names))]
        bars = axes.barh(places, [metrics[name] for name in names], height, label=model, color=f"C{row}")
        axes.bar_label(bars, [f"{metrics[name]:.1%}" for name in names], padding=3, fontsize=8)
    axes.set_yticks([index + height * (len(scores) - 1) / 2 for index in range(len(names))], names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.08)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=8)
    save_picture(figure, out_png)
