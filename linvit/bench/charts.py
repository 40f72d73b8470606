"""Pictures of measurements: latency against accuracy, cost against resolution."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from linvit.bench.on_device import DeviceTime
from linvit.bench.run import Measurement
from linvit.files import save_picture

__all__ = ["plot_accuracy", "plot_devices", "plot_resolution"]


def plot_accuracy(
    measurements: Sequence[Measurement], top1: Mapping[str, float], out_png: Path, peers: Collection[str] = ()
) -> None:
    """Draw the latency of each model of which an accuracy is known against it, with the quartiles as a bar.

    Each runtime, form and precision has a panel of its own; peers are gray.
    """
    known = [m for m in measurements if m.contender.model in top1]
    groups = _groups(known, _way)
    figure, panels = _figure(columns=len(groups))
    for axes, (label, group) in zip(panels, groups.items(), strict=True):
        for m in group:
            model = m.contender.model
            lower, middle, upper = (1e3 * seconds for seconds in m.latency)
            colour = "#6b7280" if model in peers else "#2563eb"
            spread = [[middle - lower], [upper - middle]]
            axes.errorbar(middle, top1[model], xerr=spread, fmt="o", markersize=5, color=colour)
            axes.annotate(model, (middle, top1[model]), (4, 4), textcoords="offset points", fontsize=8, color=colour)
        axes.set_title(label, fontsize=9)
        axes.margins(x=0.25, y=0.1)
        axes.set_xlabel("milliseconds for one image")
    panels[0].set_ylabel("published ImageNet-1K top-1 (%)")
    figure.draw_without_rendering()  # places and sizes are known only then
    for axes in panels:
        _spread_labels(axes)
    save_picture(figure, out_png)


_OFFSETS = [(x, y, "left" if x > 0 else "right") for y in (4, -11, 15, -22, 26, -33) for x in (4, -4)]
"""Where a label may stand beside its point, in points of type, the nearest first."""


def _spread_labels(axes: Axes) -> None:
    """Move each label of a point to the nearest place within the panel where it covers no point and no other label."""
    labels = sorted((text for text in axes.texts if isinstance(text, Annotation)), key=lambda text: text.xy)
    taken = [Bbox.from_bounds(x - 3, y - 3, 6, 6) for x, y in (axes.transData.transform(label.xy) for label in labels)]
    for label in labels:
        for x, y, side in _OFFSETS:
            label.set(position=(x, y), horizontalalignment=side)
            box = label.get_window_extent()
            inside = axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1
            if inside and not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)


def plot_resolution(measurements: Sequence[Measurement], out_png: Path) -> None:
    """Draw the latency of each model against the number of pixels; a straight line is a linear cost."""
    figure, (axes,) = _figure()
    forms = _groups(measurements, lambda m: f"{m.contender.model}, {_way(m)}")
    for label, group in forms.items():
        points = sorted((m.contender.size[0] * m.contender.size[1] / 1e6, m.latency[1] * 1e3) for m in group)
        axes.plot(*zip(*points, strict=True), "o-", markersize=4, label=label)
    axes.set_xlabel("megapixels")
    axes.set_ylabel("milliseconds for one image")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8)
    save_picture(figure, out_png)


def plot_devices(times: Sequence[DeviceTime], out_png: Path) -> None:
    """Draw the latency of each file on each device, with the quartiles as a bar."""
    files, devices = (list(dict.fromkeys(names)) for names in ([t.file for t in times], [t.device for t in times]))
    figure, (axes,) = _figure()
    figure.set_size_inches(7, 1.2 + 0.3 * len(files) * (len(devices) + 1))
    height = 0.8 / len(devices)
    for number, device in enumerate(devices):
        for t in (t for t in times if t.device == device):
            lower, middle, upper = (1e3 * seconds for seconds in t.latency)
            place = files.index(t.file) + number * height
            label = device if t is next(each for each in times if each.device == device) else None
            spread = [[middle - lower], [upper - middle]]
            axes.barh(place, middle, height, xerr=spread, color=f"C{number}", ecolor="#374151", label=label)
            axes.annotate(f"{middle:.1f}", (upper, place), xytext=(4, -3), textcoords="offset points", fontsize=8)
    axes.set_yticks([index + height * (len(devices) - 1) / 2 for index in range(len(files))], files)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel("milliseconds for one image")
    axes.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    save_picture(figure, out_png)


def _way(m: Measurement) -> str:
    """Say how a model was run."""
    return f"{m.contender.runtime}, {m.contender.form}, {m.contender.precision}"


def _groups(measurements: Sequence[Measurement], label) -> dict[str, list[Measurement]]:
    groups = defaultdict(list)
    for measurement in measurements:
        groups[label(measurement)].append(measurement)
    return groups


def _figure(columns: int = 1) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(1.6 + 4.8 * columns, 4), layout="constrained")
    panels = list(figure.subplots(1, columns, sharey=True, squeeze=False)[0])
    for axes in panels:
        axes.grid(color="#e5e7eb")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels
