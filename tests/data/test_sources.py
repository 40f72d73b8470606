"""Folders, tar shards and Hugging Face data sets give the same samples; folders are split and looked over."""

import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from linvit.data import ClassificationData, remote
from linvit.data.images import UnreadableImage
from linvit.data.shards import Shards, find_shards
from tests.shards import pack, serve

CLASSES = ["ant", "bee", "cow"]


def noise(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.RandomState(seed).randint(0, 256, (20, 24, 3)).astype(np.uint8)).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """``train`` and ``val`` of three classes."""
    for part, count in (("train", 6), ("val", 3)):
        for level, name in enumerate(CLASSES):
            for number in range(count):
                noise(tmp_path / "photos" / part / name / f"{number}.png", 100 * level + 10 * number + len(part))
    return tmp_path / "photos"


def unsplit(photos: Path) -> Path:
    """Move the class folders to the top."""
    for name in CLASSES:
        shutil.move(photos / "train" / name, photos / name)
    shutil.rmtree(photos / "train")
    shutil.rmtree(photos / "val")
    return photos


def module(root: Path | str, **settings: Any) -> ClassificationData:
    return ClassificationData(str(root), img_size=16, **({"batch_size": 4, "workers": 0} | settings))


def same(ours: ClassificationData, theirs: ClassificationData) -> None:
    """Compare classes and every batch of two data modules, augmentation and order included."""
    assert ours.classes == theirs.classes
    for name in ("train_dataloader", "val_dataloader"):
        batches = list(getattr(ours, name)()), list(getattr(theirs, name)())
        assert len(batches[0]) == len(batches[1]) > 0
        for mine, yours in zip(*batches, strict=True):
            assert mine["target"].tolist() == yours["target"].tolist()
            assert mine["image"].equal(yours["image"])


@pytest.mark.parametrize("numbers", [False, True])
def test_shards_hold_what_folders_hold(photos: Path, tmp_path: Path, numbers: bool) -> None:
    same(module(pack(photos, tmp_path / "shards", numbers)), module(photos))


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache, and no waiting for servers."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "torch"))
    monkeypatch.setattr(remote, "WAITS", (0.0,) * len(remote.WAITS))


def over_http(address: str, **settings: Any) -> ClassificationData:
    """Open both parts by patterns; the query stands for a key that an object store wants."""
    return module(f"{address}/train-{{0..1}}.tar?key=1", val_root=f"{address}/val-{{0,1}}.tar?key=1", **settings)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("numbers", "workers"), [(False, 2), (True, 0)])
def test_shards_behind_http_hold_what_folders_hold(photos: Path, tmp_path: Path, numbers: bool, workers: int) -> None:
    (photos / "train" / "ant" / "0.png").write_bytes(b"broken")
    (photos / "val" / "ant" / "0.png").write_bytes(b"")
    with serve(pack(photos, tmp_path / "shards", numbers)) as served:
        first = over_http(served.address, workers=workers)
        same(first, module(photos))
        unreadable = [path for batch in first.val_dataloader() for path in batch["unreadable"]]
        assert unreadable == [f"{served.address}/val-0.tar/00000"], "counted, and its key not shown"
        served.asked.clear()
        assert over_http(served.address).val_set.samples == first.val_set.samples
        shards = [request for request in served.asked if ".tar" in request[0]]
        assert len(shards) == 4, "the index is kept: each shard is only asked whether it is still the same"


@pytest.mark.usefixtures("quick")
def test_devices_and_loading_processes_share_remote_shards_without_loss(photos: Path, tmp_path: Path) -> None:
    with serve(pack(photos, tmp_path / "shards")) as served:
        one = over_http(served.address, batch_size=6)
        train, held_out = [], []
        for rank in range(2):
            each = over_http(served.address, batch_size=3, workers=2)
            each.trainer = SimpleNamespace(global_rank=rank, world_size=2)
            train.append([batch["image"] for batch in each.train_dataloader()])
            held_out += [image for batch in each.val_dataloader() for image in batch["image"]]
        assert torch.stack(held_out).equal(torch.cat([batch["image"] for batch in one.val_dataloader()]))
        for mine, first, second in zip(one.train_dataloader(), *train, strict=True):
            assert mine["image"].equal(torch.cat([first, second]))


@pytest.mark.usefixtures("quick")
def test_a_broken_connection_is_tried_again_and_then_ends_in_one_line(photos: Path, tmp_path: Path) -> None:
    with serve(pack(photos, tmp_path / "shards")) as served:
        data = over_http(served.address)
        served.broken = len(remote.WAITS)
        same(data, module(photos))
        assert served.broken == 0
        served.broken = 1000
        with pytest.raises(OSError, match=r"127\.0\.0\.1:\d+/val-0\.tar cannot be read, tried 6 times: IncompleteRead"):
            data.val_set[0]
    with pytest.raises(OSError, match=r"val-0\.tar cannot be read, tried 6 times: Connection refused"):
        data.val_set[0]


@pytest.mark.usefixtures("quick")
def test_what_is_wrong_with_remote_shards_is_named(photos: Path, tmp_path: Path) -> None:
    with serve(pack(photos, tmp_path / "shards")) as served:
        train, val = f"{served.address}/train-0.tar", f"{served.address}/val-0.tar"
        for root, settings, message in (
            (train, {}, "names tar files to learn from: name the held-out ones by val_root"),
            (
                f"{served.address}/train-{{0..2}}.tar",
                {"val_root": val},
                r"nothing at .*/train-2\.tar \(404 Not Found\)",
            ),
            (train[:-5] + "{0..}.tar", {"val_root": val}, r"expected \{0000\.\.0127\} or \{a,b\} in braces, not"),
            (train[:-5] + "{2..0}.tar", {"val_root": val}, "counts down"),
            ("pipe:cat train-0.tar", {"val_root": val}, "'pipe:' would run a command in a shell"),
            (str(photos), {"val_root": val}, "is for shards, not for "),
        ):
            with pytest.raises((ValueError, OSError), match=message):
                module(root, **settings).setup("fit")
        served.ranges = False
        with pytest.raises(ValueError, match="gives out whole files only"):
            module(train, val_root=val).setup("fit")


