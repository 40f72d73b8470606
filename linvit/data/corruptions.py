"""Corrupted images as in ImageNet-C (Hendrycks and Dietterich, 2019), made as they are needed.

All nineteen corruptions in five severities, by the package imagecorruptions (its kept branch, imagecorruptions-imaug).
"""

import zlib

import numpy as np
from PIL import Image

__all__ = ["CORRUPTIONS", "SEVERITIES", "Corruption"]

CORRUPTIONS = (
    *("gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression"),
    *("speckle_noise", "gaussian_blur", "spatter", "saturate"),
)
"""The benchmark's fifteen, and the four that it keeps for validation."""

SEVERITIES = range(1, 6)

_OWN_SEED = ("impulse_noise", "glass_blur")  # these do not listen to NumPy's global generator


class Corruption:
    """Corrupts an image: a function of its pixels alone, the same whenever it is evaluated.

    Args:
        name: One of CORRUPTIONS.
        severity: From 1 to 5.

    Raises:
        ValueError: There is no such corruption or severity.
        ModuleNotFoundError: The package is missing; the message says what to install.
    """

    def __init__(self, name: str, severity: int) -> None:
        if name not in CORRUPTIONS:
            raise ValueError(f"corruption must be one of {', '.join(CORRUPTIONS)}, not {name!r}")
        if severity not in SEVERITIES:
            raise ValueError(f"severity must be from 1 to 5, not {severity!r}")
        try:
            import imagecorruptions  # noqa: F401 -- slow to import: only where it is used
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f'corruptions need {error.name}: pip install "linvit[robust]"') from error
        self.name, self.severity = name, severity

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the corrupted image, in mode RGB and of the same size.

        Raises:
            ValueError: A side is shorter than 32 pixels.
        """
        from imagecorruptions import corrupt

        if min(image.size) < 32:
            raise ValueError(f"an image must have sides of at least 32 pixels to be corrupted, got {image.size}")
        pixels = np.asarray(image.convert("RGB"))
        seed = zlib.crc32(pixels.tobytes())
        before = np.random.get_state()
        np.random.seed(seed)
        try:
            options = {"seed": seed} if self.name in _OWN_SEED else {}
            pixels = corrupt(pixels, corruption_name=self.name, severity=self.severity, **options)
        finally:
            np.random.set_state(before)
        return Image.fromarray(pixels)
