"""Segmentation from the command line: training, resuming, evaluation, predictions, and bad input in one line."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import linvit
from linvit.cli.main import main
from linvit.data.masks import load_mask
from linvit.inference.segmentation import SegmentationPredictor
from linvit.tasks import SegmentationTask
from linvit.tasks.callbacks import EpochLines
from tests.cli.test_train import checkpoint, signal_once, train_in_two_processes
from tests.conftest import Said
from tests.data.test_mask_layouts import LAYOUTS, write_colored
from tests.tasks.test_faults import killed_at

Command = Callable[..., Said]
CLASSES = ["ground", "tree", "sky"]
SIZES = [(40, 56), (64, 33), (48, 48), (30, 70)]
UPDATES = 4


def scene(height: int, width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Paint three areas whose colour tells the class, and a void corner; masks say 1, 2, 3 and 9."""
    random = np.random.default_rng(seed)
    rows, columns = np.indices((height, width))
    mask = np.where(rows < height * random.uniform(0.3, 0.6), 3, 1)
    middle = random.uniform(0.2, 0.8, 2) * (height, width)
    mask[(rows - middle[0]) ** 2 + (columns - middle[1]) ** 2 < 150] = 2
    colors = np.array([[90, 60, 20], [20, 120, 40], [120, 160, 240]])
    image = colors[mask - 1] + random.integers(-15, 15, (height, width, 3))
    mask[:4, :4] = 9
    return image.clip(0, 255).astype(np.uint8), mask.astype(np.uint8)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of scenes of many sizes."""
    root = tmp_path_factory.mktemp("scenes")
    for part, count in (("train", 8), ("val", 5), ("test", 2)):
        for kind in ("images", "masks"):
            (root / part / kind).mkdir(parents=True)
        for number in range(count):
            image, mask = scene(*SIZES[number % 4], seed=len(part) + number)
            Image.fromarray(image).save(root / part / "images" / f"{number}.png")
            Image.fromarray(mask).save(root / part / "masks" / f"{number}.png")
    (root / "classes.txt").write_text("\n".join(CLASSES))
    return root


def arguments(root: Path, out: Path, epochs: int, *more: str) -> list[str]:
    settings = {
        "task": "segment",
        "data.root": root,
        "data.values": "[1, 2, 3]",
        "data.ignore": "[9]",
        "data.crop_size": 48,
        "data.batch_size": 2,
        "data.workers": 0,
        "data.photometric": 0,
        "model.backbone_args": "{depths: [1, 1, 1, 1], dims: [4, 4, 16, 32], layer_scale_init_value: 0.5}",
        "model.decoder_args": "{pyramid_channels: 16, segmentation_channels: 32, dropout: 0.0}",
        "model.lr": 0.02,
        "trainer.accelerator": "cpu",
        "trainer.max_epochs": epochs,
        "out": out,
    }
    return ["train", *(f"--{name}={value}" for name, value in settings.items()), *more]


def metrics(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [{key: row[key] for key in row if "per_second" not in key} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of five epochs."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert main(arguments(root, out, 5)) == 0
    return out


def test_training_learns_and_keeps_the_best(run: Path) -> None:
    rows = metrics(run)
    described = json.loads((run / "config.json").read_text())
    best = max(float(row["val/miou"]) for row in rows)
    assert best > 0.8, [row["val/miou"] for row in rows]
    assert described["metrics"]["miou"] == pytest.approx(best, rel=1e-4)
    assert described["label_names"] == CLASSES
    assert described["task"] == "segment"
    assert (run / "curves.png").stat().st_size > 10_000


def test_resumed_after_ctrl_c_it_ends_as_if_it_had_not_stopped(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "run"
    more = ("--model.ema_decay=0.8", "--model.schedule=poly")
    assert main(arguments(root, whole, 2, *more)) == 0
    with monkeypatch.context() as patch:
        signal_once(patch, EpochLines, "on_train_epoch_end", 1)
        assert main(arguments(root, out, 2, *more)) == 130
    assert checkpoint(out)["global_step"] == UPDATES
    assert main(["train", "--resume", str(out)]) == 0
    assert metrics(out) == metrics(whole)
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_killed_within_an_epoch_and_resumed_it_repeats_the_undisturbed_run(
    root: Path, run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    killed_at(UPDATES + 3, arguments(root, out, 5, "--checkpoint.steps=1"), SegmentationTask)
    assert checkpoint(out)["global_step"] == UPDATES + 2, "written within the epoch"
    assert main(["train", "--resume", str(out)]) == 0
    assert metrics(out) == metrics(run)
    assert (out / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()


def test_two_processes_train_as_one_and_count_every_held_out_image_once(
    linvit_command: Command, root: Path, tmp_path: Path
) -> None:
    """Five held-out images: the processes have two and three of them."""
    alone, together = tmp_path / "alone", tmp_path / "together"
    every_pixel_counts = ["--data.classes=4", "--data.values=[1, 2, 3, 9]", "--data.ignore=[]", "--data.scale=[1, 2]"]
    no_statistics = ["--model.backbone=test_vit", "--model.backbone_args={dynamic_img_size: true}"]
    given = [*every_pixel_counts, *no_statistics, "--data.crop_size=24"]
    assert main(arguments(root, alone, 2, *given)) == 0
    train_in_two_processes(arguments(root, together, 2, *given, "--data.batch_size=1"))
    for ours, theirs in zip(metrics(together), metrics(alone), strict=True):
        for name in ("train/loss", "val/loss", "val/miou", "val/aacc"):
            assert float(ours[name]) == pytest.approx(float(theirs[name]), rel=1e-4), name
    kept = json.loads((together / "config.json").read_text())["metrics"]
    counted = linvit_command("eval", together, root, "--json", "--workers", "0").json
    for name in ("miou", "macc", "aacc"):
        assert kept[name] == pytest.approx(counted[name], rel=1e-6), name


def test_recipes_that_count_updates_validate_after_the_last(root: Path, tmp_path: Path) -> None:
    by_updates = ["--trainer.max_steps=6", "--trainer.val_check_interval=3", "--trainer.check_val_every_n_epoch=null"]
    assert main(arguments(root, tmp_path / "run", -1, *by_updates, "--model.schedule=poly", "--model.min_lr=0")) == 0
    assert [row["step"] for row in metrics(tmp_path / "run") if row["val/miou"]] == ["2", "5"]
    assert checkpoint(tmp_path / "run")["global_step"] == 6
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_eval_equals_a_count_by_hand_in_each_part(linvit_command: Command, run: Path, root: Path) -> None:
    predictor = SegmentationPredictor(linvit.load_model(run))
    for split in ("val", "test"):
        record = linvit_command("eval", run, root, "--split", split, "--workers", "0", "--json").json
        right, pixels, hits, either = 0, 0, np.zeros(3), np.zeros(3)
        for path in sorted((root / split / "images").iterdir()):
            found = predictor.predict([Image.open(path)])[0].mask + 1
            true = load_mask(root / split / "masks" / path.name)
            counts = true != 9
            right += int((found == true)[counts].sum())
            pixels += int(counts.sum())
            for index in (1, 2, 3):
                hits[index - 1] += ((found == index) & (true == index))[counts].sum()
                either[index - 1] += ((found == index) | (true == index))[counts].sum()
        assert record["aacc"] == pytest.approx(right / pixels)
        assert record["miou"] == pytest.approx((hits / either).mean())
        assert [row["iou"] for row in record["classes"]] == pytest.approx(list(hits / either))
        assert [row["class"] for row in record["classes"]] == CLASSES
        assert record["split"] == split
    said = linvit_command("eval", run, root, "--window", "32", "--workers", "0")
    for part in ("ground", "IoU", "mIoU", "windows of 32x32 pixels every 22", "val (5 images)", "images/s"):
        assert part in said.out, part


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("layout", ["coloured", "Cityscapes", "VOC", "COCO", "one folder"])
def test_a_folder_of_a_tool_trains_and_is_evaluated_without_a_flag(
    linvit_command: Command, tmp_path: Path, layout: str
) -> None:
    make, parts = LAYOUTS.get(layout, (write_colored, {"train", "val"}))
    make(tmp_path / "data")
    if layout == "coloured":
        (tmp_path / "data" / "label_colors.txt").write_text("128 64 128 road\n64 0 128 car\n0 0 0 Void\n")
    flags = arguments(tmp_path / "data", tmp_path / "run", 1, "--trainer.limit_train_batches=1", "--data.crop_size=32")
    said = linvit_command(*(flag for flag in flags if not flag.startswith(("--data.values", "--data.ignore"))))
    assert said.code == 0, said.err
    record = linvit_command("eval", tmp_path / "run", tmp_path / "data", "--json", "--workers", "0").json
    assert record["split"] == ("val" if "val" in parts else "all")
    assert record["images"] == 3
    if layout == "coloured":
        assert [row["class"] for row in record["classes"]] == ["road", "car"]
        assert all(row["pixels"] for row in record["classes"])


def test_validation_of_training_and_eval_agree(linvit_command: Command, run: Path, root: Path) -> None:
    record = linvit_command("eval", run, root, "--workers", "0", "--json").json
    assert record["miou"] == pytest.approx(json.loads((run / "config.json").read_text())["metrics"]["miou"], rel=1e-6)


def test_predict_writes_masks_that_can_be_read_back_and_pictures(
    linvit_command: Command, run: Path, root: Path, tmp_path: Path
) -> None:
    images = root / "test" / "images"
    said = linvit_command(
        "predict", run, images, "--masks", tmp_path / "masks", "--save", tmp_path / "pictures", "--json"
    )
    assert [Path(record["mask"]).name for record in said.json] == ["0001_0.png", "0002_1.png"]
    predictor = SegmentationPredictor(linvit.load_model(run))
    for record in said.json:
        found = load_mask(record["mask"])
        image = Image.open(record["image"])
        assert found.shape == (image.height, image.width)
        assert (found == predictor.predict([image])[0].mask + 1).all(), "mask values, not class numbers"
        shares = {row["class"]: row["share"] for row in record["classes"]}
        assert shares == pytest.approx(
            {name: (found == i).mean() for i, name in enumerate(CLASSES, 1) if (found == i).any()}
        )
        assert Image.open(record["mask"]).mode == "P"
        assert min(Image.open(record["picture"]).size) > 200
    table = linvit_command("predict", run, images).out
    assert "33x64" in table
    assert "sky" in table


def test_predict_takes_the_embedded_scenes_and_any_size(linvit_command: Command, run: Path, tmp_path: Path) -> None:
    assert len(linvit_command("predict", run, "digit-scenes", "--json").json) == 12
    for size in ((1, 1), (37, 1013)):
        Image.new("RGB", size).save(tmp_path / "odd.png")
        (record,) = linvit_command("predict", run, tmp_path / "odd.png", "--window", "64", "--json").json
        assert (record["width"], record["height"]) == size


def spoil(root: Path, copy: Path, what: str) -> None:
    shutil.copytree(root, copy)
    mask = copy / "train" / "masks" / "3.png"
    if what == "size":
        Image.new("L", (5, 5), 1).save(mask)
    elif what == "value":
        Image.new("L", (70, 30), 77).save(mask)
    elif what == "colour":
        Image.new("RGB", (70, 30), (9, 1, 1)).save(mask)
    elif what == "missing":
        mask.unlink()
    elif what == "empty":
        for path in (copy / "train" / "images").iterdir():
            path.unlink()
    elif what == "classes":
        (copy / "classes.txt").unlink()
    elif what == "strict":
        mask.write_bytes(b"no mask")


@pytest.mark.parametrize(
    ("what", "message", "more"),
    [
        ("size", "train/masks/3.png has 5x5 pixels, its image", []),
        ("value", "train/masks/3.png has the values 77: classes are 1 to 3, ignored 9", ["--data.workers=1"]),
        ("colour", "train/masks/3.png is a colour picture", []),
        ("missing", "train/images/3.png", []),
        ("empty", "train/images holds no image", []),
        ("classes", "has no classes.txt", []),
        ("strict", "cannot read mask", ["--strict", "--data.workers=1"]),
        ("", "upernet's batch norm needs more than one", ["--model.name=upernet", "--model.decoder_args={}"]),
        ("", "unknown backbone 'care_s9'", ["--model.backbone=care_s9"]),
        ("", "--model.name: Expected one of ['fpn', 'upernet']", ["--model.name=unet"]),
    ],
)
def test_bad_input_is_one_line(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str, message: str, more: list[str]
) -> None:
    spoil(root, tmp_path / "data", what)
    batch = ["--data.batch_size=1"] if "upernet" in message else []
    assert main(arguments(tmp_path / "data", tmp_path / "run", 1, *more, *batch)) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert line.startswith("linvit: error: ")
    assert message in line


def test_unreadable_files_are_counted(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil(root, tmp_path / "data", "strict")
    assert main([*arguments(tmp_path / "data", tmp_path / "run", 1), "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["unreadable"] == [str(tmp_path / "data" / "train" / "masks" / "3.png")]
    assert "1 image file could not be read" in said.err


def test_other_data_or_options_than_the_models_are_refused(linvit_command: Command, run: Path, root: Path) -> None:
    for args, message in [
        (["eval", run, "digit-scenes"], "digit-scenes has the classes background"),
        (["eval", run, root / "absent"], "absent does not exist"),
        (
            ["eval", run, root / "val", "--split", "test"],
            "has no part 'test', read as folders of",
        ),
        (["eval", run, root, "--stride", "5"], "stride must be left out without a window"),
        (["eval", run, root, "--crop-pct", "0.5"], "--crop-pct is for classification"),
    ]:
        said = linvit_command(*args)
        assert said.code == 2
        assert message in said.err
        assert said.err.count("\n") == 1
    assert linvit_command("eval", run, root / "val", "--workers", "0", "--json").json["split"] == "all"
