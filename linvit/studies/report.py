"""What a study says: a table of its arms, the differences that were asked for, and a chart."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy import stats

from linvit.bench.records import Record
from linvit.files import atomic_write
from linvit.studies.study import Study

__all__ = ["Difference", "chart", "comparisons", "difference", "processor_time", "speeds", "table"]

SURE = 0.95


@dataclass(frozen=True)
class Difference:
    """How far two arms are apart, over the seeds that both have.

    Attributes:
        one: An arm.
        other: The arm it is compared with.
        n: Seeds.
        mean: Mean of the differences.
        interval: The 95 % interval of the mean, by Student's t over the pairs; None of fewer than two.
    """

    one: str
    other: str
    n: int
    mean: float
    interval: tuple[float, float] | None

    @property
    def differ(self) -> bool:
        """Tell whether the interval leaves out zero."""
        return self.interval is not None and not self.interval[0] <= 0.0 <= self.interval[1]

    def words(self) -> str:
        """Return one line."""
        if self.interval is None:
            return f"{self.one} against {self.other}: {self.mean:+.4f} on {self.n} seed, too few to tell"
        spread = f"{self.mean:+.4f} ({self.interval[0]:+.4f} to {self.interval[1]:+.4f}, {self.n} seeds)"
        return f"{self.one} against {self.other}: {spread if self.differ else f'no difference: {spread}'}"


def difference(one: str, other: str, pairs: Sequence[tuple[float, float]]) -> Difference:
    """Compare two arms by the values of the same seeds.

    Raises:
        ValueError: There are no pairs.
    """
    apart = [first - second for first, second in pairs]
    if not apart:
        raise ValueError(f"{one} and {other} have no seed in common")
    mean = statistics.mean(apart)
    if len(apart) < 2:
        return Difference(one, other, len(apart), mean, None)
    half = float(stats.t.ppf((1 + SURE) / 2, len(apart) - 1)) * statistics.stdev(apart) / math.sqrt(len(apart))
    return Difference(one, other, len(apart), mean, (mean - half, mean + half))


def comparisons(study: Study, record: Record) -> list[Difference]:
    """Return the differences that the study asks for, as far as their arms were trained."""
    found = []
    for one, other in study.compare:
        finals = [{cell.of["seed"]: cell.raw["values"][-1] for cell in record.select(arm=arm)} for arm in (one, other)]
        pairs = [(finals[0][seed], finals[1][seed]) for seed in sorted(finals[0].keys() & finals[1].keys())]
        if pairs:
            found.append(difference(one, other, pairs))
    return found


def table(study: Study, record: Record) -> list[dict[str, str]]:
    """Return a row for each arm: the metric (mean and standard deviation), n, size, cost and speed."""
    rows = []
    for arm in study.arms:
        runs = [cell.raw for cell in record.select(arm=arm)]
        if not runs:
            continue
        finals = [run["values"][-1] for run in runs]
        spread = f" ± {statistics.stdev(finals):.4f}" if len(finals) > 1 else ""
        rates = [run["images_per_second"] for run in runs if run["images_per_second"]]
        rows.append(
            {
                "arm": arm,
                study.metric: f"{statistics.mean(finals):.4f}{spread}",
                "n": str(len(runs)),
                "updates": f"{runs[0]['steps'][-1]:,}",
                "parameters": f"{runs[0]['parameters']:,}",
                "MACs": f"{runs[0]['macs'] / 1e6:.1f} M" if runs[0]["macs"] else "-",
                "images/s": f"{statistics.mean(rates):.0f}" if rates else "-",
                "processor time": processor_time(runs),
            }
            | _evaluated(study, runs)
        )
    return rows


def processor_time(runs: Sequence[dict[str, Any]]) -> str:
    """Return the processor time of runs together; at least that, where a run was not seen to its end."""
    known = [run["processor_seconds"] for run in runs if run.get("processor_seconds")]
    if not known:
        return "-"
    return f"{'' if len(known) == len(runs) else 'at least '}{sum(known) / 60:.1f} min"


def _evaluated(study: Study, runs: list[dict[str, Any]]) -> dict[str, str]:
    """Return the mean of the metric at each evaluation."""
    cells = {}
    for options in next(iter(runs)).get("evaluations", {}):
        found = [run["evaluations"][options].get(study.metric) for run in runs]
        cells[options.replace("--", "")] = f"{statistics.mean(found):.4f}" if None not in found else "-"
    return cells


def speeds(record: Record) -> list[dict[str, str]]:
    """Return a row for each arm, runtime and size of a study of speed: median times of two models, and their ratio."""
    rows = []
    for cell in record.cells:
        groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for measured in cell.raw["contenders"]:
            contender = measured["contender"]
            size = "x".join(map(str, contender["size"]))
            groups.setdefault((contender["runtime"], size), []).append(measured)
        for (runtime, size), (linear, softmax) in groups.items():
            times = [statistics.median(measured["seconds"]) for measured in (linear, softmax)]
            rows.append(
                {
                    "arm": cell.of["arm"],
                    "runtime": runtime,
                    "size": size,
                    **{
                        measured["contender"]["model"]: f"{seconds * 1e3:.1f} ms"
                        for measured, seconds in zip((linear, softmax), times, strict=True)
                    },
                    "ratio": f"{times[0] / times[1]:.2f}",
                }
            )
    return rows


def chart(study: Study, record: Record, path: Path) -> None:
    """Draw the metric by update, each arm's mean over its seeds in their range, and where each run ended beside it."""
    trained = {arm: runs for arm in study.arms if (runs := [cell.raw for cell in record.select(arm=arm)])}
    figure = Figure(figsize=(10, max(4.5, 1 + 0.3 * len(trained))), layout="constrained")
    axes, ends = figure.subplots(1, 2, width_ratios=(3, 2))
    for place, (arm, runs) in enumerate(trained.items()):
        steps = runs[0]["steps"]
        heights = list(zip(*(run["values"] for run in runs), strict=False))
        style = ("-", "--", ":")[place // 10 % 3]
        means = [statistics.mean(values) for values in heights]
        (line,) = axes.plot(steps[: len(means)], means, style, marker="o", markersize=3, label=arm)
        lowest, highest = [min(values) for values in heights], [max(values) for values in heights]
        axes.fill_between(steps[: len(means)], lowest, highest, color=line.get_color(), alpha=0.15, linewidth=0)
        finals = [run["values"][-1] for run in runs]
        ends.plot(finals, [place] * len(finals), "o", color=line.get_color(), markersize=4, alpha=0.5)
        ends.plot(statistics.mean(finals), place, "|", color=line.get_color(), markersize=14, markeredgewidth=2.5)
    axes.set_xlabel("updates")
    axes.set_ylabel(study.metric)
    axes.grid(alpha=0.3)
    ends.set_yticks(range(len(trained)), list(trained), fontsize=8)
    ends.tick_params("y", length=0)
    for label, line in zip(ends.get_yticklabels(), axes.get_lines(), strict=True):
        label.set_color(line.get_color())
    ends.set_ylim(len(trained) - 0.5, -0.5)
    ends.set_xlabel(f"{study.metric} at the end: seeds and their mean")
    ends.grid(alpha=0.3)
    with atomic_write(path) as temporary:
        FigureCanvasAgg(figure).print_png(str(temporary))
