"""Models, one file per family. Importing this package registers them with timm."""

import timm

from linvit.models.care import Care
from linvit.models.flatten_cswin import FlattenCswin
from linvit.models.flatten_deit import FlattenDeit
from linvit.models.flatten_pvt import FlattenPvt
from linvit.models.flatten_pvt_v2 import FlattenPvtV2
from linvit.models.flatten_swin import FlattenSwin
from linvit.models.linglo import Linglo

__all__ = ["Care", "FlattenCswin", "FlattenDeit", "FlattenPvt", "FlattenPvtV2", "FlattenSwin", "Linglo", "list_models"]


def list_models(filter: str = "*") -> list[str]:
    """Return the names of linvit's models that match a wildcard, for ``timm.create_model``."""
    return [name for name in timm.list_models(filter) if timm.model_entrypoint(name).__module__.startswith("linvit.")]
