"""What the ``pretrained_cfg`` of every family begins with."""

from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

__all__ = ["FEATURES", "imagenet_cfg"]

FEATURES = {"out_indices": (0, 1, 2, 3), "flatten_sequential": True}
"""How timm takes features from a model of four stages (``features_only=True``)."""


def imagenet_cfg(**kwargs: Any) -> dict[str, Any]:
    """Return a ``pretrained_cfg`` for 1,000 classes and 224 x 224 pixels; ``kwargs`` add to it or replace."""
    return {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stages.0.downsample.proj",
        "classifier": "head",
        **kwargs,
    }
