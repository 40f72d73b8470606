"""Images and data sets. Only the data modules need Lightning, which is imported when one of them is first used."""

import importlib
from typing import TYPE_CHECKING, Any

from linvit.data.datasets import ImageFolder, Mnist5k, collate
from linvit.data.images import IMAGE_EXTENSIONS, UnreadableImage, find_images, load_image
from linvit.data.sources import eval_dataset

if TYPE_CHECKING:
    from linvit.data.classification import ClassificationData
    from linvit.data.detection import DetectionData
    from linvit.data.pretraining import PretrainData
    from linvit.data.segmentation import SegmentationData

__all__ = [
    "IMAGE_EXTENSIONS",
    "ClassificationData",
    "DetectionData",
    "ImageFolder",
    "Mnist5k",
    "PretrainData",
    "SegmentationData",
    "UnreadableImage",
    "collate",
    "eval_dataset",
    "find_images",
    "load_image",
]


_MODULES = {
    "ClassificationData": "classification",
    "DetectionData": "detection",
    "PretrainData": "pretraining",
    "SegmentationData": "segmentation",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
