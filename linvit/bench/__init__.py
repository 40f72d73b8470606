"""Measure speed honestly: sides of a comparison take turns in one run, and medians are quoted."""

from linvit.bench.timing import median, take_turns

__all__ = ["median", "take_turns"]
