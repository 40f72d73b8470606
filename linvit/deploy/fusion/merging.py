"""Swin's patch merging without tensors of more than four axes, which GPUs and NPUs of phones do not take."""

import torch
import torch.nn.functional as F
from timm.models.swin_transformer import PatchMerging
from torch import Tensor, nn

__all__ = ["FusedPatchMerging"]


class FusedPatchMerging(nn.Module):
    """Patch merging whose projection reads the four pixels row by row, as they lie, and not column by column.

    Args:
        merging: A layer whose norm has neither gain nor shift, which would have an order, too.
    """

    def __init__(self, merging: PatchMerging):
        super().__init__()
        self.norm, self.reduction = merging.norm, merging.reduction
        # Inputs of the projection: [column, row, C] to [row, column, C].
        order = torch.arange(self.reduction.in_features).reshape(2, 2, -1).transpose(0, 1).flatten()
        with torch.no_grad():
            self.reduction.weight.copy_(self.reduction.weight[:, order])

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, H, W, C]`` to ``[B, ceil(H / 2), ceil(W / 2), C']``."""
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        B, H, W, C = x.shape
        x = x.reshape(B * (H // 2), 2, W // 2, 2 * C).transpose(1, 2).reshape(B, H // 2, W // 2, 4 * C)
        return self.reduction(self.norm(x))
