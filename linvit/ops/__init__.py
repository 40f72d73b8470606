"""The mathematics of linear-complexity attention, as functions on tensors.

Each operator is a reference that reads like its formula and, beside it, the fast version that models use.
"""

from linvit.ops.feature_maps import elu_plus_one, focused, focused_reference, relu
from linvit.ops.focused_attention import focused_linear_attention, focused_linear_attention_reference
from linvit.ops.key_only import (
    global_context,
    global_context_reference,
    key_saliency,
    key_saliency_reference,
    local_context,
    local_context_reference,
    modulate,
)
from linvit.ops.linear_attention import linear_attention, linear_attention_reference
from linvit.ops.positions import positions_on_grid, resize_positions
from linvit.ops.windows import window_attention

__all__ = [
    "elu_plus_one",
    "focused",
    "focused_linear_attention",
    "focused_linear_attention_reference",
    "focused_reference",
    "global_context",
    "global_context_reference",
    "key_saliency",
    "key_saliency_reference",
    "linear_attention",
    "linear_attention_reference",
    "local_context",
    "local_context_reference",
    "modulate",
    "positions_on_grid",
    "relu",
    "resize_positions",
    "window_attention",
]
