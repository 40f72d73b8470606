"""From a trained model to a file that other runtimes run, checked against the model."""

from linvit.deploy.export import Check, Export, export_model
from linvit.deploy.formats import FORMATS, find_format
from linvit.deploy.fusion import FuseReport, fuse, fuse_report, is_fused

__all__ = [
    "FORMATS",
    "Check",
    "Export",
    "FuseReport",
    "export_model",
    "find_format",
    "fuse",
    "fuse_report",
    "is_fused",
]
