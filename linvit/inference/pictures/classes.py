"""Pictures of predictions: an image with its most likely classes, and where the model looked."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from linvit.inference.pictures.canvas import drawn

__all__ = ["ClassPicture", "draw_classes", "draw_grid"]


@dataclass
class ClassPicture:
    """An image, its most likely classes (best first) with their probabilities, and what may be shown with them."""

    image: Image.Image
    classes: Sequence[str]
    probabilities: Sequence[float]
    title: str = ""
    attention: np.ndarray | None = None  # [h, w], laid over the image


def draw_classes(prediction: ClassPicture) -> Image.Image:
    """Draw one image with its classes beside it."""
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    picture, bars = figure.subplots(1, 2)
    _draw_image(picture, prediction)
    _draw_bars(bars, prediction)
    return drawn(figure)


def draw_grid(predictions: Sequence[ClassPicture]) -> Image.Image:
    """Draw many images, two to a row, each with its attention (where known) and its classes beside it."""
    with_attention = any(p.attention is not None for p in predictions)
    widths = [1, 1, 1.3] if with_attention else [1, 1.3]
    rows = -(-len(predictions) // 2)
    figure = Figure(figsize=(2 * 1.7 * sum(widths), 1.7 * rows + 0.6), layout="constrained")
    grid = figure.subplots(rows, 2 * len(widths), width_ratios=widths * 2, squeeze=False)
    for i, prediction in enumerate(predictions):
        cells = grid[i // 2, (i % 2) * len(widths) :][: len(widths)]
        _draw_image(cells[0], prediction)
        if with_attention:
            _draw_attention(cells[1], prediction)
        _draw_bars(cells[-1], prediction)
    for axes in grid.flat[len(predictions) * len(widths) :]:
        axes.axis("off")
    return drawn(figure)


def _draw_image(axes: Axes, prediction: ClassPicture) -> None:
    axes.imshow(prediction.image)
    axes.axis("off")
    axes.set_title(_shorten(prediction.title), fontsize=9)


def _draw_attention(axes: Axes, prediction: ClassPicture) -> None:
    axes.axis("off")
    if prediction.attention is None:
        return
    width, height = prediction.image.size
    axes.imshow(prediction.image.convert("L"), cmap="gray")
    axes.imshow(prediction.attention, cmap="inferno", alpha=0.6, extent=(0, width, height, 0), interpolation="bilinear")
    axes.set_title("attention", fontsize=9)


def _draw_bars(axes: Axes, prediction: ClassPicture) -> None:
    names = [_shorten(name) for name in prediction.classes]
    positions = range(len(names))
    axes.barh(positions, prediction.probabilities, color=["#1d4ed8"] + ["#93b4f5"] * (len(names) - 1))
    for position, probability in zip(positions, prediction.probabilities, strict=True):
        inside = probability > 0.7
        axes.text(
            probability + (-0.02 if inside else 0.02),
            position,
            f"{probability:.1%}",
            va="center",
            ha="right" if inside else "left",
            color="white" if inside else "black",
            fontsize=7,
        )
    axes.set_yticks(positions, names, fontsize=8)
    axes.set_xlim(0, 1)
    axes.set_xticks([])
    axes.invert_yaxis()
    axes.spines[["top", "right", "bottom"]].set_visible(False)


def _shorten(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:23]}…"
