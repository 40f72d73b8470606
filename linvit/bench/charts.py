"""Pictures of measurements: latency against accuracy, cost against resolution."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from linvit.bench.run import Measurement
from linvit.files import atomic_write

__all__ = ["plot_accuracy", "plot_resolution"]


def plot_accuracy(measurements: Sequence[Measurement], top1: Mapping[str, float], out_png: Path) -> None:
    """Draw the latency of each model of which an accuracy is known against it, with the quartiles as a bar."""
    figure, axes = _figure()
    for label, group in _groups(measurements, lambda m: f"{m.side.runtime}, {m.side.form}").items():
        known = [m for m in group if m.side.model in top1]
        middles = [m.latency[1] * 1e3 for m in known]
        accuracies = [top1[m.side.model] for m in known]
        below = [(m.latency[1] - m.latency[0]) * 1e3 for m in known]
        above = [(m.latency[2] - m.latency[1]) * 1e3 for m in known]
        if known:
            axes.errorbar(middles, accuracies, xerr=[below, above], fmt="o", markersize=5, label=label)
        for m, point in zip(known, zip(middles, accuracies, strict=True), strict=True):
            axes.annotate(m.side.model, point, xytext=(4, 4), textcoords="offset points", fontsize=8)
    axes.set_xlabel("milliseconds for one image")
    axes.set_ylabel("published ImageNet-1K top-1 (%)")
    _save(figure, axes, out_png)


def plot_resolution(measurements: Sequence[Measurement], out_png: Path) -> None:
    """Draw the latency of each model against the number of pixels; a straight line is a linear cost."""
    figure, axes = _figure()
    for label, group in _groups(measurements, lambda m: f"{m.side.model}, {m.side.runtime}, {m.side.form}").items():
        points = sorted((m.side.size[0] * m.side.size[1] / 1e6, m.latency[1] * 1e3) for m in group)
        axes.plot(*zip(*points, strict=True), "o-", markersize=4, label=label)
    axes.set_xlabel("megapixels")
    axes.set_ylabel("milliseconds for one image")
    axes.set_ylim(bottom=0)
    _save(figure, axes, out_png)


def _groups(measurements: Sequence[Measurement], label) -> dict[str, list[Measurement]]:
    groups = defaultdict(list)
    for measurement in measurements:
        groups[label(measurement)].append(measurement)
    return groups


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    axes.grid(color="#e5e7eb")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Figure, axes: Axes, path: Path) -> None:
    axes.legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        FigureCanvasAgg(figure).print_png(str(temporary))
