"""linvit predict: files, folders and patterns in; a table, JSON or pictures out."""

import csv

import pytest
import torch
from PIL import Image

import linvit
from linvit.data.images import UnreadableImage
from linvit.inference.base import Predictor, Prepared
from linvit.inference.classification import ClassificationPredictor
from linvit.inference.stream import predict_all
from tests.conftest import CLASSES


def test_json_holds_the_probabilities_of_the_model(linvit_command, run_folder, photos):
    path = photos / "val" / "ant" / "1.png"
    (record,) = linvit_command("predict", run_folder, path, "--json").json
    assert record["image"] == str(path)
    assert sum(top["probability"] for top in record["top"]) == pytest.approx(1.0)
    (expected,) = ClassificationPredictor(linvit.load_model(run_folder)).predict([Image.open(path)])
    for top in record["top"]:
        assert top["probability"] == pytest.approx(expected.probabilities[top["index"]].item())
        assert top["class"] == CLASSES[top["index"]]
    probabilities = [top["probability"] for top in record["top"]]
    assert probabilities == sorted(probabilities, reverse=True)


def test_files_folders_and_patterns_together(linvit_command, run_folder, photos):
    said = linvit_command(
        "predict",
        run_folder,
        photos / "val" / "ant" / "0.png",
        photos / "val" / "bee",
        f"{photos}/val/cat/*.png",
        "--json",
    )
    assert [record["image"][-9:] for record in said.json] == [
        f"{name}/{i}.png"[-9:] for name, i in [("ant", 0), *((c, i) for c in ("bee", "cat") for i in range(3))]
    ]


def test_an_unreadable_image_is_passed_over_and_named(linvit_command, run_folder, photos):
    said = linvit_command("predict", run_folder, photos, "--json")
    assert said.code == 0
    assert len(said.json) == 9
    assert "passed over: " in said.err
    assert "broken.jpg" in said.err
    said = linvit_command("predict", run_folder, photos / "val" / "cat" / "broken.jpg")
    assert said.code == 2
    assert said.err.splitlines()[-1] == "linvit: error: none of the 1 images could be read"
    assert linvit_command("predict", run_folder, photos, "--strict").code == 2


def test_table_names_the_classes(linvit_command, run_folder, photos):
    said = linvit_command("predict", run_folder, photos / "val" / "ant" / "0.png", "--top", "2")
    header = said.out.splitlines()[1]
    assert "1." in header
    assert "2." in header
    assert "3." not in header
    assert any(name in said.out for name in CLASSES)


def test_pictures_one_by_one_and_together(linvit_command, run_folder, photos, tmp_path):
    said = linvit_command(
        "predict", run_folder, f"{photos}/val/*/0.png", "--save", tmp_path / "each", "--grid", tmp_path / "all.png"
    )
    assert said.code == 0
    each = sorted((tmp_path / "each").iterdir())
    assert [path.name for path in each] == ["0001_0.png", "0002_0.png", "0003_0.png"]  # same names do not collide
    for path in (*each, tmp_path / "all.png"):
        assert min(Image.open(path).size) > 300


def test_embedded_digits(linvit_command, run_folder):
    records = linvit_command("predict", run_folder, "mnist5k", "--json").json
    assert len(records) == 12
    assert {record["image"][-1] for record in records} == set("0123456789")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["{run}", "nothing*.png"], "nothing*.png"),
        (["{run}", "mnist5k", "--top", "0"], "--top: must be a whole number, 1 or more, not '0'"),
        (["{run}"], "required: IMAGE"),
        (["{run}", "mnist5k", "--no-such-flag"], "unrecognized arguments: --no-such-flag"),
        (["nosuch.pth", "mnist5k"], "no run folder or checkpoint file at nosuch.pth"),
    ],
)
def test_errors_are_one_line(linvit_command, run_folder, args, message):
    said = linvit_command("predict", *(arg.format(run=run_folder) for arg in args))
    assert said.code == 2
    assert message in said.err
    assert said.err.count("\n") == 1


def test_csv_holds_a_row_for_each_image_and_nothing_is_printed(linvit_command, run_folder, photos, tmp_path):
    said = linvit_command("predict", run_folder, photos, "--csv", tmp_path / "new" / "found.csv", "--top", "2")
    assert said.out == f"results in {tmp_path / 'new' / 'found.csv'}\n"
    with (tmp_path / "new" / "found.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    records = linvit_command("predict", run_folder, photos, "--json").json
    assert [row["image"] for row in rows] == [record["image"] for record in records]
    assert list(rows[0]) == ["image", "class_1", "probability_1", "class_2", "probability_2"]
    for row, record in zip(rows, records, strict=True):
        assert row["class_1"] == record["top"][0]["class"]
        assert float(row["probability_2"]) == pytest.approx(record["top"][1]["probability"], rel=1e-5)


class Sizes(Predictor):
    """Sees images in their own size, and says how many it saw together."""

    batch_size = 4

    def __init__(self) -> None:
        self.batches: list[int] = []

    def prepare(self, image):
        return Prepared(torch.zeros(3, image.height, image.width), (image.height, image.width))

    def predict_batch(self, images):
        assert len({each.key for each in images}) == 1
        self.batches.append(len(images))
        return [each.size for each in images]

    def examples(self): ...
    def load(self, *args, **kwargs): ...
    def _outputs(self, images, size): ...
    def _counts(self, loader): ...


@pytest.mark.parametrize("sizes", [[(5, 7)] * 10, [(5, 7), (9, 9)] * 9, [(i + 1, 3) for i in range(30)]])
def test_images_come_back_in_order_in_batches_of_one_size(sizes):
    predictor = Sizes()
    read = []

    def sources():
        for i, (height, width) in enumerate(sizes):
            read.append(i)
            yield str(i), Image.new("RGB", (width, height))

    given = 0
    for (name, _), found in predict_all(predictor, sources(), workers=3):
        assert (name, found) == (str(given), sizes[given])
        given += 1
        assert len(read) - given <= 5 * predictor.batch_size, "little is in memory at a time"
    assert given == len(sizes)
    assert max(predictor.batches) <= 4
    if len(set(sizes)) < 3:
        assert max(predictor.batches) == 4


def test_an_unreadable_image_is_told_or_raised(photos):
    paths = sorted((photos / "val" / "cat").iterdir())
    told = []
    found = list(predict_all(Sizes(), paths, passed_over=told.append))
    assert [source.name for source, prediction in found if prediction is None] == ["broken.jpg"]
    assert [error.path for error in told] == [str(photos / "val" / "cat" / "broken.jpg")]
    with pytest.raises(UnreadableImage):
        list(predict_all(Sizes(), paths))
