"""Models, one file per family. Importing this package registers them with timm."""

from linvit.models.care import Care

__all__ = ["Care"]
