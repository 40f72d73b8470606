"""Attention mechanisms as modules over :mod:`linvit.ops`, one file each."""

from linvit.attention._common import TokenAttention
from linvit.attention.care import CareTokenMixer, DualInteraction, StackedTokenMixer
from linvit.attention.focused import FocusedLinearAttention
from linvit.attention.key_only import INTERACTIONS, KeyOnlyAttention
from linvit.attention.linear import LinearAttention, RankRestoredLinearAttention
from linvit.attention.mechanisms import MECHANISMS, build_attention
from linvit.attention.softmax import SoftmaxAttention
from linvit.attention.window import StripeAttention, WindowAttention

__all__ = [
    "INTERACTIONS",
    "MECHANISMS",
    "CareTokenMixer",
    "DualInteraction",
    "FocusedLinearAttention",
    "KeyOnlyAttention",
    "LinearAttention",
    "RankRestoredLinearAttention",
    "SoftmaxAttention",
    "StackedTokenMixer",
    "StripeAttention",
    "TokenAttention",
    "WindowAttention",
    "build_attention",
]
