"""Layouts of images with masks, found without a flag: which mask belongs to which image of which part."""

import os
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from linvit.checks import some
from linvit.data.box_layouts import find_json
from linvit.data.coco import CocoFile, read_coco
from linvit.data.drawn_masks import DrawnMasks
from linvit.data.images import holds_images, images_below
from linvit.data.layouts import Found, Layout, find_layout, part_to_evaluate, parts_to_train
from linvit.data.legends import CITYSCAPES, VOC, Legend
from linvit.data.masks import MaskFiles
from linvit.data.parts import ALL, HELD_OUT, PARTS, below, normalised, only_folder, part_named, split_off, subfolders
from linvit.data.voc import image_lists

__all__ = ["LAYOUTS", "MaskPart", "find_masks", "masks_to_evaluate", "masks_to_train"]

IMAGE_NAMES = ("images", "image", "imgs", "img", "img_dir", "jpegimages", "input", "inputs", "rgb", "photos")
MASK_NAMES = (
    "annotations",
    "masks",
    "labels",
    "annotation",
    "mask",
    "label",
    "ann_dir",
    "anns",
    "annot",
    "gt",
    "ground_truth",
    "groundtruth",
    "targets",
    "segmentations",
    "segmentation",
    "segmentationclass",
    "segmentationclasspng",
)
"""Names of the folders of images and of masks, in any case; of several the first."""

IMAGE_ENDS = re.compile(r"_(leftImg8bit|image|images|img|rgb|sat)$", re.IGNORECASE)
MASK_ENDS = re.compile(
    r"_(gtFine_labelIds|gtFine_labelTrainIds|masks?|labels?|L|gt|seg|segmentation|annotation|manual1)$", re.IGNORECASE
)
"""What is added to the name that an image and its mask share."""


@dataclass(frozen=True)
class MaskPart:
    """Images of a part of a data set, and their masks.

    Attributes:
        images: The images' paths.
        masks: Their masks, in the same order.
        where: The folder, for messages.
        legend: What the layout itself knows of the classes.
        part: Which part of the data set it is, in words.
    """

    images: list[str]
    masks: MaskFiles | DrawnMasks
    where: Path
    legend: Legend | None = None
    part: str = ALL

    def subset(self, chosen: Iterable[bool]) -> "MaskPart":
        """Return some of the images with their masks."""
        places = [place for place, taken in enumerate(chosen) if taken]
        return replace(self, images=[self.images[place] for place in places], masks=self.masks.subset(places))


MaskReader = Callable[[], MaskPart]


def find_cityscapes(root: Path) -> dict[str, MaskReader]:
    """Find ``leftImg8bit/PART/CITY/*_leftImg8bit.png`` and ``gtFine/PART/CITY/*_gtFine_labelIds.png``."""
    images, masks = root / "leftImg8bit", root / "gtFine"
    if not (images.is_dir() and masks.is_dir()):
        return {}
    folders = {part_named(folder.name): folder.name for folder in subfolders(masks)}
    found: dict[str, MaskReader] = {}
    for part, name in folders.items():
        files = images_below(masks / name)
        for kind in ("labelTrainIds", "labelIds"):  # of both, the ones that were made to train on
            chosen = [path for path in files if path.endswith(f"_{kind}.png")]
            if part and chosen and (images / name).is_dir():
                found[part] = partial(_pair, images / name, masks / name, None, chosen, CITYSCAPES[kind])
                break
    return found


def find_voc(root: Path) -> dict[str, MaskReader]:
    """Find ``JPEGImages``, ``SegmentationClass`` and the parts that ``ImageSets/Segmentation`` lists."""
    inside = {normalised(folder.name): folder for folder in subfolders(root)} if root.is_dir() else {}
    years = [folder for name, folder in inside.items() if name.startswith("voc20") or name == "vocdevkit"]
    if len(years) == 1 and len(inside) == 1:
        return find_voc(years[0])
    masks = inside.get("segmentationclasspng", inside.get("segmentationclass"))
    images = next((inside[name] for name in ("jpegimages", *IMAGE_NAMES) if name in inside), None)
    if masks is None or images is None:
        return {}
    lists = image_lists(root, "Segmentation")
    if not lists:
        return {ALL: partial(_pair, images, masks, None, None, VOC, listed=True)}
    return {part: partial(_pair, images, masks, names, None, VOC) for part, names in lists.items()}


