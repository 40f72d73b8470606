"""The mechanisms by name, for hosts that can hold any of them."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from linvit.attention._common import TokenAttention
from linvit.attention.focused import FocusedLinearAttention
from linvit.attention.key_only import KeyOnlyAttention
from linvit.attention.linear import LinearAttention, RankRestoredLinearAttention
from linvit.attention.softmax import SoftmaxAttention

__all__ = ["MECHANISMS", "build_attention"]

MECHANISMS: dict[str, Callable[..., TokenAttention]] = {
    "focused": FocusedLinearAttention,
    "linear": partial(LinearAttention, feature_map="elu"),
    "linear_rank": partial(RankRestoredLinearAttention, feature_map="elu"),
    "relu": partial(LinearAttention, feature_map="relu"),
    "relu_rank": partial(RankRestoredLinearAttention, feature_map="relu"),
    "key_only": KeyOnlyAttention,
    "softmax": SoftmaxAttention,
}
"""Mechanisms with one interface. Softmax is there to compare with: all tokens attend to all."""


def build_attention(
    name: str, dim: int, grid_size: int | Sequence[int], num_heads: int, focus: dict[str, Any], **kwargs: Any
) -> TokenAttention:
    """Build a mechanism.

    Args:
        name: One of :data:`MECHANISMS`.
        dim: Channels.
        grid_size: Height and width of the native grid, in tokens.
        num_heads: Heads.
        focus: Arguments of the focused mechanism alone.
        **kwargs: Arguments that every mechanism has.

    Raises:
        ValueError: There is no such mechanism.
    """
    if name not in MECHANISMS:
        raise ValueError(f"attention must be one of {', '.join(MECHANISMS)}, got {name!r}")
    own = focus if name == "focused" else {}
    return MECHANISMS[name](dim, grid_size, num_heads, **own, **kwargs)
