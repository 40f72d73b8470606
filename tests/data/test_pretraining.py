"""Images without classes: any folder, shards without labels, held-out parts, fixed views."""

import io
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from linvit.data import PretrainData
from linvit.data.pretraining import FixedViews
from linvit.data.unlabelled import open_unlabelled


def photo(path: Path, level: int) -> None:
    """Write a photo of one gray level, which tells it from others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (24, 20), (level,) * 3).save(path)


def names(part: object) -> set[str]:
    return {Path(path).name for path, _ in part.samples}  # type: ignore[attr-defined]


def test_folders_of_any_depth_are_split_and_no_name_is_looked_at(tmp_path: Path) -> None:
    places = ["0.png", "trip/1.png", "trip/day/2.png", "trip/day/noon/3.png", "train/4.png", "empty/.hidden/9.png"]
    for level, place in enumerate(places):
        photo(tmp_path / place, level)
    (tmp_path / "nothing").mkdir()
    source = open_unlabelled("auto", str(tmp_path), 0.4)
    train, held_out = source.train(None, False), source.held_out(None, False)
    assert (len(train), len(held_out)) == (3, 2)
    assert names(train) | names(held_out) == {f"{level}.png" for level in range(5)}
    assert [number for _, number in train.samples] == [0, 1, 2], "a sample's target is its number"
    again = open_unlabelled("auto", str(tmp_path), 0.4)
    assert again.train(None, False).samples == train.samples


def test_copies_stay_on_one_side(tmp_path: Path) -> None:
    for level in range(6):
        for copy in range(3):
            photo(tmp_path / f"{level}-{copy}.png", level)
    source = open_unlabelled("auto", str(tmp_path), 0.3)
    levels = [{name[0] for name in names(part)} for part in (source.train(None, False), source.held_out(None, False))]
    assert not levels[0] & levels[1]
    assert [len(part) for part in levels] == [4, 2]


def test_a_folder_of_train_and_val_is_split_already(tmp_path: Path) -> None:
    photo(tmp_path / "train/a/0.png", 0)
    photo(tmp_path / "train/1.png", 1)
    photo(tmp_path / "validation/b/2.png", 2)
    source = open_unlabelled("auto", str(tmp_path), 0.5)
    assert names(source.train(None, False)) == {"0.png", "1.png"}
    assert names(source.held_out(None, False)) == {"2.png"}


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda root: None, "holds 0 different images"),
        (lambda root: photo(root / "one.png", 1), "holds 1 different images"),
        (lambda root: [photo(root / f"{i}.png", 1) for i in range(3)], "holds 1 different images"),
    ],
)
def test_too_few_images_are_an_error(tmp_path: Path, make, error: str) -> None:
    make(tmp_path)
    with pytest.raises(ValueError, match=error):
        open_unlabelled("auto", str(tmp_path), 0.5)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_unlabelled("auto", str(tmp_path / "gone"), 0.5)


def pack(path: Path, levels: range, labels: bool = False) -> None:
    with tarfile.open(path, "w") as archive:
        for level in levels:
            content = io.BytesIO()
            Image.new("RGB", (24, 20), (level,) * 3).save(content, "PNG")
            files = {f"{level}.png": content.getvalue()} | ({f"{level}.cls": b"any"} if labels else {})
            for name, data in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))


def test_shards_need_no_labels(tmp_path: Path) -> None:
    pack(tmp_path / "a.tar", range(4))
    pack(tmp_path / "b.tar", range(4, 10), labels=True)
    source = open_unlabelled("auto", str(tmp_path), 0.3)
    train, held_out = source.train(None, False), source.held_out(None, False)
    assert (len(train), len(held_out)) == (7, 3)
    seen = {np.asarray(part[i]["image"])[0, 0, 0] for part in (train, held_out) for i in range(len(part))}
    assert seen == set(range(10))
    assert [train[i]["target"] for i in range(7)] == list(range(7))
    by_pattern = open_unlabelled("auto", str(tmp_path / "{a,b}.tar"), 0.3)
    assert names(by_pattern.train(None, False)) == names(train)

    (tmp_path / "split").mkdir()
    pack(tmp_path / "split/train-0.tar", range(3))
    pack(tmp_path / "split/val-0.tar", range(3, 5))
    source = open_unlabelled("auto", str(tmp_path / "split"), 0.3)
    assert (len(source.train(None, False)), len(source.held_out(None, False))) == (3, 2)


def test_views_come_again(tmp_path: Path) -> None:
    batches = FixedViews(6, 2, seed=1, views=2)
    draws = []
    for epoch in range(4):
        batches.set_epoch(epoch)
        draws.append({draw.number: draw.seed for batch in batches for draw in batch})
        assert len(draws[-1]) == 6
    assert draws[0] == draws[2] != draws[1] == draws[3]
    assert len(set(draws[0].values())) == 6

    random = np.random.default_rng(0)
    for number in range(12):
        Image.fromarray(random.integers(0, 255, (40, 40, 3)).astype(np.uint8)).save(tmp_path / f"{number}.png")
    data = PretrainData(str(tmp_path), val_share=0.3, views=2, img_size=16, batch_size=4, workers=0)
    data.setup("fit")
    loader = data.train_dataloader()
    seen = []
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        seen.append({int(n): x for batch in loader for n, x in zip(batch["target"], batch["image"], strict=True)})
    assert all(torch.equal(seen[0][number], seen[2][number]) for number in seen[0])
    assert not any(torch.equal(seen[0][number], seen[1][number]) for number in seen[0])


@pytest.mark.parametrize("splits", [("train",), ("train", "validation")])
def test_hugging_face_tables_need_no_classes(tmp_path: Path, splits: tuple[str, ...]) -> None:
    for level in range(8):
        photo(tmp_path / "photos" / f"{level}.png", level)
    paths = sorted(map(str, (tmp_path / "photos").iterdir()))
    paths.append(paths[0])  # a copy, which stays with its original
    images = datasets.Features({"picture": datasets.Image()})
    tables = {name: datasets.Dataset.from_dict({"picture": paths}, features=images) for name in splits}
    found = tables["train"] if len(splits) == 1 else datasets.DatasetDict(tables)
    found.save_to_disk(tmp_path / "table")
    data = PretrainData(str(tmp_path / "table"), val_share=0.25, img_size=16, batch_size=2, workers=0)
    data.setup("fit")
    held_out = [number for batch in data.val_dataloader() for number in batch["target"].tolist()]
    if len(splits) == 2:
        assert (len(data.train_set), len(held_out)) == (9, 9)
    else:
        assert len(data.train_set) + len(held_out) == 9
        assert 2 <= len(held_out) <= 3
    assert data.classes == []
    assert [data.train_set[number]["target"] for number in range(3)] == [0, 1, 2]
    text = datasets.Dataset.from_dict({"text": ["a", "b"]})
    text.save_to_disk(tmp_path / "text")
    with pytest.raises(ValueError, match="has the columns text; expected an image"):
        PretrainData(str(tmp_path / "text"))._source  # noqa: B018


def test_crops_are_made_at_the_larger_size(tmp_path: Path) -> None:
    for level in range(4):
        photo(tmp_path / f"{level}.png", level)
    data = PretrainData(str(tmp_path), img_size=16, batch_size=2, workers=0)
    data.see_at(12)
    assert data.crop == 16
    data.see_at(24)
    assert next(iter(data.train_dataloader()))["image"].shape == (2, 3, 24, 24)
    assert next(iter(data.val_dataloader()))["image"].shape == (1, 3, 24, 24)
    assert data.input_config()["input_size"] == (3, 16, 16), "what the student sees"
    assert [batch["image"].shape[0] for batch in data.sample(2)] == [2]


@pytest.mark.parametrize(
    ("settings", "error"),
    [({"views": 0}, "views must be 1 or more"), ({"val_root": "x"}, "val_root 'x' is for shards"),
     ({"batch_size": 99}, "batch_size must be at most 3")],
)  # fmt: skip
def test_wrong_settings_are_named(tmp_path: Path, settings: dict, error: str) -> None:
    for level in range(4):
        photo(tmp_path / f"{level}.png", level)
    with pytest.raises(ValueError, match=error):
        PretrainData(str(tmp_path), **settings).setup("fit")