def find_folders(root: Path) -> dict[str, MaskReader]:
    """Find a folder of images and one of masks: for each part, in either order, or for all."""
    if not root.is_dir():
        return {}
    images, masks = _named(root, IMAGE_NAMES), _named(root, MASK_NAMES)
    found: dict[str, MaskReader] = {}
    for part in PARTS:
        pairs = [(image, mask) for image in _parts(images, part) for mask in _parts(masks, part)]
        for folder in _parts([root], part):
            pairs += [(image, mask) for image in _named(folder, IMAGE_NAMES) for mask in _named(folder, MASK_NAMES)]
        for image, mask in pairs:
            if part not in found and _may_hold_images(mask):
                found[part] = partial(_pair, image, mask)
    if not found:
        for image, mask in [(image, mask) for image in images for mask in masks if _may_hold_images(mask)]:
            found.setdefault(ALL, partial(_pair, image, mask))
    return found


def find_beside(root: Path) -> dict[str, MaskReader]:
    """Find folders of images with one of masks beside each: ``train`` and ``trainannot`` or ``train_masks``."""
    if not root.is_dir():
        return {}
    images: dict[str, Path] = {}
    masks: dict[str, Path] = {}
    names = {"default": ALL} | {name: part for part, names in PARTS.items() for name in names}
    for folder in subfolders(root):
        name = normalised(folder.name)
        for word in sorted(names, key=len, reverse=True):
            rest = name.removeprefix(word) if name.startswith(word) else name.removesuffix(word)
            if rest != name:
                kind = rest.strip("_- .")
                if kind in MASK_NAMES:
                    masks.setdefault(names[word], folder)
                elif kind in ("", *IMAGE_NAMES):
                    images.setdefault(names[word], folder)
                break
    return {part: partial(_pair, images[part], mask) for part, mask in masks.items() if part in images}


def find_mixed(root: Path) -> dict[str, MaskReader]:
    """Find images and masks in one folder, told apart by the ends of their names: ``a.jpg`` and ``a_mask.png``."""
    if not root.is_dir():
        return {}
    found: dict[str, MaskReader] = {}
    for folder in subfolders(root):
        part = part_named(folder.name)
        if part and part not in found and (pairs := _mixed(folder)):
            found[part] = partial(_pair, folder, folder, None, *pairs)
    if not found and only_folder(root) is None and (pairs := _mixed(root)):
        found[ALL] = partial(_pair, root, root, None, *pairs)
    return found


def find_drawn(root: Path) -> dict[str, MaskReader]:
    """Find COCO's annotation files, whose polygons and run-length encodings are drawn as masks."""
    return {part: partial(_drawn, part, partial(read, None)) for part, read in find_json(root).items()}


LAYOUTS: list[Layout[MaskReader]] = [
    Layout("Cityscapes'", "leftImg8bit/train/CITY/ and gtFine/train/CITY/*_labelIds.png", find_cityscapes),
    Layout("Pascal VOC's", "JPEGImages/, SegmentationClass/ and ImageSets/Segmentation/train.txt", find_voc),
    Layout(
        "folders of images and masks", "images/train/ and masks/train/, or train/images/ and train/masks/", find_folders
    ),
    Layout("folders side by side", "train/ and trainannot/, or train_images/ and train_masks/", find_beside),
    Layout("images and masks in one folder", "a.jpg and a_mask.png", find_mixed),
    Layout("COCO's polygons", "annotations/instances_train.json", find_drawn),
]
"""What is tried, in this order."""


def find_masks(root: str | Path) -> Found[MaskReader]:
    """Recognise the layout of a data set with masks; raises as :func:`linvit.data.layouts.find_layout`."""
    return find_layout(Path(root), LAYOUTS, "masks")


def masks_to_train(
    root: str | Path,
    share: float,
    train: tuple[str | None, str | None] = (None, None),
    val: tuple[str | None, str | None] = (None, None),
) -> tuple[MaskPart, MaskPart]:
    """Find the part to learn from and the part to hold out, which is split off where there is none.

    Args:
        root: The data set.
        share: Share of the images to split off.
        train: Folder of the images to learn from and folder of their masks, below ``root``; None for the layout's.
        val: The same to hold out.

    Raises:
        OSError: Something is missing.
        ValueError: Two files of one name, no image, or too little to split.
    """
    root = Path(root)
    learn, hold = _given(root, *train), _given(root, *val)
    if learn is None:
        found = find_masks(root)
        name, other = parts_to_train(found)
        learn = found[name]
        hold = hold or (found[other] if other else None)
    part = learn()
    return _split(part, share) if hold is None else (part, hold())


def masks_to_evaluate(root: str | Path, split: str | None = None, share: float = HELD_OUT) -> MaskPart:
    """Find the part that an evaluation names; see :func:`linvit.data.layouts.part_to_evaluate`.

    Raises:
        OSError: Something is missing; the message says what there is.
        ValueError: Two files of one name, or no image.
    """
    found = find_masks(root)
    name, held = part_to_evaluate(found, split)
    part = replace(found[name](), part=name)
    return part if held is None else replace(_split(part, share)[held], part=f"{split or 'val'} (split off)")


