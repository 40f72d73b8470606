"""Softmax attention inside windows of a map of any size.

Windows keep their size: the map is padded to whole windows and the padding masked, so that it changes nothing.
Sources: Swin Transformer (Liu et al., ICCV 2021, section 3.2) for shifted square windows with a relative position
bias, CSWin Transformer (Dong et al., CVPR 2022, section 3) for stripes with locally-enhanced positional encoding.
"""

from linvit.ops.window.fast import window_attention
from linvit.ops.window.reference import window_attention_reference

__all__ = ["window_attention", "window_attention_reference"]
