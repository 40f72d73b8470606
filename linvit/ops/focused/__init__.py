"""Focused linear attention: linear attention over sharpened features, for all heads at once.

Source: Han et al., "FLatten Transformer: Vision Transformer using Focused Linear Attention" (ICCV 2023,
https://arxiv.org/abs/2308.00442), section 4, with the learned scale and the epsilons of the published code.
"""

from linvit.ops.focused.fast import focused_linear_attention
from linvit.ops.focused.inference import focus_folded
from linvit.ops.focused.reference import focused_linear_attention_reference

__all__ = ["focus_folded", "focused_linear_attention", "focused_linear_attention_reference"]
