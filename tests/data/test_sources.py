"""Folders, tar shards and Hugging Face data sets give the same samples; folders are split and looked over."""

import io
import shutil
import tarfile
import warnings
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from linvit.data import ClassificationData
from linvit.data.images import UnreadableImage
from linvit.data.sources import Shards

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
    return ClassificationData(str(root), img_size=16, workers=0, **({"batch_size": 4} | settings))


def pack(photos: Path, out: Path, labels: str = "name") -> Path:
    """Write the folders as two shards a part."""
    out.mkdir()
    for part in ("train", "val"):
        paths = sorted((photos / part).rglob("*.png"))
        for shard in range(2):
            with tarfile.open(out / f"{part}-{shard}.tar", "w") as archive:
                for number, path in list(enumerate(paths))[shard * len(paths) // 2 : (shard + 1) * len(paths) // 2]:
                    label = path.parent.name if labels == "name" else str(CLASSES.index(path.parent.name))
                    for name, content in (
                        (f"{number:05d}.png", path.read_bytes()),
                        (f"{number:05d}.cls", label.encode()),
                    ):
                        info = tarfile.TarInfo(name)
                        info.size = len(content)
                        archive.addfile(info, io.BytesIO(content))
    if labels == "number":
        (out / "classes.txt").write_text("\n".join(CLASSES))
    return out


def same(ours: ClassificationData, theirs: ClassificationData) -> None:
    """Compare classes and every batch of two data modules, augmentation and order included."""
    assert ours.classes == theirs.classes
    for name in ("train_dataloader", "val_dataloader"):
        batches = list(getattr(ours, name)()), list(getattr(theirs, name)())
        assert len(batches[0]) == len(batches[1]) > 0
        for mine, yours in zip(*batches, strict=True):
            assert mine["target"].tolist() == yours["target"].tolist()
            assert mine["image"].equal(yours["image"])


@pytest.mark.parametrize("labels", ["name", "number"])
def test_shards_hold_what_folders_hold(photos: Path, tmp_path: Path, labels: str) -> None:
    same(module(pack(photos, tmp_path / "shards", labels)), module(photos))


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
    root = pack(photos, tmp_path / "shards", "number")
    (root / "classes.txt").write_text("ant bee")
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
