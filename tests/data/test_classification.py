"""The data module: layout, settings, transforms for any image size, and the loaders it gives to Lightning."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from PIL import Image
from timm.data import auto_augment as timm_policies

from linvit.data.classification import ClassificationData, _posterize
from linvit.data.datasets import ImageFolder
from linvit.data.sources import eval_dataset
from tests.data.conftest import MakeFolder


@pytest.fixture
def photos(make_folder: MakeFolder) -> Path:
    make_folder("photos/train", {"ant": 4, "bee": 3, "cow": 3})
    return make_folder("photos/val", {"ant": 2, "cow": 3}).parent


def test_classes_are_known_at_once_from_folder_names(photos: Path) -> None:
    data = ClassificationData(str(photos))
    assert (data.classes, data.num_classes) == (["ant", "bee", "cow"], 3)
    digits = ClassificationData()
    assert (digits.classes, digits.num_classes) == (list("0123456789"), 10)


def test_validation_targets_use_the_training_classes(photos: Path) -> None:
    data = ClassificationData(str(photos), img_size=32, batch_size=2, workers=0)
    data.setup("fit")
    batches = list(data.val_dataloader())
    assert [batch["target"].tolist() for batch in batches] == [[0, 0], [2, 2], [2]]
    assert batches[0]["image"].shape == (2, 3, 32, 32)
    assert batches[0]["image"].dtype == torch.float32


def test_a_class_that_is_only_in_validation_is_an_error(photos: Path, make_folder: MakeFolder) -> None:
    make_folder("photos/val", {"yak": 1})
    with pytest.raises(ValueError, match=r"val has folders .* 3 known classes: yak$"):
        ClassificationData(str(photos), batch_size=2).setup("fit")


@pytest.mark.parametrize("name", ["validation", "test"])
def test_other_names_of_the_held_out_folder(photos: Path, name: str) -> None:
    (photos / "val").rename(photos / name)
    assert len(ClassificationData(str(photos)).val_set) == 5


@pytest.mark.parametrize(
    ("folders", "kind", "reason"),
    [
        (None, FileNotFoundError, "does not exist"),
        ([], ValueError, "has no class folders"),
        (["val/ant"], FileNotFoundError, "lacks train/CLASS/IMAGE; its folders: val"),
        (["train", "val"], ValueError, "train has no class folders"),
    ],
)
def test_layout_errors_come_with_the_classes(
    tmp_path: Path, folders: list[str] | None, kind: type[Exception], reason: str
) -> None:
    root = tmp_path / "data"
    for folder in folders or []:
        (root / folder).mkdir(parents=True)
    if folders is not None:
        root.mkdir(exist_ok=True)
    with pytest.raises(kind) as error:
        _ = ClassificationData(str(root)).num_classes
    assert reason in str(error.value)
    assert str(root) in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_training_loader_shuffles_full_batches(photos: Path) -> None:
    data = ClassificationData(str(photos), img_size=16, batch_size=4, workers=0)
    loader = data.train_dataloader()
    first = [batch["target"].tolist() for batch in loader]
    assert [len(targets) for targets in first] == [4, 4]
    assert [batch["target"].tolist() for batch in loader] == first
    loader.sampler.set_epoch(1)
    assert [batch["target"].tolist() for batch in loader] != first
    assert data.test_dataloader().dataset.dataset is data.val_set


def test_training_set_smaller_than_a_batch_is_an_error(photos: Path) -> None:
    assert len(ClassificationData(str(photos), batch_size=10, workers=0).train_dataloader()) == 1
    data = ClassificationData(str(photos), batch_size=11)
    with pytest.raises(ValueError, match="batch_size must be at most 10, the number of training images, not 11"):
        data.setup("fit")
    data.setup("validate")


def test_workers(photos: Path) -> None:
    automatic = ClassificationData(str(photos), batch_size=2)
    assert 1 <= automatic.workers <= (os.cpu_count() or 1)
    loader = ClassificationData(str(photos), img_size=16, batch_size=5, workers=2).train_dataloader()
    assert (loader.num_workers, loader.persistent_workers) == (2, True)
    for _ in range(2):
        assert [len(batch["target"]) for batch in loader] == [5, 5]
    assert not ClassificationData(str(photos), batch_size=2, workers=0).train_dataloader().persistent_workers


@pytest.mark.parametrize("strict", [False, True])
def test_strictness_reaches_both_sets(photos: Path, strict: bool) -> None:
    data = ClassificationData(str(photos), batch_size=2, strict=strict)
    for dataset, replaces in ((data.train_set, True), (data.val_set, False)):
        assert isinstance(dataset, ImageFolder)
        assert (dataset.strict, dataset.replace_unreadable) == (strict, replaces)


@pytest.mark.parametrize("size", [(1, 1), (28, 28), (37, 1013), (1013, 37), (1, 300), (300, 1), (2, 3)])
def test_images_of_any_size_pass_both_transforms(size: tuple[int, int]) -> None:
    data = ClassificationData(
        img_size=48, scale=(0.02, 1.0), ratio=(0.3, 3.3), hflip=0.5, auto_augment="rand-m9-mstd0.5-inc1", reprob=1.0
    )
    image = Image.new("RGB", size, (255, 0, 0))
    for transform in [data.train_transform] * 20 + [data.eval_transform]:
        out = transform(image)
        assert out.shape == (3, 48, 48)
        assert out.isfinite().all()


def test_random_crops_of_tiny_images_are_not_empty() -> None:
    data = ClassificationData(img_size=8, color_jitter=0, mean=(0, 0, 0), std=(1, 1, 1))
    for size in [(1, 1), (2, 2), (1, 40)]:
        crops = torch.stack([data.train_transform(Image.new("RGB", size, (255, 0, 0))) for _ in range(30)])
        assert crops[:, 0].min() == 1, "an empty crop would be black"


@pytest.mark.parametrize("policy", ["rand-m10-n20-inc1", "rand-m0-n20", "v0"])
def test_policies_may_keep_no_bits_of_a_colour(policy: str) -> None:
    untouched = dict(timm_policies.NAME_TO_OP)
    data = ClassificationData(img_size=16, auto_augment=policy)
    assert untouched == timm_policies.NAME_TO_OP
    for _ in range(40):
        assert data.train_transform(Image.new("RGB", (16, 16), (255, 0, 0))).isfinite().all()


def test_posterize_masks_low_bits() -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for bits in range(9):
        kept = np.asarray(_posterize(Image.fromarray(ramp), bits))
        assert np.array_equal(kept, ramp & (0xFF00 >> bits & 0xFF)), bits


def test_eval_transform_is_resize_crop_and_normalise() -> None:
    data = ClassificationData(
        img_size=32, crop_pct=0.5, interpolation="bilinear", mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 2.0)
    )
    # 64 rows of which the middle 32 are kept, in an image that needs no resizing.
    rows = np.repeat(np.arange(64, dtype=np.uint8)[:, None, None] * 4, 64, axis=1).repeat(3, axis=2)
    out = data.eval_transform(Image.fromarray(rows))
    wanted = torch.arange(16, 48, dtype=torch.float32) * 4 / 255
    torch.testing.assert_close(out[0, :, 7], (wanted - 0.5) / 0.5)
    torch.testing.assert_close(out[1, :, 7], (wanted - 0.25) / 0.25)
    torch.testing.assert_close(out[2, :, 7], wanted / 2)


@pytest.mark.parametrize(
    ("root", "hflip", "mirrored"), [(None, None, 0), (None, 1.0, 50), ("photos", None, 25), ("photos", 0.0, 0)]
)
def test_digits_are_not_mirrored_unless_asked(root: str | None, hflip: float | None, mirrored: int) -> None:
    torch.manual_seed(0)
    data = ClassificationData(root, img_size=16, hflip=hflip, scale=(1, 1), ratio=(1, 1), color_jitter=0)
    left_dark = Image.fromarray(np.repeat(np.arange(0, 240, 15, dtype=np.uint8)[None, :, None], 16, 0).repeat(3, 2))
    flips = sum(bool(out[0, 0, 0] > out[0, 0, -1]) for out in (data.train_transform(left_dark) for _ in range(50)))
    assert flips == mirrored if mirrored in (0, 50) else 10 < flips < 40


def test_augmentation_settings_change_training_only() -> None:
    plain: dict[str, Any] = {"img_size": 32, "scale": (1, 1), "ratio": (1, 1), "color_jitter": 0.0}
    image = Image.fromarray(np.random.RandomState(0).randint(0, 256, (32, 32, 3)).astype(np.uint8))
    still = ClassificationData(**plain)
    reference = still.train_transform(image)
    assert torch.equal(reference, still.train_transform(image))
    changes: list[dict[str, Any]] = [
        {"color_jitter": 0.4},
        {"auto_augment": "rand-m9-n20"},
        {"reprob": 1.0},
        {"scale": (0.1, 0.2)},
    ]
    for change in changes:
        data = ClassificationData(**(plain | change))
        assert not torch.equal(reference, data.train_transform(image)), change
        assert torch.equal(still.eval_transform(image), data.eval_transform(image)), change


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("img_size", 0),
        ("batch_size", 0),
        ("workers", -1),
        ("scale", (0.0, 1.0)),
        ("scale", (0.9, 0.5)),
        ("ratio", (2.0, 1.0)),
        ("hflip", 1.5),
        ("color_jitter", -0.1),
        ("reprob", 2.0),
        ("interpolation", "random"),
        ("crop_pct", 0.0),
        ("std", (0.2, 0.0, 0.2)),
        ("auto_augment", "nonsense"),
    ],
)
def test_a_wrong_setting_is_named_with_its_value(name: str, value: Any) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        ClassificationData(**{name: value})
    assert str(error.value).startswith(name)
    assert repr(value) in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_input_config_is_what_was_set() -> None:
    data = ClassificationData(
        img_size=64, interpolation="bilinear", crop_pct=0.9, mean=(0.5, 0.5, 0.5), std=(0.4, 0.4, 0.4)
    )
    assert data.input_config() == {
        "input_size": (3, 64, 64),
        "mean": (0.5, 0.5, 0.5),
        "std": (0.4, 0.4, 0.4),
        "interpolation": "bilinear",
        "crop_pct": 0.9,
    }


def test_every_setting_is_a_documented_flag() -> None:
    parser = ArgumentParser()
    parser.add_class_arguments(ClassificationData, "data")
    undocumented = [action.dest for action in parser._actions if "." in action.dest and not action.help]
    assert undocumented == []
    given = ["--data.img_size=64", "--data.scale=[0.5,1]", "--data.hflip=0.1", "--data.workers=0"]
    data = parser.instantiate(parser.parse_args(given)).data
    assert data.input_config()["input_size"] == (3, 64, 64)
    assert data.workers == 0


def test_mnist5k_trains_from_the_default() -> None:
    data = ClassificationData(img_size=32, workers=0)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (128, 3, 32, 32)
    assert set(batch["target"].tolist()) <= set(range(10))
    assert (len(data.train_dataloader()), len(data.val_dataloader())) == (31, 8)


def test_training_decodes_no_more_than_its_smallest_crop_shows(tmp_path: Path) -> None:
    for part in ("train", "val"):
        (tmp_path / part / "ant").mkdir(parents=True)
        Image.new("RGB", (1600, 1200)).save(tmp_path / part / "ant" / "photo.jpg")
    data = ClassificationData(str(tmp_path), img_size=64, batch_size=1, workers=0)
    width, height = data.train_set.load(0).size
    assert (width, height) == (400, 300)
    assert (0.08 * width * height * 3 / 4) ** 0.5 >= 64, "the shorter side of the smallest crop"
    assert data.val_set.load(0).size == (1600, 1200)


def test_what_no_class_is_is_passed_over_and_an_empty_class_warned_of(tmp_path: Path, make_folder: MakeFolder) -> None:
    root = make_folder("photos", {"ant": 4, "bee": 4, "__MACOSX": 1, "@eaDir": 1, ".cache": 1, "cat": 0, "notes": 0})
    (root / "notes" / "read.txt").touch()
    data = ClassificationData(str(root), img_size=16, workers=0)
    with pytest.warns(UserWarning, match="class folders hold no image and are passed over: cat, notes$"):
        assert data.classes == ["ant", "bee"]
    data.setup()
    assert {target for _, target in data.train_set.samples} == {0, 1}
    make_folder("parts/train", {"ant": 2, "bee": 2, "cat": 0})
    make_folder("parts/val", {"ant": 1, "cat": 1, "__MACOSX": 1})
    data = ClassificationData(str(tmp_path / "parts"), img_size=16, workers=0)
    with pytest.warns(UserWarning, match="class folders have held-out images and none to learn from: cat$"):
        assert data.classes == ["ant", "bee", "cat"]
    data.setup()
    assert [target for _, target in data.val_set.samples] == [0, 2]


@pytest.mark.parametrize("count", [2, 3, 5, 9, 15, 17, 23, 33, 129, 1029])
def test_no_batch_that_is_chosen_for_the_user_has_one_image(count: int) -> None:
    """What is left of an epoch is left out, so that no last batch is smaller than the others."""
    data = ClassificationData(img_size=16, workers=0)
    vars(data)["train_set"] = range(count)
    sizes = {len(batch) for batch in data.train_dataloader().sampler}
    assert sizes == {data.batch_size}
    assert 2 <= data.batch_size <= count
    assert data.batch_size == 2 or count // data.batch_size >= 8


def test_the_one_folder_of_an_archive_is_looked_into(tmp_path: Path, make_folder: MakeFolder) -> None:
    make_folder("archive/photos", {"ant": 3, "bee": 3})
    (tmp_path / "archive" / "__MACOSX").mkdir()
    assert ClassificationData(str(tmp_path / "archive"), workers=0).classes == ["ant", "bee"]
    assert eval_dataset(str(tmp_path / "archive")).classes == ["ant", "bee"]
    make_folder("parted/photos/train", {"ant": 3, "bee": 3})
    make_folder("parted/photos/val", {"ant": 1, "bee": 1})
    data = ClassificationData(str(tmp_path / "parted"), workers=0)
    assert (len(data.train_set), len(data.val_set)) == (6, 2)
    make_folder("one/ant", {"2025": 2, "2026": 2})
    Image.new("RGB", (8, 8)).save(tmp_path / "one" / "ant" / "x.png")
    assert ClassificationData(str(tmp_path / "one"), workers=0).classes == ["ant"], "a class in folders of its own"
