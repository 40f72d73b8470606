"""Segmentation data: image and mask change together, bad files are named, settings are checked."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from linvit.data import SegmentationData
from linvit.data.digit_scenes import SEMANTIC_CLASSES
from linvit.data.images import UnreadableImage
from linvit.data.masks import IGNORED

PLAIN: dict[str, Any] = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "workers": 0, "classes": 4, "photometric": 0.0}


def write(root: Path, name: str, mask: np.ndarray, part: str = "training") -> None:
    """Write a mask and an image whose red is 50 times the class."""
    for kind in ("images", "annotations"):
        (root / kind / part).mkdir(parents=True, exist_ok=True)
    pixels = np.stack([mask * 50, *[np.full_like(mask, 100)] * 2], axis=-1)
    Image.fromarray(pixels).save(root / "images" / part / f"{name}.png")
    Image.fromarray(mask).save(root / "annotations" / part / f"{name}.png")


def blocks(height: int, width: int) -> np.ndarray:
    """Make four rectangles, one for each class."""
    rows, columns = np.indices((height, width))
    return (2 * (rows >= height // 2) + (columns >= width // 3)).astype(np.uint8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for part in ("training", "validation"):
        write(tmp_path, "wide", blocks(40, 64), part)
        write(tmp_path, "tall", blocks(90, 30), part)
    return tmp_path


@pytest.mark.parametrize("settings", [{}, {"short_side": 100}, {"crop_size": (24, 120)}, {"max_share": 0.5}])
def test_image_and_mask_stay_together(root: Path, settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    data = SegmentationData(str(root), batch_size=1, **PLAIN | {"crop_size": 48, "hflip": 0.5} | settings)
    size = settings.get("crop_size", (48, 48))
    seen, padded, mirrored = set(), False, set()
    for _ in range(12):
        for index in range(2):
            sample = data.train_set[index]
            image, target = sample["image"], sample["target"]
            assert image is not None
            assert image.shape == (3, *size)
            assert (target.shape, target.dtype) == (size, torch.int64)
            inside = target != IGNORED
            assert (image[:, ~inside] == 0).all(), "padding is the mean colour"
            assert (image[1][inside] > 0.35).all(), "and nothing else"
            shown = (image[0] * 255 / 50).round()
            agree = (shown == target)[inside].float().mean()
            assert agree > 0.8, "edges are blurred in the image alone"
            seen.add(tuple(torch.bincount(target.flatten(), minlength=256).tolist()))
            padded |= bool((~inside).any())
            columns = inside.any(0).nonzero().flatten()
            mirrored.add(bool(target[:, columns[0]].float().mean() > target[:, columns[-1]].float().mean()))
    assert len(seen) > 12
    assert padded == ("short_side" not in settings), "images of 100 pixels and more, halved, fill 48"
    if "max_share" not in settings:
        assert mirrored == {True, False}


def test_windows_of_one_class_are_drawn_again(tmp_path: Path) -> None:
    mask = np.zeros((60, 60), dtype=np.uint8)
    mask[20:40, 20:40] = 3
    write(tmp_path, "a", mask)
    write(tmp_path, "a", mask, "validation")
    shares = {}
    for most in (0.75, 1.0):
        torch.manual_seed(0)
        data = SegmentationData(str(tmp_path), batch_size=1, **PLAIN, crop_size=16, scale=(1.0, 1.0), max_share=most)
        windows = [data.train_set[0]["target"] for _ in range(60)]
        shares[most] = sum(float(torch.bincount(window.flatten()).max()) / 256 > 0.75 for window in windows) / 60
    assert shares[0.75] < 0.2 < 0.5 < shares[1.0]


def test_evaluation_sees_whole_images_and_counts_the_pixels_of_the_mask(root: Path) -> None:
    data = SegmentationData(str(root), batch_size=1, short_side=60, **PLAIN)
    shapes = [(tuple(batch["image"].shape), tuple(batch["target"].shape)) for batch in data.val_dataloader()]
    assert shapes == [((1, 3, 180, 60), (1, 90, 30)), ((1, 3, 60, 96), (1, 40, 64))]
    assert (next(iter(data.val_dataloader()))["target"][0].numpy() == blocks(90, 30)).all()


def test_what_a_saved_model_must_know(root: Path) -> None:
    data = SegmentationData(str(root), **PLAIN, reduce_zero_label=True, short_side=512)
    assert data.input_config() == {
        "short_side": 512,
        "mean": [0.0] * 3,
        "std": [1.0] * 3,
        "values": [1, 2, 3, 4],
        "ignore": [0, 255],
    }


def test_unreadable_files_are_replaced_in_training_and_left_out_in_evaluation(root: Path) -> None:
    broken = root / "images" / "training" / "tall.png"
    broken.write_bytes(broken.read_bytes()[:60])
    empty = root / "annotations" / "validation" / "wide.png"
    empty.write_bytes(b"")
    data = SegmentationData(str(root), batch_size=1, crop_size=16, **PLAIN)
    sample = data.train_set[0]
    assert sample["image"] is not None
    assert sample["unreadable"] == [str(broken)]
    found = list(data.val_dataloader())
    assert [batch["image"] is None for batch in found] == [False, True]
    assert found[1]["unreadable"] == [str(empty)]
    strict = SegmentationData(str(root), batch_size=1, crop_size=16, strict=True, **PLAIN)
    with pytest.raises(UnreadableImage, match=r"cannot read image .*tall\.png"):
        strict.train_set[0]
    with pytest.raises(UnreadableImage, match=r"cannot read mask .*wide\.png: the file is empty"):
        strict.val_set[1]


def test_pixels_stay_as_stored_unless_the_mask_is_of_the_upright_image(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    mask = blocks(40, 64)
    for upright, stored in ((False, mask), (True, np.rot90(mask))):
        pixels = np.stack([stored * 50, *[np.full_like(stored, 100)] * 2], axis=-1)
        Image.fromarray(pixels).save(root / "images" / "validation" / "wide.png", exif=exif)
        sample = SegmentationData(str(root), batch_size=1, **PLAIN).val_set[1]
        assert sample["image"] is not None
        assert torch.equal((sample["image"][0] * 255 / 50).round(), torch.from_numpy(mask).float()), upright


def test_masks_that_do_not_fit_stop_at_once(root: Path) -> None:
    mask = root / "annotations" / "training" / "wide.png"
    data = SegmentationData(str(root), batch_size=1, crop_size=16, **PLAIN)
    Image.fromarray(np.full((40, 64), 9, dtype=np.uint8)).save(mask)
    with pytest.raises(ValueError, match=r"wide\.png has the values 9: classes are 0 to 3, ignored 255"):
        data.train_set[1]
    Image.fromarray(blocks(41, 64)).save(mask)
    with pytest.raises(ValueError, match=r"wide\.png has 64x41 pixels, its image .*wide\.png 64x40$"):
        data.train_set[1]


def test_without_a_root_there_are_digit_scenes() -> None:
    data = SegmentationData(batch_size=4, workers=0)
    assert data.classes == SEMANTIC_CLASSES
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (4, 3, 96, 96)
    assert batch["target"].shape == (4, 96, 96)
    sample = data.val_set[0]
    assert set(sample["target"].unique().tolist()) <= set(range(11))
    assert len(data.val_set) == 200


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, or null, not 0"),
        ({"batch_size": 3}, "batch_size must be at most 2, the number of training images, not 3"),
        ({"crop_size": (0, 5)}, r"crop_size must be at least 1, not \(0, 5\)"),
        ({"short_side": 0}, "short_side must be at least 1"),
        ({"scale": (2.0, 0.5)}, "scale must be two rising factors above 0"),
        ({"max_share": 2.0}, "max_share must be from 0 to 1"),
        ({"std": (0.0, 1.0, 1.0)}, "std must be three numbers above 0"),
        ({"classes": 300}, "classes must be from 2 to 255, not 300"),
    ],
)
def test_wrong_settings_are_named(root: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SegmentationData(str(root), **PLAIN | settings).setup("fit")
