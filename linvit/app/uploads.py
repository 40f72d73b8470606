"""Images that people give to the page: read with limits, and kept apart, each under a name that nobody can guess."""

import io
import secrets
import threading
import warnings
from collections import OrderedDict
from importlib.resources import files

from PIL import Image

from linvit.data.images import UnreadableImage, load_image

__all__ = ["MOST_BYTES", "MOST_PIXELS", "SAMPLES", "Uploads", "read_sample", "read_upload"]

MOST_BYTES = 20 * 2**20
MOST_PIXELS = 40_000_000
MOST_KEPT = 64
LONGEST_SIDE = 1600

SAMPLES = ("portrait", "digit")
"""Images that come with what is installed: Grace Hopper (U.S. Navy, public domain, in matplotlib), an MNIST digit."""


def read_upload(content: bytes) -> tuple[Image.Image, str]:
    """Read an image, and say what there is to say about it.

    Returns:
        An RGB image of at most 1,600 pixels a side, and a note ("" for none).

    Raises:
        ValueError: It is empty, too large, or no image; the message says so to a person.
    """
    if not content:
        raise ValueError("the file is empty")
    if len(content) > MOST_BYTES:
        raise ValueError(f"the file has {len(content) / 2**20:.0f} MB; at most {MOST_BYTES // 2**20} MB are taken")
    frames = 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit here is lower
            with Image.open(io.BytesIO(content)) as opened:
                width, height = opened.size
                frames = getattr(opened, "n_frames", 1)
    except Image.DecompressionBombError:
        raise ValueError(f"the image has too many pixels; at most {MOST_PIXELS // 10**6} million are taken") from None
    except Exception:
        raise ValueError("this is no image that can be read: give a JPEG, PNG, WebP, GIF, BMP or TIFF file") from None
    if width * height > MOST_PIXELS:
        raise ValueError(
            f"the image has {width} x {height} pixels; at most {MOST_PIXELS // 10**6} million pixels are taken"
        )
    try:
        image = load_image("this file", content=content)
    except UnreadableImage as error:
        raise ValueError(str(error)) from None
    note = f"an animation of {frames} frames: its first is shown" if frames > 1 else ""
    if max(image.size) > LONGEST_SIDE:
        image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
        note = f"{note}; " * bool(note) + f"shown with {image.width} x {image.height} of {width} x {height} pixels"
    return image, note


def read_sample(name: str) -> Image.Image:
    """Return a sample.

    Raises:
        ValueError: There is none of this name.
    """
    if name == "portrait":
        content = files("matplotlib").joinpath("mpl-data", "sample_data", "grace_hopper.jpg").read_bytes()
        return load_image(name, content=content)
    if name == "digit":
        from linvit.data.datasets import Mnist5k

        return Mnist5k(train=False)[440]["image"].convert("RGB")
    raise ValueError(f"there is no sample {name!r}; there are {', '.join(SAMPLES)}")


class Uploads:
    """The last images, by names that nobody can guess: whoever gave an image has its name, and no one else."""

    def __init__(self, most: int = MOST_KEPT):
        self._most = most
        self._kept: OrderedDict[str, Image.Image] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, image: Image.Image) -> str:
        """Keep an image, and return its name."""
        name = secrets.token_urlsafe(16)
        with self._lock:
            self._kept[name] = image
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return name

    def get(self, name: str) -> Image.Image:
        """Return an image.

        Raises:
            ValueError: There is none of this name, or it was dropped for newer ones.
        """
        with self._lock:
            if name not in self._kept:
                raise ValueError("this image is not kept any more: give it again")
            self._kept.move_to_end(name)
            return self._kept[name]
