"""Pictures of detections: boxes, classes, scores and masks on the image."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

__all__ = ["Detection", "draw_detections"]

COLOURS = ("#e11d48", "#2563eb", "#16a34a", "#d97706", "#9333ea", "#0891b2", "#db2777", "#65a30d", "#dc2626", "#4f46e5")
Rectangle = tuple[float, float, float, float]  # left, top, right, bottom
LEAST_SIDE = 480  # smaller pictures are enlarged, or their labels would cover them


@dataclass
class Detection:
    """One thing on an image: its box (left, top, right, bottom in pixels), class, score and mask ``[H, W]``."""

    box: Sequence[float]
    name: str
    index: int  # of the class, which gets its colour
    score: float
    mask: np.ndarray | None = None


def draw_detections(image: Image.Image, detections: Sequence[Detection]) -> Image.Image:
    """Draw what was found onto an image; the best comes on top, and its label gets the first choice."""
    scale = max(1, -(-LEAST_SIDE // max(image.size)))
    picture = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    best_last = sorted(detections, key=lambda each: each.score)
    for each in best_last:
        if each.mask is not None:
            picture.paste(_colour(each), mask=_half(each.mask).resize(picture.size, Image.Resampling.NEAREST))
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=max(12, max(picture.size) // 60))
    width = max(2, max(picture.size) // 400)
    for each in best_last:
        draw.rectangle([value * scale for value in each.box], outline=_colour(each), width=width)
    taken: list[Rectangle] = []
    for each in reversed(best_last):
        label = f"{each.name} {each.score:.0%}"
        right, bottom = draw.textbbox((0, 0), label, font=font)[2:]
        box = tuple(value * scale for value in each.box)
        place = _label_place(box, (right + 4, bottom + 3), picture.size, taken)
        taken.append(place)
        draw.rectangle(place, fill=_colour(each))
        draw.text((place[0] + 2, place[1]), label, fill="white", font=font)
    return picture


def _label_place(
    box: Sequence[float], label: tuple[float, float], picture: tuple[int, int], taken: list[Rectangle]
) -> Rectangle:
    """Choose among the corners of a box, above and inside, the place where its label covers least of the others."""
    left, top, right, bottom = box
    wide, high = label
    corners = [(x, y) for y in (top - high, top, bottom - high, bottom) for x in (left, right - wide)]
    places = []
    for x, y in corners:
        x, y = min(max(x, 0), max(0, picture[0] - wide)), min(max(y, 0), max(0, picture[1] - high))
        places.append((x, y, x + wide, y + high))
    return min(places, key=lambda place: sum(_shared(place, other) for other in taken))


def _shared(a: Rectangle, b: Rectangle) -> float:
    """Return the area that two rectangles share."""
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))


def _colour(detection: Detection) -> str:
    return COLOURS[detection.index % len(COLOURS)]


def _half(mask: np.ndarray) -> Image.Image:
    return Image.fromarray(mask.astype(np.uint8) * 128)
