"""Models, one file per family. Importing this package registers them with timm."""

from linvit.models.care import Care
from linvit.models.flatten_cswin import FlattenCswin
from linvit.models.flatten_deit import FlattenDeit
from linvit.models.flatten_pvt import FlattenPvt
from linvit.models.flatten_pvt_v2 import FlattenPvtV2
from linvit.models.flatten_swin import FlattenSwin

__all__ = ["Care", "FlattenCswin", "FlattenDeit", "FlattenPvt", "FlattenPvtV2", "FlattenSwin"]
