"""The pictures of predictions and of metrics."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from linvit.inference.pictures.boxes import COLOURS, Detection, draw_detections
from linvit.inference.pictures.masks import class_colours
from linvit.inference.pictures.metrics import plot_confusion


def pixels(path: Path) -> np.ndarray:
    """Read a picture as ``[H, W, 3]``."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


@pytest.mark.parametrize("count", [2, 10, 40, 1000])
def test_confusion_is_drawn_for_any_number_of_classes(tmp_path: Path, count: int) -> None:
    matrix = np.diag(np.full(count, 9))
    matrix[0, 1] = 1
    plot_confusion(matrix, [f"a rather long name {i}" for i in range(count)], tmp_path / "out.png")
    picture = pixels(tmp_path / "out.png")
    assert max(picture.shape) <= 2000
    dark = (picture.sum(axis=2) < 300).sum()
    assert dark > count, "each class has its dark place on the diagonal"


def test_confusion_of_a_class_without_images(tmp_path: Path) -> None:
    for name, matrix in (("none", np.zeros((2, 2), dtype=int)), ("some", np.diag([9, 0]))):
        plot_confusion(matrix, ["a", "b"], tmp_path / f"{name}.png")
    none, some = pixels(tmp_path / "none.png"), pixels(tmp_path / "some.png")
    cells = np.arange(none.shape[1]) < 0.7 * none.shape[1]  # without the colour bar
    dark = [((picture.sum(axis=2) < 300) & cells[: picture.shape[1]]).sum() for picture in (none, some)]
    assert dark[1] > dark[0] + 1000, "a class without images has no dark place, and nothing is divided by its none"


def test_rows_of_the_confusion_matrix_are_true_classes(tmp_path: Path) -> None:
    matrix = np.array([[0, 10], [0, 0]])  # every image is of the first class and is taken for the second
    plot_confusion(matrix, ["a", "b"], tmp_path / "out.png")
    picture = pixels(tmp_path / "out.png")
    height, width, _ = picture.shape
    dark_blue = (np.abs(picture - [8, 48, 107]).sum(axis=2) < 10) & (np.arange(width) < 0.8 * width)  # no colour bar
    rows, columns = np.nonzero(dark_blue)
    assert rows.mean() < 0.4 * height, "above"
    assert columns.mean() > 0.55 * width, "on the right"


def test_labels_of_detections_do_not_hide_each_other() -> None:
    found = [Detection([200, 200, 300, 300], "cell", i, 0.9 - 0.1 * i) for i in range(4)]
    drawn = np.asarray(draw_detections(Image.new("RGB", (500, 500)), found)).astype(int)
    areas = [int((drawn == ImageColor.getrgb(colour)).all(-1).sum()) for colour in COLOURS[:4]]
    assert min(areas) > 400, "of the boxes only the best is seen, and the labels of all"


def test_colours_of_classes_are_far_apart() -> None:
    colours = class_colours(20).astype(float)
    between = np.abs(colours[:, None] - colours).sum(-1) + 1e3 * np.eye(20)
    assert between.min() > 60
    assert (class_colours(20) == class_colours(150)[:20]).all(), "a class keeps its colour, however many there are"
