"""Key-only attention as its formulas, head by head and with the weights written out."""

import torch
import torch.nn.functional as F

__all__ = ["global_context_reference", "key_saliency_reference", "local_context_reference"]


def key_saliency_reference(
    x: torch.Tensor, key_weight: torch.Tensor, key_bias: torch.Tensor | None, u: torch.Tensor, num_heads: int
) -> torch.Tensor:
    """The formula: keys, then their product with ``u``; ``key_bias`` moves all saliencies of a head alike."""
    k = F.linear(x, key_weight, key_bias)
    return (k * u).reshape(x.shape[0], x.shape[1], num_heads, -1).sum(dim=-1)


def global_context_reference(saliency: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The formula, head by head."""
    weights = saliency.exp() / saliency.exp().sum(dim=1, keepdim=True)
    heads = v.chunk(saliency.shape[2], dim=2)
    contexts = [(weights[:, :, i : i + 1] * head).sum(dim=1, keepdim=True) for i, head in enumerate(heads)]
    return torch.cat(contexts, dim=2)


def local_context_reference(
    saliency: torch.Tensor, v: torch.Tensor, grid_size: list[int], kernel_size: int
) -> torch.Tensor:
    """The formula with the ``N x N`` weights of each head written out, zero outside the neighbourhoods; quadratic."""
    rows = torch.arange(grid_size[0], device=saliency.device).repeat_interleave(grid_size[1])
    cols = torch.arange(grid_size[1], device=saliency.device).repeat(grid_size[0])
    reach = kernel_size // 2
    near = ((rows[:, None] - rows).abs() <= reach) & ((cols[:, None] - cols).abs() <= reach)
    logits = saliency.transpose(1, 2).unsqueeze(2).masked_fill(~near, -torch.inf)  # [B, h, N, N]
    heads = v.unflatten(2, (saliency.shape[2], -1)).transpose(1, 2)
    return (logits.softmax(dim=-1) @ heads).transpose(1, 2).flatten(2)
