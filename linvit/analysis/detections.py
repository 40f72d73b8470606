"""Pictures of detections: boxes, classes, scores and masks on the image."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from linvit.files import atomic_write

__all__ = ["Detection", "draw_detections"]

COLOURS = ("#e11d48", "#2563eb", "#16a34a", "#d97706", "#9333ea", "#0891b2", "#db2777", "#65a30d", "#dc2626", "#4f46e5")
LEAST_SIDE = 480  # smaller pictures are enlarged, or their labels would cover them


@dataclass
class Detection:
    """One thing on an image: its box (left, top, right, bottom in pixels), class, score and mask ``[H, W]``."""

    box: Sequence[float]
    name: str
    index: int  # of the class, which gets its colour
    score: float
    mask: np.ndarray | None = None


def draw_detections(image: Image.Image, detections: Sequence[Detection], path: str | Path) -> None:
    """Write a PNG of an image with what was found on it; the best comes on top."""
    scale = max(1, -(-LEAST_SIDE // max(image.size)))
    picture = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    best_last = sorted(detections, key=lambda each: each.score)
    for each in best_last:
        if each.mask is not None:
            picture.paste(_colour(each), mask=_half(each.mask).resize(picture.size, Image.Resampling.NEAREST))
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=max(11, max(picture.size) // 60))
    width = max(2, max(picture.size) // 400)
    for each in best_last:
        box = [value * scale for value in each.box]
        draw.rectangle(box, outline=_colour(each), width=width)
        label = f"{each.name} {each.score:.0%}"
        right, bottom = draw.textbbox((0, 0), label, font=font)[2:]
        x = min(max(box[0], 0), max(0, picture.width - right - 4))
        y = box[1] - bottom - 2 if box[1] >= bottom + 2 else box[1] + width  # inside where there is no room above
        draw.rectangle([x, y, x + right + 4, y + bottom + 2], fill=_colour(each))
        draw.text((x + 2, y), label, fill="white", font=font)
    with atomic_write(path) as temporary:
        picture.save(temporary, format="PNG")


def _colour(detection: Detection) -> str:
    return COLOURS[detection.index % len(COLOURS)]


def _half(mask: np.ndarray) -> Image.Image:
    return Image.fromarray(mask.astype(np.uint8) * 128)
