"""The mathematics of linear-complexity attention, as functions on tensors.

Each operator is a reference that reads like its formula and, beside it, the fast version that models use.
"""

from linvit.ops.feature_maps import elu_plus_one, focused, focused_reference, relu
from linvit.ops.linear_attention import linear_attention, linear_attention_reference

__all__ = [
    "elu_plus_one",
    "focused",
    "focused_reference",
    "linear_attention",
    "linear_attention_reference",
    "relu",
]
