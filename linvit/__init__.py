"""linvit: linear-complexity vision transformers. Importing it registers every model with timm."""

import timm

from linvit import models
from linvit.checkpoints import load_checkpoint, load_model, save_model
from linvit.linearize import linearize, linearize_report

__version__ = "0.1.0"
__all__ = [
    "linearize",
    "linearize_report",
    "list_models",
    "load_checkpoint",
    "load_model",
    "models",
    "save_model",
]


def list_models(filter: str = "*") -> list[str]:
    """Return the names of linvit's models that match a wildcard, for ``timm.create_model``."""
    return [name for name in timm.list_models(filter) if timm.model_entrypoint(name).__module__.startswith("linvit.")]
