"""Finds image files and reads whatever the world calls an image into upright 8-bit RGB."""

import contextlib
import glob
import io
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

T = TypeVar("T")

IMAGE_EXTENSIONS = (
    ".avif",
    ".bmp",
    ".gif",
    ".heic",
    ".heif",
    ".hif",
    ".j2k",
    ".jfif",
    ".jp2",
    ".jpe",
    ".jpeg",
    ".jpg",
    ".jpx",
    ".mpo",
    ".pbm",
    ".pgm",
    ".png",
    ".pnm",
    ".ppm",
    ".tif",
    ".tiff",
    ".webp",
)
"""File name endings, in lower case, by which folders and patterns are searched; upper case counts too."""


HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
"""What follows ``ftyp`` at the beginning of the files that phones write; AVIF's brands are Pillow's own."""

_ORIENTATION = 0x0112
"""EXIF's number of the tag that says how to turn an image."""


class UnreadableImage(ValueError):
    """An image file that cannot be read. The message is one line: the file and the reason.

    Attributes:
        path: The file, where the error was raised in this process.
    """

    def __init__(self, message: str, path: str | os.PathLike[str] = "") -> None:
        # A worker of a DataLoader re-raises with its traceback as the message; the one line that counts ends it.
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].strip())
        self.path = str(path)


def load_image(
    path: str | os.PathLike[str],
    content: bytes | None = None,
    least_side: int | None = None,
    upright: bool = True,
) -> Image.Image:
    """Read an image file as a person would see it.

    The EXIF orientation is applied, transparent pixels are laid on white, 16-bit gray is scaled to 8 bits, and of an
    animation the first frame is taken.

    Args:
        path: The file; its name need not end like an image's.
        content: What is in the file, if it lies in an archive; the path then only names it.
        least_side: A JPEG may be decoded at half, a quarter or an eighth of its size as long as its shorter side keeps
            so many pixels: much faster for a camera's photos. None for its full size.
        upright: Apply the EXIF orientation; otherwise the pixels stay as they are stored.

    Returns:
        The image in mode ``RGB``, at least 1x1 pixels.

    Raises:
        UnreadableImage: The file is missing, a folder, empty, truncated or no image, or its gray values have no known
            range (floating point, or integers outside 16 bits).
    """
    try:
        with open_image(path, content) as image:
            if least_side is not None and min(image.size) > least_side:
                image.draft(None, (least_side, least_side))  # does nothing but for JPEG
            image.load()
            if upright:
                # Cameras and editors write broken EXIF blocks around sound pixels.
                with contextlib.suppress(Exception):
                    ImageOps.exif_transpose(image, in_place=True)
            return _to_rgb(image)
    except Exception as error:  # On damaged files Pillow's decoders raise almost anything.
        empty = not (os.path.getsize(path) if content is None and os.path.isfile(path) else content)
        raise UnreadableImage(f"cannot read image {path}: {why_unreadable(error, empty)}", path) from error


def open_image(path: str | os.PathLike[str], content: bytes | None = None) -> ImageFile.ImageFile:
    """Open an image as Pillow does, HEIC too.

    Args:
        path: The file.
        content: What is in it, if it lies in an archive.

    Raises:
        Exception: Whatever Pillow raises; a ModuleNotFoundError for a HEIC file without the library that reads it.
    """
    if content is None and not stat.S_ISREG(mode := os.stat(path).st_mode) and not stat.S_ISDIR(mode):
        raise OSError(f"{os.fspath(path)} is a pipe or a device, not a file")  # opening one may wait for ever
    try:
        return Image.open(path if content is None else io.BytesIO(content))
    except UnidentifiedImageError:
        if not _is_heif(path, content):
            raise
    try:
        import pillow_heif
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('it is HEIC, which needs: pip install "linvit[heic]"') from error
    pillow_heif.register_heif_opener()
    return Image.open(path if content is None else io.BytesIO(content))


def _is_heif(path: str | os.PathLike[str], content: bytes | None) -> bool:
    if content is None:
        with open(path, "rb") as file:
            content = file.read(12)
    return content[4:8] == b"ftyp" and content[8:12] in HEIF_BRANDS


def load_image_of(path: str | os.PathLike[str], size: tuple[int | None, int | None]) -> Image.Image:
    """Read an image with the pixels that its annotations mean.

    The pixels stay as they are stored, which is how COCO's tools and most others read them, and are turned upright (see
    EXIF orientation) only where that alone gives the size of the annotations.

    Args:
        path: The file.
        size: Width and height of the annotations, None where they are not known.

    Returns:
        The image in mode ``RGB``; as it is stored if it has the size neither way.

    Raises:
        UnreadableImage: As :func:`load_image` does.
    """
    stored = load_image(path, upright=False)
    if None in size or stored.size == size:
        return stored
    upright = load_image(path)
    return upright if upright.size == size else stored


