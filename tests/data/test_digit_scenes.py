"""Digit scenes: the same everywhere, what is drawn is what is said, held-out digits stay held out."""

import numpy as np
import pytest

from linvit.data.digit_scenes import DIGITS, SCENES, SEMANTIC_CLASSES, DigitScenes


def test_a_scene_is_the_same_at_every_visit_and_on_every_machine() -> None:
    scene = DigitScenes(train=True)[1]
    assert scene.labels.tolist() == [6, 8]
    assert scene.boxes.tolist() == [[68, 34, 87, 55], [12, 15, 29, 41]]
    again = DigitScenes(train=True)[1]
    assert np.array_equal(np.asarray(scene.image), np.asarray(again.image))
    assert not np.array_equal(np.asarray(scene.image), np.asarray(DigitScenes(train=True)[2].image))
    assert not np.array_equal(np.asarray(scene.image), np.asarray(DigitScenes(train=False)[1].image))


@pytest.mark.parametrize("size", [(96, 96), (45, 200)])
def test_boxes_and_masks_are_where_the_digits_are(size: tuple[int, int]) -> None:
    found = set()
    for scene in DigitScenes(train=False, size=size)[:40]:
        pixels = np.asarray(scene.image).max(axis=2)
        assert pixels.shape == size
        assert 1 <= len(scene.labels) == len(scene.boxes) == len(scene.masks) <= 4
        assert scene.masks.sum(axis=0).max() == 1
        for box, mask in zip(scene.boxes.astype(int), scene.masks, strict=True):
            left, top, right, bottom = box
            inside = mask[top:bottom, left:right]
            assert mask.sum() == inside.sum() > 0
            assert inside[0].any()
            assert inside[-1].any()
            assert inside[:, 0].any()
            assert inside[:, -1].any()
            assert pixels[mask].mean() > 2 * pixels[~scene.masks.any(axis=0)].mean()
        found |= set(scene.labels.tolist())
    assert found == set(range(10))


def test_semantic_mask_says_the_same_as_the_masks() -> None:
    for scene in DigitScenes(train=True)[:10]:
        semantic = scene.semantic()
        assert semantic.dtype == np.uint8
        for label, mask in zip(scene.labels, scene.masks, strict=True):
            assert (semantic[mask] == label + 1).all()
            assert SEMANTIC_CLASSES[label + 1] == DIGITS[label]
        assert (semantic[~scene.masks.any(axis=0)] == 0).all()


def test_it_is_a_sequence() -> None:
    scenes = DigitScenes(train=False)
    assert len(scenes) == SCENES[False]
    assert np.array_equal(scenes[-1].boxes, scenes[len(scenes) - 1].boxes)
    with pytest.raises(IndexError):
        scenes[len(scenes)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"size": (96, 44)}, r"size must be 45 pixels or more on both sides"), ({"most": 0}, "most must be 1 or more")],
)
def test_what_does_not_fit_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DigitScenes(train=True, **settings)
