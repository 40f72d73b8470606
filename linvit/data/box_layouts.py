"""Layouts of images with boxes, found without a flag, and their parts in COCO's words."""

import mmap
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from linvit.checks import some
from linvit.data.coco import CocoFile, read_coco
from linvit.data.image_files import ANNOTATION_FOLDERS, data_root
from linvit.data.layouts import Found, Layout, find_layout, part_to_evaluate, parts_to_train
from linvit.data.parts import ALL, HELD_OUT, below, normalised, part_named, split_off, subfolders
from linvit.data.voc import find_voc, read_voc
from linvit.data.yolo import find_yolo, read_yolo

__all__ = ["LAYOUTS", "BoxReader", "boxes_to_evaluate", "boxes_to_train"]

BoxReader = Callable[[Path | None], CocoFile]
"""Reads a part of a data set; from the images of another folder where one is given."""


def find_json(root: Path) -> dict[str, BoxReader]:
    """Find annotation files of COCO's format as COCO, Roboflow, CVAT and Label Studio lay them out.

    A file's part is that of its folder or its name; a file of neither holds the whole data set. Of one part's files
    ``instances_*`` count before others, and the latest year.

    Raises:
        ValueError: Several files may be meant.
    """
    if root.is_file():
        return {ALL: partial(read_coco, root)} if _is_coco(root) else {}
    if not root.is_dir():
        return {}
    folders = [root, *(each for each in subfolders(root) if _holds_annotations(each))]
    files = [path for folder in folders for path in sorted(folder.iterdir()) if path.suffix.lower() == ".json"]
    files = [path for path in files if path.is_file() and not path.name.startswith(".")]
    of_part: dict[str, list[Path]] = defaultdict(list)
    for path in [path for path in files if path.stem.startswith("instances_")] or filter(_is_coco, files):
        of_part[_part_of(path, root)].append(path)
    if list(of_part) == [ALL]:
        _only_one(of_part[ALL])
    of_part.pop(ALL if len(of_part) > 1 else "", None)
    return {part: partial(read_coco, _latest(paths)) for part, paths in of_part.items()}


def _holds_annotations(folder: Path) -> bool:
    return normalised(folder.name) in ANNOTATION_FOLDERS or part_named(folder.name) is not None


def _part_of(path: Path, root: Path) -> str:
    inside = path.parent != root and normalised(path.parent.name) not in ANNOTATION_FOLDERS
    return (part_named(path.parent.name) if inside else part_named(path.stem)) or ALL


def _latest(paths: list[Path]) -> Path:
    """Return the file whose name says no more than its part, or else the latest of ``instances_PART*``."""
    plain = [path for path in paths if part_named(path.stem) and path.stem.removeprefix("instances_").isalpha()]
    if len(plain) == 1:
        return plain[0]
    if all(path.stem.startswith("instances_") for path in paths):
        return sorted(paths)[-1]
    return _only_one(paths)


def _only_one(paths: list[Path]) -> Path:
    if len(paths) > 1:
        raise ValueError(
            f"{paths[0].parent} has several annotation files: {some(path.name for path in paths)}; name the ones to "
            "learn from and to hold out by --data.train_annotations and --data.val_annotations"
        )
    return paths[0]


def _is_coco(path: Path) -> bool:
    """Say whether a file seems to be COCO's, without parsing what may be gigabytes."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return all(content.find(b'"%s"' % name) >= 0 for name in (b"images", b"annotations", b"categories"))
    except (OSError, ValueError):  # unreadable, or empty
        return False


LAYOUTS: list[Layout[BoxReader]] = [
    Layout(
        "COCO's",
        "annotations/instances_train.json with train/ or images/train/; train/_annotations.coco.json; result.json",
        find_json,
    ),
    Layout("Pascal VOC's", "Annotations/*.xml with JPEGImages/ and ImageSets/Main/", find_voc),
    Layout("YOLO's", "data.yaml with images/ and labels/*.txt", find_yolo),
]
"""What is tried, in this order."""


def find_boxes(root: str | Path) -> Found[BoxReader]:
    """Recognise the layout of a data set with boxes; raises as :func:`linvit.data.layouts.find_layout`."""
    return find_layout(Path(root), LAYOUTS, "boxes")


def boxes_to_train(
    root: str | Path,
    share: float,
    train: tuple[str | None, str | None] = (None, None),
    val: tuple[str | None, str | None] = (None, None),
) -> tuple[CocoFile, CocoFile]:
    """Read the part to learn from and the part to hold out, which is split off where there is none.

    Args:
        root: The data set.
        share: Share of the images to split off.
        train: Other annotations to learn from (a file, or a folder of files) and another folder of their images,
            relative to ``root``; None for those of the layout.
        val: The same to hold out.

    Raises:
        OSError: Something is missing.
        ValueError: Annotations are damaged, or there is too little to split.
    """
    root = Path(root)
    learn = _given(root, train[0])
    hold = _given(root, val[0])
    if learn is None:
        found = find_boxes(root)
        name, other = parts_to_train(found)
        learn = found[name]
        hold = hold or (found[other] if other else None)
    file, *others = (
        read(below(root, images) if images else None) for read, (_, images) in ((learn, train), (hold, val)) if read
    )
    return (file, others[0]) if others else _split(file, share)


def boxes_to_evaluate(root: str | Path, split: str | None = None, share: float = HELD_OUT) -> CocoFile:
    """Read the part that an evaluation names; see :func:`linvit.data.layouts.part_to_evaluate`.

    Raises:
        OSError: Something is missing; the message says what there is.
        ValueError: Annotations are damaged.
    """
    found = find_boxes(root)
    name, held = part_to_evaluate(found, split)
    file = replace(found[name](None), part=name)
    return file if held is None else replace(_split(file, share)[held], part=f"{split or 'val'} (split off)")


def _split(file: CocoFile, share: float) -> tuple[CocoFile, CocoFile]:
    chosen = split_off(file.path, file.image_paths(), share, "--data.val_annotations")
    return file.subset(not one for one in chosen), file.subset(chosen)


def _given(root: Path, annotations: str | None) -> BoxReader | None:
    """Return what reads a file in COCO's format, or a folder of VOC's or YOLO's files."""
    if annotations is None:
        return None
    path = below(root, annotations)
    if path.is_file():
        return partial(read_coco, path)
    endings = {each.suffix.lower() for each in path.iterdir()}
    readers = {".xml": read_voc, ".txt": read_yolo}
    found = next((reader for ending, reader in readers.items() if ending in endings), None)
    if found is None:
        raise FileNotFoundError(f"{path} holds no annotations: give a COCO file, or a folder of .xml or .txt files")
    return partial(found, path, data_root(path))
