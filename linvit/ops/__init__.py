"""The mathematics of linear-complexity attention, as functions on tensors; a folder for each operator.

Each operator is a reference that reads like its formula and, beside it, the fast version that models use. What all of
them need of symbolic tracing, autocast and the choice between the two is in :mod:`linvit.ops.dispatch`.
"""

from linvit.ops.dispatch import BACKENDS, use_backend
from linvit.ops.feature_maps import elu_plus_one, focus, focus_reference, relu
from linvit.ops.focused import focus_folded, focused_linear_attention, focused_linear_attention_reference
from linvit.ops.key_only import (
    global_context,
    global_context_reference,
    key_saliency,
    key_saliency_reference,
    local_context,
    local_context_by_heads,
    local_context_reference,
    modulate,
)
from linvit.ops.linear import attend, attend_columns, linear_attention, linear_attention_reference
from linvit.ops.positions import positions_on_grid, resize_positions
from linvit.ops.precision import accumulation_dtype
from linvit.ops.window import window_attention, window_attention_reference

__all__ = [
    "BACKENDS",
    "accumulation_dtype",
    "attend",
    "attend_columns",
    "elu_plus_one",
    "focus",
    "focus_folded",
    "focus_reference",
    "focused_linear_attention",
    "focused_linear_attention_reference",
    "global_context",
    "global_context_reference",
    "key_saliency",
    "key_saliency_reference",
    "linear_attention",
    "linear_attention_reference",
    "local_context",
    "local_context_by_heads",
    "local_context_reference",
    "modulate",
    "positions_on_grid",
    "relu",
    "resize_positions",
    "use_backend",
    "window_attention",
    "window_attention_reference",
]
