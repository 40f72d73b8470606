"""Measure speed and memory honestly: contenders of a comparison take turns in one run, and medians are quoted."""

from linvit.bench.memory import peak_memory
from linvit.bench.timing import median, quartiles, take_turns

__all__ = ["median", "peak_memory", "quartiles", "take_turns"]