def _split(part: MaskPart, share: float) -> tuple[MaskPart, MaskPart]:
    chosen = split_off(part.where, part.images, share, "--data.val_images and --data.val_masks")
    return part.subset(not one for one in chosen), part.subset(chosen)


def _given(root: Path, images: str | None, masks: str | None) -> MaskReader | None:
    if images is None and masks is None:
        return None
    if images is None or masks is None:
        raise ValueError("images and masks are named together: give both --data.train_images and --data.train_masks")
    image_folder, place = below(root, images), below(root, masks)
    if place.is_file():
        return partial(_drawn, ALL, partial(read_coco, place, image_folder))
    return partial(_pair, image_folder, place)


def _drawn(part: str, read: Callable[[], CocoFile]) -> MaskPart:
    file = read()
    masks = DrawnMasks(file)
    return MaskPart(file.image_paths(), masks, file.path, Legend(masks.classes), part)


def _named(root: Path, names: Sequence[str]) -> list[Path]:
    inside = {normalised(folder.name): folder for folder in subfolders(root)}
    return [inside[name] for name in names if name in inside]


def _parts(folders: Iterable[Path], part: str) -> list[Path]:
    """Return the folders of a part inside of folders: ``training`` before ``train``."""
    return [each for folder in folders for each in _named(folder, PARTS[part])]


def _may_hold_images(folder: Path) -> bool:
    """Say whether a folder holds images, or nothing yet; a folder of JSON or XML files holds no masks."""
    return holds_images(folder) or not any(files for _, _, files in os.walk(folder))


def _mixed(folder: Path) -> tuple[list[str], None] | None:
    """Return the masks of a folder that holds images, too; the images are the other files."""
    files = images_below(folder)
    stems = {os.path.splitext(path)[0] for path in files}
    bases = {IMAGE_ENDS.sub("", stem) for stem in stems if not MASK_ENDS.search(stem)}
    masks = [path for path in files if MASK_ENDS.sub("", stem := os.path.splitext(path)[0]) != stem]
    masks = [path for path in masks if MASK_ENDS.sub("", os.path.splitext(path)[0]) in bases]
    return (masks, None) if masks else None


def _pair(
    images: Path,
    masks: Path,
    names: Sequence[str] | None = None,
    mask_files: list[str] | None = None,
    legend: Legend | None = None,
    listed: bool = False,
) -> MaskPart:
    """Find the mask of each image: it has the image's name but for the ending and what is added to it.

    Args:
        images: The folder of the images.
        masks: The folder of the masks.
        names: The images of this part, without endings; None for all.
        mask_files: The files that are masks; None for all in their folder.
        legend: What the layout knows of the classes.
        listed: Images without a mask belong to another task and are left out.

    Raises:
        FileNotFoundError: An image has no mask.
        ValueError: There is no image, or two files have one name but for the ending.
    """
    files = set(mask_files or ())
    mask_of = _by_name(masks, images_below(masks) if mask_files is None else mask_files, MASK_ENDS)
    image_of = _by_name(images, [path for path in images_below(images) if path not in files], IMAGE_ENDS)
    if names is not None:
        unknown = [name for name in names if name not in image_of]
        if unknown:
            raise FileNotFoundError(f"{images} has no image {unknown[0]}, which is in a list of {images.parent}")
        image_of = {name: image_of[name] for name in names}
    if listed:
        image_of = {key: path for key, path in image_of.items() if key in mask_of}
    if not image_of:
        raise ValueError(f"{images} holds no image")
    folded = {normalised(key): key for key in mask_of}
    for key in image_of.keys() - mask_of.keys():  # another case, or another way to write an accent
        other = folded.get(normalised(key))
        if other is not None and other not in image_of:
            mask_of[key] = mask_of.pop(other)
    lonely = [path for key, path in image_of.items() if key not in mask_of]
    if lonely:
        raise FileNotFoundError(f"{len(lonely)} of {len(image_of)} images have no mask in {masks}: {some(lonely, 3)}")
    unused = [path for key, path in mask_of.items() if key not in image_of]
    if unused and names is None and not listed:
        warnings.warn(f"{len(unused)} masks have no image in {images}: {some(unused, 3)}", stacklevel=2)
    order = sorted(image_of, key=image_of.__getitem__) if names is None else list(image_of)
    return MaskPart([image_of[key] for key in order], MaskFiles([mask_of[key] for key in order]), images, legend)


def _by_name(folder: Path, paths: Iterable[str], ends: re.Pattern[str]) -> dict[str, str]:
    """Map names in a folder, without their endings and what is added to them, to the paths."""
    found: dict[str, str] = {}
    for path in paths:
        key = ends.sub("", os.path.splitext(os.path.relpath(path, folder))[0])
        other = found.setdefault(key, path)
        if other != path:
            raise ValueError(f"{other} and {path} have the same name but for the ending: which goes with which is open")
    return found
