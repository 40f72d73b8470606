"""Pictures of an inspection, as a paper could print them: PNG and SVG."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from linvit.analysis.contributions import GROUPS
from linvit.analysis.inspection import Inspection, LayerRecord
from linvit.files import atomic_write

__all__ = ["draw_groups", "draw_heads", "draw_layers", "draw_measures", "draw_overview", "overlay", "save"]

DPI = 200
MOST_COLUMNS = 6
MOST_HEADS = 12
LEAST_CELLS = 5
MAP = "inferno"
BLUE, LIGHT, AMBER, GREEN, GREY = "#1d4ed8", "#93b4f5", "#d97706", "#059669", "#6b7280"


def save(figure: Figure, path: Path) -> list[Path]:
    """Write a figure as ``path``.png and ``path``.svg, and return both paths."""
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas = FigureCanvasAgg(figure)
    paths = [path.with_name(f"{path.name}.{kind}") for kind in ("png", "svg")]
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "linvit"}):
        for each in paths:
            with atomic_write(each) as temporary:
                canvas.print_figure(str(temporary), format=each.suffix[1:], dpi=DPI, metadata=_plain(each))
    return paths


def _plain(path: Path) -> dict[str, None]:
    return {"Date": None} if path.suffix == ".svg" else {}


def overlay(
    axes: Axes,
    inspection: Inspection,
    values: np.ndarray | None,
    extent: tuple[float, float] = (0, 0),
    mark: bool = True,
    note: bool = True,
) -> None:
    """Draw a map over the image in grey, from its least value to its largest, and say below what these are.

    Args:
        axes: Where to.
        inspection: Has the image, and the pixel that is marked.
        values: ``[height, width]``; None draws the image in its colours.
        extent: Height and width in pixels that the map covers.
        mark: Mark the pixel.
        note: Say below between which multiples of its mean the map lies.
    """
    image = inspection.image
    if values is None:
        axes.imshow(image, extent=(0, image.width, image.height, 0))
    else:
        axes.imshow(image.convert("L"), cmap="gray", extent=(0, image.width, image.height, 0))
        axes.imshow(values, cmap=MAP, alpha=0.7, extent=(0, extent[1], extent[0], 0), interpolation="bilinear")
        if note:
            mean = max(abs(float(values.mean())), 1e-30)
            low, high = values.min() / mean, values.max() / mean
            axes.text(0.5, -0.03, f"{_factor(low)} to {_factor(high)} x mean", transform=axes.transAxes, ha="center",
                      va="top", fontsize=6, color=GREY)  # fmt: skip
    axes.set_xlim(0, image.width)
    axes.set_ylim(image.height, 0)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    if mark:
        x, y = inspection.at[0] + 0.5, inspection.at[1] + 0.5
        axes.plot(x, y, "o", ms=5, mfc="none", mec="black", mew=2.2)
        axes.plot(x, y, "o", ms=5, mfc="none", mec="#22d3ee", mew=1.2)


def _factor(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.0f}"


def draw_overview(inspection: Inspection) -> Figure:
    """Draw an image, what speaks for a class, where the sharpest attention looks, what a position sees, the classes."""
    layer = _sharpest(inspection.layers)
    panels: list[tuple[str, Callable[[Axes], None]]] = [("the image", lambda axes: overlay(axes, inspection, None))]
    if inspection.cam is not None:
        cam = inspection.cam
        title = f"Grad-CAM: {_shorten(inspection.cam_class)}"
        panels.append((title, lambda axes: overlay(axes, inspection, cam, inspection.cam_extent, mark=False)))
    panels.append(
        (
            f"attention received\n{short(layer.name)}",
            lambda axes: overlay(axes, inspection, layer.received, layer.extent, mark=False),
        )
    )
    panels.append(
        (
            f"mixed into the pixel\n{short(layer.name)}",
            lambda axes: overlay(axes, inspection, layer.mixing, layer.extent),
        )
    )
    panels.append(("receptive field", lambda axes: _draw_field(axes, inspection)))
    widths = [1.0] * len(panels) + ([1.1] if inspection.classes else [])
    ratio = float(np.clip(inspection.image.height / inspection.image.width, 0.4, 2.5))
    figure = Figure(figsize=(1.75 * sum(widths), 1.6 * ratio + 0.75), layout="constrained")
    cells = figure.subplots(1, len(widths), width_ratios=widths, squeeze=False)[0]
    for axes, (title, draw) in zip(cells, panels, strict=False):
        draw(axes)
        axes.set_title(title, fontsize=8)
    if inspection.classes:
        _draw_classes(cells[-1], inspection)
    return figure


def _draw_field(axes: Axes, inspection: Inspection) -> None:
    # Gradients fall by orders of magnitude from the middle: their cube roots are seen.
    size = (inspection.image.height, inspection.image.width)
    overlay(
        axes,
        inspection,
        np.cbrt(inspection.receptive_field / inspection.receptive_field.max().clip(min=1e-30)),
        size,
        note=False,
    )


def _draw_classes(axes: Axes, inspection: Inspection) -> None:
    names = [_shorten(each["class"], 16) for each in inspection.classes]
    values = [each["probability"] for each in inspection.classes]
    axes.barh(range(len(names)), values, color=[BLUE] + [LIGHT] * (len(names) - 1), height=0.6)
    for i, (name, value) in enumerate(zip(names, values, strict=True)):
        axes.text(0, i - 0.42, f"{name}  {value:.1%}", fontsize=6.5, va="bottom")
    axes.set_ylim(len(names) - 0.4, -0.9)
    axes.set_xlim(0, 1)
    axes.axis("off")


def draw_layers(inspection: Inspection) -> Figure:
    """Draw, layer by layer, where the pixel looks, what is mixed into it, and what is attended to."""
    layers = spread([layer for layer in inspection.layers if layer.received.size >= LEAST_CELLS] or inspection.layers)
    rows: list[tuple[str, Callable[[LayerRecord], np.ndarray | None], bool]] = [
        ("attention\nof the pixel", lambda layer: layer.attention.mean(axis=0), True)
    ]
    if any(layer.rank_mixed is not None for layer in layers):
        rows.append(("with the\nlocal part", lambda layer: layer.mixing, True))
    rows.append(("attention\nreceived", lambda layer: layer.received, False))
    if any(layer.saliency is not None for layer in layers):
        rows.append(("saliency", lambda layer: layer.saliency, False))
    ratio = float(np.clip(inspection.image.height / inspection.image.width, 0.4, 2.5))
    figure = Figure(figsize=(1.5 * len(layers) + 0.5, len(rows) * (1.5 * ratio + 0.1) + 0.4), layout="constrained")
    grid = figure.subplots(len(rows), len(layers), squeeze=False)
    for i, (title, values, mark) in enumerate(rows):
        for j, layer in enumerate(layers):
            axes, found = grid[i, j], values(layer)
            if found is None or (title.startswith("with") and layer.rank_mixed is None):
                axes.axis("off")
                continue
            overlay(axes, inspection, found, layer.extent, mark)
            if i == 0:
                axes.set_title(f"{short(layer.name)}\n{layer.mechanism}, {layer.grid[0]}x{layer.grid[1]}", fontsize=7)
        grid[i, 0].text(-0.08, 0.5, title, transform=grid[i, 0].transAxes, rotation=90, ha="right", va="center",
                        fontsize=7)  # fmt: skip
    return figure


def draw_heads(inspection: Inspection) -> Figure:
    """Draw where each head of the sharpest layer looks from the pixel."""
    layer = _sharpest(inspection.layers)
    heads = layer.attention[:MOST_HEADS]
    columns = min(len(heads), MOST_COLUMNS)
    rows = -(-len(heads) // columns)
    ratio = float(np.clip(inspection.image.height / inspection.image.width, 0.4, 2.5))
    figure = Figure(figsize=(1.5 * columns + 0.2, rows * (1.5 * ratio + 0.45) + 0.2), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(heads) :]:
        axes.axis("off")
    for i, (axes, head) in enumerate(zip(grid.flat, heads, strict=False)):
        overlay(axes, inspection, head, layer.extent)
        axes.set_title(f"{short(layer.name)}\nhead {i + 1} of {len(layer.attention)}", fontsize=7)
    return figure


def draw_measures(inspections: Sequence[Inspection]) -> Figure:
    """Draw focus, rank and reach by layer, means over images."""
    count = len(inspections[0].layers)
    layers = inspections[0].layers
    x = np.arange(1, count + 1)

    def mean(value: Callable[[LayerRecord], float]) -> np.ndarray:
        return np.array([np.mean([value(each.layers[i]) for each in inspections]) for i in range(count)])

    figure = Figure(figsize=(8.4, 2.8), layout="constrained")
    focus, rank, reach = figure.subplots(1, 3)
    focus.plot(x, mean(lambda layer: layer.entropy / np.log(max(layer.keys, 2))), "o-", color=BLUE, ms=4)
    focus.set_title("entropy, share of the highest", fontsize=9)
    focus.yaxis.set_major_formatter(PercentFormatter(1))
    focus.set_ylim(0, 1.05)
    rank.plot(x, mean(lambda layer: layer.rank["numerical"] / layer.rank["full"]), "o-", color=BLUE, ms=4,
              label="attention, numerical")  # fmt: skip
    rank.plot(x, mean(lambda layer: layer.rank["effective"] / layer.rank["full"]), "o--", color=LIGHT, ms=4,
              label="attention, effective")  # fmt: skip
    mixed = [i for i, layer in enumerate(layers) if layer.rank_mixed is not None]
    if mixed:
        for name, style, color in (("numerical", "s-", AMBER), ("effective", "s--", "#fbbf24")):
            values = mean(partial(_share_mixed, name=name))
            rank.plot(x[mixed], values[mixed], style, color=color, ms=4, label=f"with the local part, {name}")
    rank.set_title("rank, share of the full", fontsize=9)
    rank.yaxis.set_major_formatter(PercentFormatter(1))
    rank.set_ylim(0, 1.05)
    figure.legend(*rank.get_legend_handles_labels(), fontsize=7, frameon=False, ncols=4, loc="outside lower center")
    distance = mean(lambda layer: layer.distance)
    reach.plot(x, distance, "o-", color=GREEN, ms=4)
    reach.set_title("mean distance, pixels", fontsize=9)
    reach.set_ylim(0, 1.1 * distance.max())
    for axes in (focus, rank, reach):
        axes.set_xlabel("attention layer", fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e5e7eb", lw=0.6)
        axes.set_axisbelow(True)
    return figure


def _share_mixed(layer: LayerRecord, name: str) -> float:
    return np.nan if layer.rank_mixed is None else layer.rank_mixed[name] / layer.rank["full"]


def draw_groups(inspections: Sequence[Inspection]) -> Figure:
    """Draw how much CARE's groups contribute, block by block, means over images."""
    blocks = inspections[0].groups
    x = np.arange(1, len(blocks) + 1)
    figure = Figure(figsize=(8.4, 2.6), layout="constrained")
    axes = figure.subplots()
    for group, color in zip(GROUPS, (BLUE, AMBER, GREEN, GREY), strict=True):
        values = [np.mean([each.groups[i]["contributions"][group] for each in inspections]) for i in range(len(blocks))]
        axes.plot(x, values, "o-", ms=4, color=color, label=group)
    starts = [i for i in range(len(blocks)) if i == 0 or blocks[i]["grid"] != blocks[i - 1]["grid"]]
    for number, i in enumerate(starts):
        if i:
            axes.axvline(i + 0.5, color="#d1d5db", lw=0.8, zorder=0)
        mixer = blocks[i]["mixer"]
        axes.text(i + 0.6, 1.01, f"stage {number + 1}\n{mixer}", transform=axes.get_xaxis_transform(), fontsize=6.5)
    axes.set_xlabel("block", fontsize=8)
    axes.set_ylabel("change of the block's result\nwithout the group", fontsize=8)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def spread(layers: Sequence[LayerRecord], most: int = MOST_COLUMNS) -> list[LayerRecord]:
    """Choose at most so many layers, evenly spaced, the first and the last among them."""
    if len(layers) <= most:
        return list(layers)
    return [layers[round(i * (len(layers) - 1) / (most - 1))] for i in range(most)]


def _sharpest(layers: Sequence[LayerRecord]) -> LayerRecord:
    """Return the layer whose attention is the least even, of those that have enough positions."""
    enough = [layer for layer in layers if layer.grid[0] * layer.grid[1] >= LEAST_CELLS] or list(layers)
    return min(enough, key=lambda layer: layer.entropy / np.log(max(layer.keys, 2)))


def short(name: str) -> str:
    """Return a layer's name as people say it: "stages.2.blocks.0.attn" as "stage 3, block 1"."""
    words = name.split(".")
    said = [f"{word.rstrip('s')} {int(number) + 1}" for word, number in pairwise(words) if number.isdigit()]
    return ", ".join(said).replace("layer ", "stage ") or name


def _shorten(name: str, most: int = 20) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