def image_size(path: str | os.PathLike[str], upright: bool = False) -> tuple[int, int] | None:
    """Return width and height of an image from the beginning of its file, None where it cannot be read.

    Args:
        path: The file.
        upright: Those of the image as its EXIF orientation says, not as it is stored.
    """
    try:
        with open_image(path) as image:
            turned = upright and image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
            return (image.height, image.width) if turned else image.size
    except Exception:  # On damaged files Pillow's decoders raise almost anything.
        return None


def read_or_next(
    read: Callable[[int], T], index: int, count: int, strict: bool, replace: bool
) -> tuple[T | None, list[str]]:
    """Read an item of a data set; what cannot be read is noted, or raises if ``strict``.

    Args:
        read: Returns an item; raises UnreadableImage.
        index: The item that is wanted.
        count: How many there are.
        strict: Raise on what cannot be read.
        replace: Put the next item that can be read in its place, as suits training.

    Returns:
        The item (None: it cannot be read and is not replaced), and the paths of the files that cannot be read.

    Raises:
        UnreadableImage: As ``strict`` says, or there is nothing to put in its place.
    """
    unreadable: list[str] = []
    for step in range(count if replace else 1):
        try:
            return read((index + step) % count if step else index), unreadable
        except UnreadableImage as error:
            if strict:
                raise
            unreadable.append(error.path)
    if replace:
        raise UnreadableImage(f"none of the {count} images can be read, such as {unreadable[0]}")
    return None, unreadable


def find_images(patterns: list[str]) -> list[Path]:
    """Find the image files that files, folders and patterns name.

    A file that is named is taken whatever it is called. Folders are searched to any depth for names that end as in
    ``IMAGE_EXTENSIONS``, hidden ones left out; a pattern gives the images and folders that match it.

    Args:
        patterns: Paths or glob patterns (``*``, ``?``, ``[...]``, and ``**`` for any depth); ``~`` is the home folder.

    Returns:
        The paths, sorted, each once.

    Raises:
        FileNotFoundError: One of the arguments names no image.
    """
    found: dict[str, Path] = {}
    for pattern in patterns:
        path = Path(pattern).expanduser()
        if path.is_file():
            images = [str(path)]
        elif path.is_dir():
            images = images_below(path)
        else:
            images = [image for match in glob.glob(str(path), recursive=True) for image in _images_at(match)]
        if not images:
            what = "no image in folder" if path.is_dir() else "no image file, folder or match for"
            raise FileNotFoundError(f"{what} '{pattern}' (looked for {' '.join(IMAGE_EXTENSIONS)})")
        for image in images:
            found.setdefault(os.path.abspath(image), Path(image))
    return [found[place] for place in sorted(found)]


def images_below(folder: str | os.PathLike[str]) -> list[str]:
    """List the images of a folder and of those below it (links followed, hidden names left out).

    Args:
        folder: An existing folder.

    Returns:
        The paths, sorted; strings, because data sets hold millions of them.

    Raises:
        OSError: A folder cannot be listed.
    """
    return sorted(_walk(folder))


def holds_images(folder: str | os.PathLike[str]) -> bool:
    """Say whether there is an image in a folder or below it, which need not exist; looks no further than the first."""
    return os.path.isdir(folder) and next(_walk(folder), None) is not None


def _walk(folder: str | os.PathLike[str]) -> Iterator[str]:
    for where, folders, files in os.walk(folder, onerror=_raise, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".") and not _leads_back(where, name)]
        yield from (os.path.join(where, name) for name in files if _is_image_name(name))


def _leads_back(where: str, name: str) -> bool:
    """Say whether a folder is a link to one that it lies in, which would have no end."""
    path = os.path.join(where, name)
    return os.path.islink(path) and os.path.realpath(where).startswith(os.path.realpath(path))


def _images_at(path: str) -> list[str]:
    if os.path.isdir(path):
        return images_below(path)
    return [path] if _is_image_name(os.path.basename(path)) else []


def _is_image_name(name: str) -> bool:
    return name.lower().endswith(IMAGE_EXTENSIONS) and not name.startswith(".")


def _raise(error: OSError) -> None:
    raise error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        image = _sixteen_to_eight_bits(image)
    elif image.mode == "F":
        raise ValueError("floating-point pixels have no known range; save it with 8 or 16 bits")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")


def _sixteen_to_eight_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image, dtype=np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("its 32-bit pixels go beyond 0 to 65535; save it with 8 or 16 bits")
    # 65535 = 257 * 255: this is the nearest 8-bit value, where Pillow's own conversion clips at 255.
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def why_unreadable(error: Exception, empty: bool) -> str:
    """Say in a few words why Pillow could not read a file, which may be empty."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, UnidentifiedImageError):
        return "the file is empty" if empty else "not an image that Pillow knows"
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
