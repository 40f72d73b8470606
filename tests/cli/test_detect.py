"""``linvit train --task detect``, and ``eval`` and ``predict`` with what it leaves."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import linvit
from linvit.cli.main import main
from linvit.data.coco import decode_mask
from linvit.inference.coco import coco_metrics
from linvit.tasks import DetectionTask
from tests.cli.test_train import signal_once, train_in_two_processes
from tests.data.test_box_layouts import LAYOUTS
from tests.tasks.test_faults import killed_at

SIDE, TRAIN, VAL, BATCH = 64, 8, 3, 4


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dark images with a bright red or blue square, in COCO's layout."""
    root = tmp_path_factory.mktemp("cells")
    random = np.random.RandomState(0)
    (root / "annotations").mkdir()
    for split, count in (("train", TRAIN), ("val", VAL)):
        content: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
        content["categories"] = [{"id": 3, "name": "red"}, {"id": 6, "name": "blue"}]
        (root / split).mkdir()
        for i in range(count):
            left, top = random.randint(0, SIDE - 24, 2).tolist()
            pixels = random.randint(0, 40, (SIDE, SIDE, 3)).astype(np.uint8)
            pixels[top : top + 24, left : left + 24, 0 if i % 2 else 2] = 230
            Image.fromarray(pixels).save(root / split / f"{i}.png")
            content["images"].append({"id": i, "file_name": f"{i}.png", "width": SIDE, "height": SIDE})
            outline = [left, top, left + 24, top, left + 24, top + 24, left, top + 24]
            content["annotations"].append(
                {
                    "id": i + 1,
                    "image_id": i,
                    "category_id": 3 if i % 2 else 6,
                    "bbox": [left, top, 24, 24],
                    "area": 576,
                    "iscrowd": 0,
                    "segmentation": [outline],
                }
            )
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def arguments(cells: Path, out: Path, *more: str) -> list[str]:
    settings = {
        "task": "detect",
        "data.root": cells,
        "data.size": 64,
        "data.batch_size": BATCH,
        "data.workers": 0,
        "model.backbone": "test_efficientnet",
        "model.channels": 8,
        "model.anchor_size": 16,
        "model.lr": 0.003,
        "model.ema_decay": 0.5,
        "trainer.accelerator": "cpu",
        "trainer.max_epochs": 3,
    }
    return ["train", *(f"--{name}={value}" for name, value in settings.items()), f"--out={out}", *more]


