"""linvit eval: the figures are right, what was evaluated is said, and every error is one line."""

import pytest
import torch
from torch.nn.functional import cross_entropy

import linvit
from linvit.data import eval_dataset
from tests.conftest import CLASSES


def test_figures_equal_a_count_by_hand(linvit_command, run_folder, photos):
    said = linvit_command("eval", run_folder, photos, "--json", "--batch-size", "4", "--workers", "0")
    assert said.code == 0
    model = linvit.load_model(run_folder)
    transform = linvit.inference.classification.ClassificationPredictor(model).transform
    samples = [s for s in eval_dataset(str(photos), CLASSES, transform) if s["image"] is not None]
    with torch.no_grad():
        logits = model(torch.stack([s["image"] for s in samples]))
    targets = torch.tensor([s["target"] for s in samples])
    record = said.json
    assert record["images"] == 9
    assert record["top1"] == pytest.approx((logits.argmax(1) == targets).double().mean().item())
    assert record["top5"] == 1.0  # of three classes
    assert record["loss"] == pytest.approx(cross_entropy(logits, targets).item(), rel=1e-5)
    assert [path.rsplit("/", 1)[-1] for path in record["unreadable"]] == ["broken.jpg"]
    assert record["img_size"] == [32, 32]


def test_table_says_what_was_evaluated(linvit_command, run_folder, photos):
    said = linvit_command("eval", run_folder, photos / "val", "--img-size", "64", "--precision", "bfloat16")
    for part in (
        "9 images",
        "64x64 pixels, bilinear, crop 1.0",
        "bfloat16 on cpu",
        "top-1",
        "images/s",
        "1 unreadable",
    ):
        assert part in said.out, part


def test_a_subset_of_the_classes_is_enough_and_a_foreign_class_is_named(linvit_command, run_folder, photos, tmp_path):
    (tmp_path / "bee").symlink_to(photos / "val" / "bee")
    assert linvit_command("eval", run_folder, tmp_path, "--json").json["images"] == 3
    (tmp_path / "dragon").symlink_to(photos / "val" / "bee")
    said = linvit_command("eval", run_folder, tmp_path)
    assert said.code == 2
    assert "none of the 3 known classes: dragon" in said.err


def test_confusion_picture_shows_the_classes_that_occur(linvit_command, run_folder, photos, tmp_path):
    assert linvit_command("eval", run_folder, photos, "--confusion", tmp_path / "new" / "c.png", "--json").code == 0
    assert (tmp_path / "new" / "c.png").read_bytes().startswith(b"\x89PNG")


def test_batch_size_does_not_change_the_figures(linvit_command, run_folder, photos):
    one = linvit_command("eval", run_folder, photos, "--json", "--batch-size", "1").json
    all_at_once = linvit_command("eval", run_folder, photos, "--json", "--batch-size", "64").json
    assert one["loss"] == pytest.approx(all_at_once["loss"], rel=1e-5)
    assert one["top1"] == all_at_once["top1"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["{run}"], "the following arguments are required: DATA (see linvit eval --help)"),
        (["{run}", "{photos}", "--strict"], "broken.jpg"),
        (["{run}", "{photos}", "--device", "tpu9"], "device 'tpu9' is not here"),
        (["{run}", "{photos}", "--device", "cuda"], "device 'cuda' is not here"),
        (["{run}", "{photos}", "--precision", "int3"], "precision must be one of float32, bfloat16, float16"),
        (["{run}", "{photos}", "--img-size", "0"], "--img-size: must be a whole number, 1 or more, not '0'"),
        (["{run}", "{photos}", "--crop-pct", "2"], "--crop-pct: must be a number from 0 to 1, not '2'"),
        (["vit_tiny_patch16_224.pth", "{photos}"], "no run folder or checkpoint file at vit_tiny_patch16_224.pth"),
        (
            ["{run}", "{photos}", "--batch-size", "0"],
            "argument --batch-size: must be a whole number, 1 or more, not '0'",
        ),
        (["{run}", "{photos}/absent"], "absent does not exist"),
        (["{run}", "mnist5k"], "the model's are ant, bee, cat"),
        (["{run}", "{photos}", "--workers", "-1"], "argument --workers"),
        (["absent_model", "{photos}"], "unknown model 'absent_model'"),
        (["{photos}", "{photos}"], "is no run folder"),
    ],
)
def test_errors_are_one_line(linvit_command, run_folder, photos, args, message):
    if "cuda" in args and torch.cuda.is_available():
        args = [*args[:-1], "cuda:99"]
        message = "device 'cuda:99' is not here"
    said = linvit_command("eval", *(arg.format(run=run_folder, photos=photos) for arg in args))
    assert said.code == 2
    assert message in said.err
    assert said.err.startswith("linvit: error: ")
    assert said.err.count("\n") == 1
    assert said.out == ""
