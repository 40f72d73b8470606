"""The focused feature map for fused models, whose learned scale lies in the projections before it."""

import torch

from linvit.ops.dispatch import operator
from linvit.ops.feature_maps import focus

__all__ = ["focus_folded"]


@operator()
def focus_folded(x: torch.Tensor, floor: torch.Tensor, power: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``y ** p`` and the factor of each row that restores the norm of y, for ``y = relu(x) + floor``.

    Args:
        x: Queries or keys ``[B, N, C]`` times the gain of each channel.
        floor: The epsilon of each channel, ``[C]`` or ``[1, 1, C]``, in at least float32; the results are of its type.
        power: The focusing power p.

    Returns:
        ``[B, N, C]`` and ``[B, N, 1]``.
    """
    x = x.to(floor.dtype).clamp(0.0, 65504.0) + floor
    if power > 3.0:  # the power could overflow
        return focus(x, power), torch.ones_like(x[..., :1])
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    x = x * x * x if power == 3.0 else x**power
    return x, norm / torch.linalg.vector_norm(x, dim=-1, keepdim=True)
