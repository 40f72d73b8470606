"""What is computed after training: every exact saving applied, and the layouts that a runtime wants."""

from linvit.deploy.fusion.rules import FusedModel, FuseReport, fuse, fuse_report, is_fused
from linvit.deploy.fusion.separate import separate_groups

__all__ = ["FuseReport", "FusedModel", "fuse", "fuse_report", "is_fused", "separate_groups"]
