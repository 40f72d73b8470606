"""Training: one Lightning module per task, their callbacks, and the run folder.

Names are looked up when first used, so that importing this does not import Lightning.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from linvit.tasks.classification import ClassificationTask
    from linvit.tasks.detection import DetectionTask
    from linvit.tasks.linearize import LinearizeTask
    from linvit.tasks.pretrain import PretrainTask
    from linvit.tasks.segmentation import SegmentationTask

__all__ = ["ClassificationTask", "DetectionTask", "LinearizeTask", "PretrainTask", "SegmentationTask"]

_MODULES = {
    "ClassificationTask": "classification",
    "DetectionTask": "detection",
    "LinearizeTask": "linearize",
    "PretrainTask": "pretrain",
    "SegmentationTask": "segmentation",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
