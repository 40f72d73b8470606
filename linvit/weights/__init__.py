"""Where weights come from: read a checkpoint file, fit it to a model, fetch a published one."""

from linvit.weights.fetch import fetch_published
from linvit.weights.fit import Fit, as_tuple, compare, prepare_state_dict
from linvit.weights.read import SUFFIXES, read_state_dict
from linvit.weights.tables import resize_tables

__all__ = [
    "SUFFIXES",
    "Fit",
    "as_tuple",
    "compare",
    "fetch_published",
    "prepare_state_dict",
    "read_state_dict",
    "resize_tables",
]
