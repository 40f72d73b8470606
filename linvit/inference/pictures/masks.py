"""Pictures of segmentation: classes as colours over the image, with a legend, and masks that show their classes."""

import colorsys
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from linvit.inference.pictures.canvas import drawn

__all__ = ["class_colours", "draw_overlay", "mask_picture", "palette_of"]

OPACITY = 0.6
MOST_IN_LEGEND = 20
UNCOLOURED = "background"


def class_colours(count: int) -> np.ndarray:
    """Return ``[count, 3]`` bytes, colours in which neighbouring numbers look different."""
    golden = 0.618033988749895  # turning by this share of the circle never comes near an earlier hue
    rings = [(0.9, 0.95), (1.0, 0.5), (0.4, 1.0)]  # vivid, dark, pale: the first 20 are far apart
    colours = [colorsys.hsv_to_rgb((i * golden) % 1, *rings[i % len(rings)]) for i in range(count)]
    return (np.array(colours) * 255).round().astype(np.uint8)


def palette_of(classes: Sequence[str], colours: Sequence[Sequence[int]] | None = None) -> np.ndarray:
    """Return ``[count, 3]`` bytes, the colour of each class in pictures and mask files; "background" is black.

    Args:
        classes: Names of the classes.
        colours: Those that the data give the classes; None to choose.
    """
    if colours is not None:
        return np.array(colours, dtype=np.uint8)
    chosen = class_colours(len(classes))
    chosen[[name == UNCOLOURED for name in classes]] = 0
    return chosen


def draw_overlay(
    image: Image.Image, mask: np.ndarray, classes: Sequence[str], colours: Sequence[Sequence[int]] | None = None
) -> Image.Image:
    """Draw an image beside the same with its classes laid over it; a class named "background" stays clear.

    Args:
        image: The image.
        mask: ``[H, W]`` class numbers.
        classes: Names of the classes.
        colours: As for :func:`palette_of`.
    """
    palette = palette_of(classes, colours)
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    opacity = np.array([0.0 if name == UNCOLOURED else OPACITY for name in classes], dtype=np.float32)[mask][..., None]
    tinted = (pixels * (1 - opacity) + palette[mask] * opacity).round().astype(np.uint8)

    width = 5.0
    height = float(np.clip(width * image.height / image.width, 2, 10))
    figure = Figure(figsize=(2 * width + 2.2, height), layout="constrained")
    for axes, shown in zip(figure.subplots(1, 2), (pixels.astype(np.uint8), tinted), strict=True):
        axes.imshow(shown)
        axes.axis("off")
    counts = np.bincount(mask.ravel(), minlength=len(classes))
    present = [index for index in np.argsort(-counts, kind="stable") if counts[index]][:MOST_IN_LEGEND]
    patches = [
        Patch(
            facecolor="none" if classes[i] == UNCOLOURED else tuple(palette[i] / 255),
            edgecolor="#6b7280",
            label=f"{classes[i]}  {_percent(counts[i] / mask.size)}",
        )
        for i in present
    ]
    figure.legend(handles=patches, loc="outside right center", frameon=False, fontsize=9)
    return drawn(figure)


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.0005 else "<0.1%"


def mask_picture(
    mask: np.ndarray,
    values: Sequence[int],
    classes: Sequence[str],
    colours: Sequence[Sequence[int]] | None = None,
) -> Image.Image:
    """Return a mask as a picture that holds, per pixel, the mask value of its class, and shows classes as colours.

    Args:
        mask: ``[H, W]`` class numbers.
        values: Mask value of each class; beyond 255 the picture has 16 bits and no colours.
        classes: Names of the classes.
        colours: As for :func:`palette_of`.
    """
    stored = np.asarray(values)[mask]
    if max(values) > 255:
        return Image.fromarray(stored.astype(np.uint16))
    palette = np.zeros((256, 3), dtype=np.uint8)
    palette[list(values)] = palette_of(classes, colours)
    picture = Image.fromarray(stored.astype(np.uint8), mode="P")
    picture.putpalette(palette.tobytes())
    return picture
