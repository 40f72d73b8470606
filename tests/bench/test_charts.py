"""The charts of measurements: labels that can be read."""

from itertools import combinations

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from linvit.bench import charts
from linvit.bench.contenders import Contender
from linvit.bench.run import Measurement


def measurement(model: str, milliseconds: float) -> Measurement:
    return Measurement(Contender(model), 1, 1, [milliseconds / 1e3] * 3, 0, [], None, 0.0)


def test_labels_of_models_alike_in_time_and_accuracy_do_not_cover_each_other(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(charts, "save_picture", lambda figure, path: drawn.append(figure))
    top1 = {"repvit_m1_0": 80.0, "mobilenetv4_conv_medium": 79.9, "efficientvit_b1": 79.95, "care_s0": 78.4}
    times = {"repvit_m1_0": 7.0, "mobilenetv4_conv_medium": 7.05, "efficientvit_b1": 7.1, "care_s0": 6.9}
    charts.plot_accuracy([measurement(name, times[name]) for name in top1], top1, tmp_path / "chart.png")
    (figure,) = drawn
    labels = [text for text in figure.axes[0].texts if isinstance(text, Annotation)]
    assert {label.get_text() for label in labels} == set(top1)
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in labels]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
