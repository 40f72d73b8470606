"""Corrupted images as in ImageNet-C (Hendrycks and Dietterich, 2019), made as they are needed.

Nine of its nineteen corruptions, those that need nothing but arithmetic and Pillow: three kinds of noise, two of blur,
brightness, contrast, JPEG and pixelation, each in the benchmark's five severities. (The others need frost photographs
or rendered fog and snow; the published package for all of them does not run with current NumPy.) Figures are therefore
comparable with each other, and not with the benchmark's mean corruption error.
"""

import io
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

__all__ = ["CORRUPTIONS", "SEVERITIES", "Corruption"]

SEVERITIES = range(1, 6)


class Corruption:
    """Corrupts an image: a function of its pixels alone, the same whenever it is evaluated.

    Args:
        name: One of CORRUPTIONS.
        severity: From 1 to 5.

    Raises:
        ValueError: There is no such corruption or severity.
    """

    def __init__(self, name: str, severity: int) -> None:
        if name not in CORRUPTIONS:
            raise ValueError(f"corruption must be one of {', '.join(CORRUPTIONS)}, not {name!r}")
        if severity not in SEVERITIES:
            raise ValueError(f"severity must be from 1 to 5, not {severity!r}")
        self._function, strengths = CORRUPTIONS[name]
        self._strength = strengths[severity - 1]

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the corrupted image, in mode RGB and of the same size."""
        random = np.random.RandomState(zlib.crc32(image.tobytes()))
        return self._function(image, self._strength, random)


def _noise(image: Image.Image, add: Callable[[np.ndarray], np.ndarray]) -> Image.Image:
    pixels = add(np.asarray(image, dtype=np.float32) / 255)
    return Image.fromarray((pixels.clip(0, 1) * 255).astype(np.uint8))


def _gaussian_noise(image: Image.Image, scale: float, random: np.random.RandomState) -> Image.Image:
    return _noise(image, lambda pixels: pixels + random.normal(0, scale, pixels.shape))


def _shot_noise(image: Image.Image, photons: float, random: np.random.RandomState) -> Image.Image:
    return _noise(image, lambda pixels: random.poisson(pixels * photons) / photons)


def _impulse_noise(image: Image.Image, share: float, random: np.random.RandomState) -> Image.Image:
    def replace(pixels: np.ndarray) -> np.ndarray:
        chance = random.random_sample(pixels.shape)
        return np.where(chance < share / 2, 0.0, np.where(chance < share, 1.0, pixels))

    return _noise(image, replace)


def _gaussian_blur(image: Image.Image, radius: float, random: np.random.RandomState) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(radius))


def _defocus_blur(image: Image.Image, radius: float, random: np.random.RandomState) -> Image.Image:
    """Average over a disc, as a lens out of focus does."""
    reach = int(radius)
    pixels = np.pad(np.asarray(image, dtype=np.float32), ((reach, reach), (reach, reach), (0, 0)), mode="reflect")
    height, width = image.height, image.width
    total = np.zeros((height, width, 3), dtype=np.float32)
    offsets = [
        (y, x) for y in range(-reach, reach + 1) for x in range(-reach, reach + 1) if y * y + x * x <= radius * radius
    ]
    for y, x in offsets:
        total += pixels[reach + y : reach + y + height, reach + x : reach + x + width]
    return Image.fromarray((total / len(offsets)).astype(np.uint8))


def _brightness(image: Image.Image, plus: float, random: np.random.RandomState) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    brighter = value.point([min(255, round(level + 255 * plus)) for level in range(256)])
    return Image.merge("HSV", (hue, saturation, brighter)).convert("RGB")


def _contrast(image: Image.Image, share: float, random: np.random.RandomState) -> Image.Image:
    def flatten(pixels: np.ndarray) -> np.ndarray:
        mean = pixels.mean(axis=(0, 1), keepdims=True)
        return (pixels - mean) * share + mean

    return _noise(image, flatten)


def _jpeg(image: Image.Image, quality: float, random: np.random.RandomState) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=int(quality))
    return Image.open(buffer).convert("RGB")


def _pixelate(image: Image.Image, share: float, random: np.random.RandomState) -> Image.Image:
    small = max(1, int(image.width * share)), max(1, int(image.height * share))
    return image.resize(small, Image.Resampling.BOX).resize(image.size, Image.Resampling.BOX)


_Function = Callable[[Image.Image, float, np.random.RandomState], Image.Image]

CORRUPTIONS: dict[str, tuple[_Function, tuple[float, ...]]] = {
    "gaussian_noise": (_gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot_noise": (_shot_noise, (60, 25, 12, 5, 3)),
    "impulse_noise": (_impulse_noise, (0.03, 0.06, 0.09, 0.17, 0.27)),
    "gaussian_blur": (_gaussian_blur, (1, 2, 3, 4, 6)),
    "defocus_blur": (_defocus_blur, (3, 4, 6, 8, 10)),
    "brightness": (_brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": (_contrast, (0.4, 0.3, 0.2, 0.1, 0.05)),
    "jpeg_compression": (_jpeg, (25, 18, 15, 10, 7)),
    "pixelate": (_pixelate, (0.6, 0.5, 0.4, 0.3, 0.25)),
}
"""Each with its function and the strengths of its five severities, as the benchmark sets them."""
