"""What models are used for: training as one Lightning module per task, and inference without Lightning.

Names are looked up when first used, so that inference does not import Lightning.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from linvit.tasks.classification import ClassificationTask

__all__ = ["ClassificationTask"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from linvit.tasks import classification

    return getattr(classification, name)