def test_patterns_count_with_zeros_and_multiply() -> None:
    assert find_shards("{a,b}-{008..010}.tar", ("train",)) == [
        f"{x}-0{n}.tar" for x in "ab" for n in ("08", "09", "10")
    ]


def test_hugging_face_tables_hold_what_folders_hold(photos: Path, tmp_path: Path) -> None:
    splits = {}
    for part in ("train", "val"):
        paths = sorted((photos / part).rglob("*.png"))
        columns = {"image": [str(path) for path in paths], "label": [CLASSES.index(path.parent.name) for path in paths]}
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})
        splits["train" if part == "train" else "validation"] = datasets.Dataset.from_dict(columns, features=features)
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "table")
    same(module(tmp_path / "table"), module(photos))


def test_kept_in_memory_images_are_the_same(photos: Path) -> None:
    (photos / "train" / "ant" / "0.png").write_bytes(b"broken")
    (photos / "val" / "ant" / "0.png").write_bytes(b"")
    kept = module(photos, cache=True)
    same(kept, module(photos))
    shutil.rmtree(photos / "val" / "bee")
    assert sum(len(batch["target"]) for batch in kept.val_dataloader()) == 8, "all but the unreadable one"
    unreadable = [path for batch in kept.val_dataloader() for path in batch["unreadable"]]
    assert [Path(path).name for path in unreadable] == ["0.png"]


def test_what_is_wrong_with_shards_is_named(photos: Path, tmp_path: Path) -> None:
    root = pack(photos, tmp_path / "shards", numbers=True)
    (root / "classes.txt").write_text("ant\nbee\n")
    with pytest.raises(ValueError, match=r"has the class '2', which is none of the 2 known"):
        module(root).setup("fit")
    shard = Shards([root / "train-0.tar"])
    shard.strict = True
    content = bytearray((root / "train-0.tar").read_bytes())
    start = shard._places[0][1]
    content[start : start + 8] = b"notimage"
    (root / "train-0.tar").write_bytes(content)
    with pytest.raises(
        UnreadableImage, match=r"cannot read image .*train-0\.tar/00000: not an image that Pillow knows"
    ):
        shard[0]
    (root / "classes.txt").unlink()
    (root / "train-0.tar").write_bytes(b"no tar file at all")
    with pytest.raises(ValueError, match=r"train-0\.tar cannot be read as a tar file"):
        module(root).setup("fit")
    for path in root.glob("val*"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"has no val/\*\.tar or val\*\.tar"):
        module(root).setup("fit")


def parts(data: ClassificationData) -> tuple[set[str], set[str]]:
    return {path for path, _ in data.train_set.samples}, {path for path, _ in data.val_set.samples}


def test_a_folder_without_parts_is_split_the_same_way_every_time(photos: Path) -> None:
    root = unsplit(photos)
    train, held_out = parts(module(root, val_share=0.34))
    assert not train & held_out
    assert len(train | held_out) == 18
    assert sorted(Path(path).parent.name for path in held_out) == ["ant"] * 2 + ["bee"] * 2 + ["cow"] * 2
    moved = photos.parent / "elsewhere"
    shutil.move(root, moved)
    (moved / "ant" / "0.png").rename(moved / "ant" / "renamed.png")
    names = [{Path(path).read_bytes() for path in part} for part in parts(module(moved, val_share=0.34))]
    assert names[0] == {(moved / Path(p).relative_to(root)).read_bytes() for p in train if Path(p).name != "0.png"} | {
        content for content in names[0] if content not in names[1]
    }
    shutil.move(moved, root)
    (root / "ant" / "renamed.png").rename(root / "ant" / "0.png")
    assert parts(module(root, val_share=0.34)) == (train, held_out)


def test_copies_fall_into_one_part_and_every_class_into_both(photos: Path) -> None:
    root = unsplit(photos)
    for number in range(6):
        shutil.copy(root / "ant" / f"{number}.png", root / "ant" / f"copy{number}.png")
    train, held_out = parts(module(root))
    contents = [{Path(path).read_bytes() for path in part} for part in (train, held_out)]
    assert not contents[0] & contents[1]
    assert {Path(path).parent.name for path in held_out} == {Path(path).parent.name for path in train} == set(CLASSES)
    for path in list((root / "bee").iterdir())[1:]:
        path.unlink()
    with pytest.raises(ValueError, match="none can be split off bee: it has one image"):
        module(root).setup("fit")


def test_unequal_classes_and_copies_across_parts_are_told(photos: Path) -> None:
    for number in range(6, 70):
        noise(photos / "train" / "ant" / f"{number}.png", 1000 + number)
    shutil.copy(photos / "val" / "bee" / "1.png", photos / "train" / "cow" / "copy.png")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        module(photos).setup("fit")
    lines = [str(one.message) for one in said]
    assert len(lines) == 2
    assert lines[0].startswith("classes are of very unequal size: ant has 70 training images, bee 6")
    assert lines[1].startswith("1 held-out image is also in the training part, such as ")
    assert f"{photos}/val/bee/1.png = {photos}/train/cow/copy.png" in lines[1]


def test_small_sets_have_small_batches_unless_told(photos: Path) -> None:
    assert module(photos, batch_size=None).batch_size == 2
    assert ClassificationData().batch_size == 128
    assert module(photos, batch_size=5).batch_size == 5
