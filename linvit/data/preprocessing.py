"""From an image file's pixels to what a classifier takes: its own size, channels, mean and deviation."""

from typing import Any

from timm.data import create_transform
from torchvision.transforms import Compose, Grayscale

__all__ = ["check_channels", "transform_for"]


def check_channels(channels: int, what: str = "the model") -> None:
    """Raise a ValueError unless images of so many channels can be read from files."""
    if channels not in (1, 3):
        raise ValueError(
            f"{what} takes images of {channels} channels, and image files have 3, or 1 where they are grey"
        )


def transform_for(config: dict[str, Any]) -> Compose:
    """Return the preprocessing of evaluation for an RGB image of any size; one channel sees it in grey.

    Args:
        config: What a model sees, under timm's names.

    Raises:
        ValueError: It takes other channels than image files have.
    """
    channels = config["input_size"][0]
    check_channels(channels)
    transform: Any = create_transform(**config)
    return transform if channels == 3 else Compose([Grayscale(), *transform.transforms])
