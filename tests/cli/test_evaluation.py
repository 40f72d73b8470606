"""``linvit eval`` of classifiers beyond top-1: agreement with others, crops, corruption, calibration, comparison."""

import csv
import json
import os
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import RealLabelsImagenet
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder as TorchvisionFolder

import linvit
from linvit.data.corruptions import CORRUPTIONS, Corruption
from linvit.inference.classification import ClassificationPredictor
from tests.conftest import CLASSES
from tests.shards import pack, serve

IMAGENETTE = Path(os.environ.get("LINVIT_IMAGENETTE", "imagenette128")) / "val"
EACH = 6


@pytest.mark.skipif(not IMAGENETTE.is_dir(), reason="LINVIT_IMAGENETTE names no folder")
def test_top1_is_what_torchvision_measures_image_for_image(linvit_command: Any, tmp_path: Path) -> None:
    for folder in IMAGENETTE.iterdir():
        (tmp_path / "data" / folder.name).mkdir(parents=True)
        for path in sorted(folder.iterdir())[:EACH]:
            shutil.copy(path, tmp_path / "data" / folder.name)
    model: Any = linvit.load_model("package:efficientnet_lite0").eval()
    linvit.save_model(model, tmp_path / "model", classes=[], input_config=timm.data.resolve_model_data_config(model))

    steps = [
        transforms.Resize(146, transforms.InterpolationMode.BICUBIC),
        transforms.CenterCrop(128),
        transforms.ToTensor(),
        transforms.Normalize((127 / 255,) * 3, (128 / 255,) * 3),
    ]
    theirs = TorchvisionFolder(str(tmp_path / "data"), transforms.Compose(steps))
    wnids = timm.data.ImageNetInfo("imagenet-1k").label_names()
    columns = torch.tensor([wnids.index(name) for name in theirs.classes])
    images, targets = zip(*theirs, strict=True)
    with torch.no_grad():
        predicted = model(torch.stack(images)).argmax(1)
    hits = predicted == columns[torch.tensor(targets)]

    classes = tmp_path / "classes.csv"
    given = ("--img-size", "128", "--per-class", classes, "--workers", "0", "--json")
    said = linvit_command("eval", tmp_path / "model", tmp_path / "data", *given)
    assert said.json["images"] == len(hits) == 10 * EACH
    assert said.json["top1"] == pytest.approx(float(hits.float().mean()))
    assert said.json["top1"] > 0.3
    with classes.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [round(float(row["accuracy"]) * EACH) for row in rows] == hits.view(10, EACH).sum(1).tolist()


def saved_table(photos: Path, out: Path, names: list[str]) -> Path:
    """Save the held-out images as a Hugging Face data set of that split alone."""
    paths = sorted(path for path in photos.rglob("*.*") if path.is_file())
    columns = {"image": [str(path) for path in paths], "label": [CLASSES.index(path.parent.name) for path in paths]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    datasets.DatasetDict(test=datasets.Dataset.from_dict(columns, features=features)).save_to_disk(out)
    return out


def test_shards_and_tables_are_evaluated_as_the_same_images_in_folders(
    linvit_command: Any, run_folder: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "torch"))
    shards = pack(photos, tmp_path / "shards")
    numbered = pack(photos, tmp_path / "numbered", numbers=True)
    table = saved_table(photos, tmp_path / "table", CLASSES)

    def figures(data: Any, *more: str) -> Any:
        classes = tmp_path / "classes.csv"
        said = linvit_command("eval", run_folder, data, "--per-class", classes, "--json", *more)
        assert said.code == 0, said.err
        kept = ("images", "top1", "top5", "loss", "calibration_error")
        return [said.json[key] for key in kept], len(said.json["unreadable"]), classes.read_text()

    expected = figures(photos)
    assert expected[0][0] == 9
    assert expected[1] == 1
    with serve(numbered) as served:
        for data in (shards, f"{numbered}/val-{{0..1}}.tar", f"{served.address}/val-{{0..1}}.tar", table):
            assert figures(data) == expected, data
    assert figures(table, "--source", "huggingface") == expected
    (numbered / "classes.txt").unlink()
    assert figures(numbered) == expected, "numbers are places in the model's classes"

    others = saved_table(photos, tmp_path / "others", ["x", "y", "z"])
    assert figures(others) == expected, "as many classes under other names: by number"
    said = linvit_command("eval", run_folder, others)
    assert "call their 3 classes differently: taken by number" in said.err
    foreign = saved_table(photos, tmp_path / "foreign", ["ant", "bee", "dragon"])
    said = linvit_command("eval", run_folder, foreign)
    assert (said.code, "none of the 3 known classes: dragon" in said.err) == (2, True), said.err
    said = linvit_command("eval", run_folder, photos, "--source", "shards")
    assert (said.code, "has no val/*.tar or val*.tar" in said.err) == (2, True), said.err


