"""Images and data sets. Only ``ClassificationData`` needs Lightning, which is imported when that name is first used."""

from typing import TYPE_CHECKING, Any

from linvit.data.datasets import ImageFolder, Mnist5k, collate, eval_dataset
from linvit.data.images import IMAGE_EXTENSIONS, UnreadableImage, find_images, load_image

if TYPE_CHECKING:
    from linvit.data.classification import ClassificationData

__all__ = [
    "IMAGE_EXTENSIONS",
    "ClassificationData",
    "ImageFolder",
    "Mnist5k",
    "UnreadableImage",
    "collate",
    "eval_dataset",
    "find_images",
    "load_image",
]


def __getattr__(name: str) -> Any:
    if name == "ClassificationData":
        from linvit.data.classification import ClassificationData

        return ClassificationData
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
