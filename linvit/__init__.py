"""linvit: linear-complexity vision transformers. Importing it registers every model with timm."""

from linvit import models
from linvit.checkpoints import load_checkpoint, load_model, save_model
from linvit.linearization import linearize, linearize_report
from linvit.models import list_models

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