def test_crops_are_averaged_as_probabilities(run_folder: Path) -> None:
    image = Image.fromarray(np.random.RandomState(0).randint(0, 256, (50, 70, 3)).astype(np.uint8))
    model: Any = linvit.load_model(run_folder)
    for crops, make in ((5, transforms.FiveCrop), (10, transforms.TenCrop)):
        classifier = ClassificationPredictor(model, "cpu", img_size=32, crop_pct=0.8, crops=crops)
        resize = transforms.Resize(40, transforms.InterpolationMode.BILINEAR)
        finish = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.25,) * 3)])
        views = torch.stack([finish(crop) for crop in make(32)(resize(image))])
        with torch.no_grad():
            expected = model(views).softmax(1).mean(0)
        torch.testing.assert_close(classifier.predict([image])[0].probabilities, expected)
    with pytest.raises(ValueError, match=r"5 crops need a crop_pct below 1: at 1\.0 they are all the same"):
        ClassificationPredictor(model, "cpu", crops=5)
    with pytest.raises(ValueError, match="crops must be 1, 5 or 10, not 3"):
        ClassificationPredictor(model, "cpu", crops=3)


def test_calibration_error_is_the_gap_between_confidence_and_accuracy() -> None:
    class Sure(torch.nn.Module):
        num_classes = 2
        pretrained_cfg = {"input_size": (3, 8, 8)}  # noqa: RUF012

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return torch.tensor([[0.0, 4.0]]).log_softmax(1).expand(len(image), 2)

    target = torch.tensor([1] * 6 + [0] * 4)
    batch = {"image": torch.zeros(10, 3, 8, 8), "target": target, "unreadable": []}
    result = ClassificationPredictor(Sure(), "cpu").evaluate(DataLoader([batch], batch_size=None))
    confidence = float(torch.tensor([0.0, 4.0]).softmax(0)[1])
    assert result.calibration_error == pytest.approx(confidence - 0.6, abs=1e-5)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruptions_of_an_image_are_always_the_same(name: str) -> None:
    random, pixels = np.random.RandomState(0), np.zeros((37, 1013, 3))
    for side in (3, 5, 9, 17, 33):  # detail of every size, as photographs have
        coarse = Image.fromarray(random.randint(0, 256, (side, side, 3)).astype(np.uint8))
        pixels += np.asarray(coarse.resize((1013, 37), Image.Resampling.BICUBIC)) / 5
    image = Image.fromarray(pixels.astype(np.uint8))
    clean = np.asarray(image, dtype=float)
    np.random.seed(5)
    following = np.random.RandomState(5).rand()
    found = []
    for severity in (1, 5):
        corrupted = Corruption(name, severity)(image)
        assert (corrupted.mode, corrupted.size) == ("RGB", image.size)
        assert np.array_equal(corrupted, Corruption(name, severity)(image.copy()))
        assert np.abs(np.asarray(corrupted, dtype=float) - clean).mean() > 1
        found.append(corrupted)
    assert not np.array_equal(*found)
    assert np.random.rand() == following  # others' random numbers are left alone


def test_images_too_small_to_be_corrupted_are_refused() -> None:
    with pytest.raises(ValueError, match=r"at least 32 pixels to be corrupted, got \(28, 40\)"):
        Corruption("snow", 1)(Image.new("RGB", (28, 40)))


def test_unknown_corruptions_are_named() -> None:
    with pytest.raises(ValueError, match=r"corruption must be one of gaussian_noise, .* not 'rain'"):
        Corruption("rain", 1)
    with pytest.raises(ValueError, match="severity must be from 1 to 5, not 6"):
        Corruption("pixelate", 6)


def test_models_are_compared_in_a_table_and_a_chart(
    linvit_command: Any, run_folder: Path, photos: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(run_folder, other)
    given = ("--against", other, "--corrupt", "contrast", "pixelate", "--workers", "0", "--device", "cpu")
    said = linvit_command("eval", run_folder, photos, *given, "--chart", tmp_path / "chart.png", "--json")
    assert said.code == 0, said.err
    first, second = said.json
    assert [first["model"], second["model"]] == [str(run_folder), str(other)]
    assert first["top1"] == second["top1"]
    assert {kind: len(found) for kind, found in first["corrupted_top1"].items()} == {"contrast": 5, "pixelate": 5}
    assert Image.open(tmp_path / "chart.png").size[0] > 300
    said = linvit_command("eval", run_folder, photos, *given)
    assert said.code == 0
    assert "top-1" in said.out
    for wrong, message in (
        (("--against", run_folder), "--against names a model twice"),
        (("--corrupt", "rain"), "corruption must be one of"),
        (("--real",), "--real is for the 50,000 validation images of ImageNet"),
    ):
        said = linvit_command("eval", run_folder, photos, *wrong, "--workers", "0")
        assert (said.code, message in said.err) == (2, True), said.err


def test_real_labels_count_any_of_an_images_labels_and_leave_out_images_without(
    linvit_command: Any, tmp_path: Path
) -> None:
    labels = RealLabelsImagenet([""] * 50_000).real_labels
    none = next(name for name, found in labels.items() if not found)
    several = next(name for name, found in labels.items() if len(found) > 1)
    model = timm.create_model("test_efficientnet").eval()
    model.classifier.bias.data[labels[several][1]] = 100  # the only class it ever names
    wnids = timm.data.ImageNetInfo("imagenet-1k").label_names()
    config = {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bilinear"}
    linvit.save_model(model, tmp_path / "model", classes=[], input_config=config | {"crop_pct": 1.0})
    for name in (none, several):
        (tmp_path / "val" / wnids[0]).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "val" / wnids[0] / name)
    said = linvit_command("eval", tmp_path / "model", tmp_path, "--real", "--workers", "0", "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out)["real_top1"] == 1
    assert said.json["top1"] == 0