def metrics(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [{key: row[key] for key in row if "per_second" not in key} for row in csv.DictReader(file)]


def whole_epoch(row: dict[str, str]) -> dict[str, str]:
    """Leave out the parts of the loss: after a stop within an epoch they are means over the rest of it."""
    return {name: value for name, value in row.items() if not name.startswith("train/loss_")}


@pytest.fixture(scope="module")
def run(cells: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert main(arguments(cells, out)) == 0
    return out


@pytest.fixture(scope="module")
def finder(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's model, made to answer whatever its scores are."""
    folder = tmp_path_factory.mktemp("finder")
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((run / name).read_bytes())
    described = json.loads((folder / "config.json").read_text())
    described["architecture"]["detector_args"] = {"score_thresh": 0.0, "detections_per_img": 5}
    (folder / "config.json").write_text(json.dumps(described))
    return folder


def test_run_folder_holds_all_there_is_to_know(run: Path) -> None:
    names = {path.name.split(".tfevents")[0] for path in run.iterdir()}
    texts = {"config.yaml", "config.json", "metrics.csv", "curves.png"}
    assert names == texts | {"last.ckpt", "previous.ckpt", "model.safetensors", "events.out"}
    settings = yaml.safe_load((run / "config.yaml").read_text())
    assert settings["task"] == "detect"
    described = json.loads((run / "config.json").read_text())
    assert described["label_names"] == ["red", "blue"]
    assert described["architecture"]["size"] == described["input"]["size"] == 64
    rows = metrics(run)
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    for name in ("train/loss", "train/loss_classification", "train/loss_bbox_regression", "lr", "val/ap", "val/ap50"):
        assert all(row[name] for row in rows), name


@pytest.mark.parametrize(("hook", "call", "updates"), [("on_train_epoch_end", 2, 4), ("training_step", 3, 3)])
def test_stopped_and_resumed_it_ends_as_if_it_had_not_stopped(
    cells: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hook: str, call: int, updates: int
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        signal_once(patch, DetectionTask, hook, call)
        assert main(arguments(cells, out)) == 130
    assert torch.load(out / "last.ckpt", weights_only=True)["global_step"] == updates
    assert main(["train", "--resume", str(out)]) == 0
    assert [whole_epoch(row) for row in metrics(out)] == [whole_epoch(row) for row in metrics(run)]
    assert (out / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()


def test_killed_within_an_epoch_and_resumed_it_repeats_the_undisturbed_run(
    cells: Path, run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    killed_at(4, arguments(cells, out, "--checkpoint.steps=1"), DetectionTask)
    assert torch.load(out / "last.ckpt", weights_only=True)["global_step"] == 3, "written within the epoch"
    assert main(["train", "--resume", str(out)]) == 0
    assert [whole_epoch(row) for row in metrics(out)] == [whole_epoch(row) for row in metrics(run)]
    assert (out / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()


def test_two_processes_train_as_one_and_count_every_held_out_image_once(
    cells: Path, linvit_command, tmp_path: Path
) -> None:
    """Three held-out images: the processes have one and two of them."""
    everything = "--model.detector_args={score_thresh: 0.0}"
    given = [everything, "--model.freeze_norm=true", "--model.ema_decay=0", "--trainer.max_epochs=8"]
    alone, together = tmp_path / "alone", tmp_path / "together"
    assert main(arguments(cells, alone, *given)) == 0
    train_in_two_processes(arguments(cells, together, *given, f"--data.batch_size={BATCH // 2}"))
    for ours, theirs in zip(metrics(together), metrics(alone), strict=True):
        for name in ("train/loss", "val/ap", "val/ap50"):
            assert float(ours[name]) == pytest.approx(float(theirs[name]), rel=1e-4), name
    kept = json.loads((together / "config.json").read_text())["metrics"]
    counted = linvit_command("eval", together, cells, "--json", "--workers", "0").json
    assert 0 < kept["ap"] < 1
    assert kept["ap"] == pytest.approx(counted["ap"], rel=1e-6)


def test_an_epoch_without_validation_tells_none(cells: Path, linvit_command, tmp_path: Path) -> None:
    more = ("--trainer.max_epochs=3", "--trainer.limit_train_batches=1", "--trainer.check_val_every_n_epoch=2")
    lines = linvit_command(*arguments(cells, tmp_path / "run", *more)).err.splitlines()
    assert [" AP " in line for line in lines if line.startswith("epoch ")] == [False, True, False]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("layout", ["Roboflow", "Label Studio", "YOLO, names as a map", "VOC"])
def test_a_folder_of_a_tool_trains_and_is_evaluated_without_a_flag(linvit_command, tmp_path: Path, layout: str) -> None:
    write, parts = LAYOUTS[layout]
    write(tmp_path / "data")
    more = ("--data.batch_size=1", "--trainer.max_epochs=1", "--trainer.limit_train_batches=1")
    said = linvit_command(*arguments(tmp_path / "data", tmp_path / "run", *more))
    assert said.code == 0, said.err
    record = linvit_command("eval", tmp_path / "run", tmp_path / "data", "--json", "--workers", "0").json
    assert record["split"] == ("val" if "val" in parts else "all")
    assert record["images"] == 2
    assert list(record["ap_by_class"]) == ["atom", "cell"]


def test_eval_counts_what_its_results_file_holds(finder: Path, cells: Path, linvit_command, tmp_path: Path) -> None:
    said = linvit_command(
        "eval", finder, cells, "--json", "--workers", "0", "--results", tmp_path / "new" / "results.json"
    )
    assert said.code == 0, said.err
    results = json.loads((tmp_path / "new" / "results.json").read_text())
    assert {each["category_id"] for each in results} <= {3, 6}
    assert len(results) == 5 * VAL
    truth = json.loads((cells / "annotations" / "instances_val.json").read_text())
    expected = coco_metrics(truth, results, range(VAL))
    record = said.json
    assert record["images"] == VAL
    assert record["ap50"] == pytest.approx(expected.overall["ap50"])
    assert record["ap_by_class"] == expected.by_class
    assert record["ap_large"] is None
    in_batches = linvit_command("eval", finder, cells, "--json", "--workers", "0", "--batch-size", "3").json
    assert in_batches["ap50"] == pytest.approx(record["ap50"], abs=1e-6)
    table = linvit_command("eval", finder, cells, "--split", "train", "--img-size", "96", "--workers", "0").out
    for part in ("train (8 images)", "shorter side 96 pixels, longer side 2000", "AP50", "AP of boxes", "red"):
        assert part in table, part


def test_predict_gives_boxes_in_json_tables_and_pictures(
    finder: Path, cells: Path, linvit_command, tmp_path: Path
) -> None:
    image = cells / "val" / "1.png"
    (record,) = linvit_command("predict", finder, image, "--json", "--min-score", "0").json
    assert (record["width"], record["height"]) == (SIDE, SIDE)
    model = linvit.load_model(finder)
    with torch.no_grad():
        (found,) = model([torch.from_numpy(np.array(Image.open(image))).permute(2, 0, 1)])
    assert [each["score"] for each in record["detections"]] == pytest.approx(found["scores"].tolist())
    for each, box, label in zip(record["detections"], found["boxes"].tolist(), found["labels"].tolist(), strict=True):
        left, top, wide, high = each["bbox"]
        assert [left, top, left + wide, top + high] == pytest.approx(box, abs=1e-3)
        assert each["class"] == ["red", "blue"][label]
    said = linvit_command("predict", finder, cells / "val", "--min-score", "0", "--save", tmp_path / "seen")
    assert said.code == 0, said.err
    assert "red" in said.out or "blue" in said.out
    pictures = sorted((tmp_path / "seen").iterdir())
    assert [path.name for path in pictures] == ["0001_0.png", "0002_1.png", "0003_2.png"]
    assert Image.open(pictures[0]).size == (512, 512)  # enlarged, so that its labels can be read
    files = ("--results", tmp_path / "found.json", "--csv", tmp_path / "found.csv")
    assert linvit_command("predict", finder, cells / "val", "--min-score", "0", *files).code == 0
    results = json.loads((tmp_path / "found.json").read_text())
    assert {each["image_id"] for each in results} == {1, 2, 3}
    first = [each for each in results if each["image_id"] == 2]
    assert [each["bbox"] for each in first] == [each["bbox"] for each in record["detections"]]
    assert {each["category_id"] for each in results} <= {1, 2}
    with (tmp_path / "found.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(results)
    assert float(rows[0]["left"]) == pytest.approx(results[0]["bbox"][0], abs=0.01)
    (nothing,) = linvit_command("predict", finder, image, "--json", "--min-score", "1").json
    assert nothing["detections"] == []
    assert len(linvit_command("predict", finder, "digit-scenes", "--json").json) == 12


def test_mask_rcnn_trains_and_gives_masks(cells: Path, linvit_command, tmp_path: Path) -> None:
    few = "{box_batch_size_per_image: 8, rpn_post_nms_top_n_train: 10, rpn_post_nms_top_n_test: 4, box_score_thresh: 0}"
    given = arguments(
        cells, tmp_path / "run", "--model.name=mask_rcnn", f"--model.detector_args={few}", "--trainer.max_epochs=1"
    )
    said = linvit_command(*given, "--json", "--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1")
    assert said.code == 0, said.err
    assert {"ap", "mask_ap", "mask_ap50"} <= said.json.keys()
    table = linvit_command("eval", tmp_path / "run", cells, "--workers", "0").out
    assert "AP of boxes" in table
    assert "AP of masks" in table
    record = linvit_command("predict", tmp_path / "run", cells / "val" / "0.png", "--json", "--min-score", "0").json[0]
    assert decode_mask(record["detections"][0]["segmentation"], SIDE, SIDE).shape == (SIDE, SIDE)
    assert linvit_command(
        "predict", tmp_path / "run", cells / "val" / "0.png", "--min-score", "0", "--save", tmp_path
    ).out.endswith(f"pictures in {tmp_path}\n")


def test_unreadable_images_are_named_and_strict_stops(
    cells: Path, finder: Path, linvit_command, tmp_path: Path
) -> None:
    root = tmp_path / "cells"
    for path in cells.rglob("*.*"):
        copy = root / path.relative_to(cells)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    gone = root / "val" / "0.png"
    gone.unlink()
    short = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=1"]
    said = linvit_command(*arguments(root, tmp_path / "run", *short), "--json")
    assert "AP" in said.err
    assert said.json["unreadable"] == [str(gone)]
    assert f"warning: 1 image file could not be read: {gone}" in said.err
    assert linvit_command("eval", finder, root, "--json", "--workers", "0").json["unreadable"] == [str(gone)]
    said = linvit_command(*arguments(root, tmp_path / "strict", *short), "--strict")
    assert said.code == 2
    assert said.err.splitlines()[-1] == f"linvit: error: cannot read image {gone}: No such file or directory"
    said = linvit_command("eval", finder, root, "--strict", "--workers", "0")
    assert said.err == f"linvit: error: cannot read image {gone}: No such file or directory\n"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["eval", "{run}", "{cells}", "--split", "test"], "has no part 'test', read as COCO's; its parts: train, val"),
        (["eval", "{run}", "{cells}/gone"], "gone does not exist"),
        (["eval", "{run}", "digit-scenes"], "digit-scenes has the classes 0, 1"),
        (["eval", "{run}", "{cells}", "--confusion", "c.png"], "--confusion is for classification, and"),
        (["eval", "{run}", "{cells}", "--precision", "int3"], "precision must be one of"),
        (["eval", "{run}", "{cells}", "--img-size", "0"], "--img-size: must be a whole number, 1 or more, not '0'"),
        (["predict", "{run}", "{cells}", "--top", "3"], "--top is for classification, and"),
        (["predict", "{run}", "{cells}", "--min-score", "7"], "--min-score: must be a number from 0 to 1, not '7'"),
        (["bench", "{run}"], "is a model to detect: time its backbone, by name"),
    ],
)
def test_errors_are_one_line(linvit_command, run: Path, cells: Path, args: list[str], message: str) -> None:
    said = linvit_command(*(arg.format(run=run, cells=cells) for arg in args))
    assert said.code == 2
    assert message in said.err
    assert said.err.startswith("linvit: error: ")
    assert said.err.count("\n") == 1
    assert said.out == ""


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--model.name=yolo"], "--model.name: Expected one of ["),
        (["--model.backbone=care_s9"], "unknown backbone 'care_s9'; did you mean care_s"),
        (["--model.size=32"], 'Linked "model.size" must be given via "data.size"'),
        (["--data.root=gone"], "data folder gone does not exist"),
        (["--model.pretrained=gone.pth"], "pretrained: no weights at 'gone.pth'"),
    ],
)
def test_what_is_wrong_with_a_training_is_said_in_one_line(
    linvit_command, cells: Path, tmp_path: Path, given: list[str], message: str
) -> None:
    said = linvit_command(*arguments(cells, tmp_path / "run"), *given)
    assert said.code == 2
    assert said.err.startswith(f"linvit: error: {message}"), said.err
    assert said.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_help_is_that_of_the_task(linvit_command) -> None:
    out = linvit_command("train", "--task", "detect", "--help").out
    for flag in ("--model.backbone", "--model.anchor_size", "--data.train_sizes", "--data.keep_empty"):
        assert flag in out
    for command, flags in (("eval", ("--split", "--confusion")), ("predict", ("--min-score", "--top"))):
        out = linvit_command(command, "--help").out
        assert all(flag in out for flag in flags)
        assert "classification:" in out
        assert "detection:" in out


def test_results_take_the_ids_of_an_annotation_file(linvit_command, finder: Path, cells: Path, tmp_path: Path) -> None:
    file = cells / "annotations" / "instances_val.json"
    content = json.loads(file.read_text())
    for image in content["images"]:
        image |= {"id": image["id"] + 70, "file_name": f"C:\\photos\\{image['file_name']}"}
    del content["annotations"]
    (tmp_path / "ids.json").write_text(json.dumps(content))
    command = ["predict", finder, cells / "val", "--min-score", "0", "--results", tmp_path / "found.json"]
    assert linvit_command(*command, "--ids", tmp_path / "ids.json").code == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert {(each["image_id"], Path(each["file_name"]).name) for each in found} == {
        (70 + i, f"{i}.png") for i in range(3)
    }
    assert {(each["category_id"], each["class"]) for each in found} <= {(3, "red"), (6, "blue")}

    assert linvit_command("eval", finder, cells, "--results", tmp_path / "same.json").code == 0
    assert linvit_command(*command, "--ids", file).code == 0
    same, found = (json.loads((tmp_path / name).read_text()) for name in ("same.json", "found.json"))
    key = lambda each: (each["image_id"], -each["score"], each["bbox"])  # noqa: E731
    for one, other in zip(sorted(same, key=key), sorted(found, key=key), strict=True):
        assert other["bbox"] == pytest.approx(one["bbox"])
        assert other["score"] == pytest.approx(one["score"])
        assert (other["image_id"], other["category_id"]) == (one["image_id"], one["category_id"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content["images"].pop(), "2.png is not among the 2 images of "),
        (
            lambda content: content["images"].append({"id": 9, "file_name": "b/2.png"}),
            "2.png could be several of the 4",
        ),
        (lambda content: content["categories"].clear(), "has 3 images and 0 categories"),
        (
            lambda content: content.update(categories=[{"id": 1, "name": "x"}]),
            "has the categories x, which are none of",
        ),
        (lambda content: content["images"][0].pop("file_name"), "record 0 of images has no proper 'file_name'"),
    ],
)
def test_ids_that_do_not_fit_are_said_before_anything_is_predicted(
    linvit_command, finder: Path, cells: Path, tmp_path: Path, change, message: str
) -> None:
    content = json.loads((cells / "annotations" / "instances_val.json").read_text())
    change(content)
    (tmp_path / "ids.json").write_text(json.dumps(content))
    args = ("--results", tmp_path / "found.json", "--ids", tmp_path / "ids.json")
    said = linvit_command("predict", finder, cells / "val", *args)
    assert said.code == 2
    assert message in said.err
    assert said.err.count("\n") == 1
    assert not (tmp_path / "found.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("call", [3, 6, 9])
def test_the_recipe_killed_anywhere_repeats_the_undisturbed_run_bit_by_bit(tmp_path: Path, call: int) -> None:
    """CARE below RetinaNet on the embedded scenes, augmented by two processes: weights, optimizer, average, metrics."""

    def given(name: str) -> list[str]:
        limits = [f"--trainer.limit_{part}_batches=4" for part in ("train", "val")]
        more = ["--trainer.max_epochs=3", "--trainer.accelerator=cpu", "--data.workers=2", "--checkpoint.steps=2"]
        return ["train", "--config=small/detect_digits", *limits, *more, f"--out={tmp_path / name}"]

    assert main(given("whole")) == 0
    killed_at(call, given("run"), DetectionTask)
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert (run / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    mine, theirs = (torch.load(folder / "last.ckpt", weights_only=True) for folder in (run, whole))
    for name in ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers"):
        torch.testing.assert_close(mine.get(name), theirs.get(name), rtol=0, atol=0, msg=name)
    assert [whole_epoch(row) for row in metrics(run)] == [whole_epoch(row) for row in metrics(whole)]


@pytest.mark.slow
def test_digit_scenes_are_learned_in_three_minutes(linvit_command, tmp_path: Path) -> None:
    """On one core, from nothing: see the recipe."""
    recipe = "small/detect_digits"
    said = linvit_command("train", "--config", recipe, "--out", tmp_path / "run", "--json")
    assert said.code == 0, said.err
    assert said.json["ap50"] >= 0.4  # 0.473 was measured
