"""Attention mechanisms as modules over :mod:`linvit.ops`, one file each."""

from linvit.attention.care import CareTokenMixer, DualInteraction

__all__ = ["CareTokenMixer", "DualInteraction"]
