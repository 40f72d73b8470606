"""Where a fused model looks, as one more output: how much each position of a map is attended to."""

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["WithLooks", "received"]

LEAST = 25
"""Positions of the coarsest map that says where a model looks."""


def received(q: Tensor, k: Tensor) -> Tensor:
    """Return the mean over queries and heads of linear attention's weights, in linear time.

    The weights ``q_i . k_j / sum_j' q_i . k_j'`` are never written down: the queries are averaged first.

    Args:
        q: Features ``[B, h, N, d]``, non-negative, up to a factor for each query.
        k: Features ``[B, h, M, d]``, non-negative.

    Returns:
        ``[B, M]``, each row sums to 1.
    """
    normaliser = q @ k.sum(dim=2).unsqueeze(3)  # [B, h, N, 1]
    query = (q / normaliser).mean(dim=2)  # [B, h, d]
    return (k @ query.unsqueeze(3)).squeeze(3).mean(dim=1)


class WithLooks(nn.Module):
    """A fused classifier that also returns where the last of its attentions over a map of some detail looks.

    Args:
        model: The model.
        example: Images ``[B, C, H, W]`` of the size that it will see.

    Raises:
        ValueError: There is no such attention.
    """

    def __init__(self, model: nn.Module, example: Tensor):
        super().__init__()
        self.model = model
        modules: Any = model.modules()
        layers = [m for m in modules if hasattr(m, "received") and m.num_heads]
        maps = self._seen(layers, example)[1]
        fine = [layer for layer, each in zip(layers, maps, strict=True) if each[0].numel() >= LEAST]
        if not fine:
            raise ValueError("no attention of the model is over a map of any detail")
        self._chosen = fine[-1:]  # a list, so that it is no submodule a second time

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images to logits ``[B, classes]`` and shares ``[B, h, w]``."""
        logits, maps = self._seen(self._chosen, images)
        return logits, maps[0]

    def _seen(self, layers: list[Any], images: Tensor) -> tuple[Tensor, list[Tensor]]:
        maps: list[Tensor] = []
        handles = [
            layer.register_forward_hook(lambda layer, args, output: maps.append(layer.received(*args)))
            for layer in layers
        ]
        try:
            with torch.no_grad():
                return self.model(images), maps
        finally:
            for handle in handles:
                handle.remove()
