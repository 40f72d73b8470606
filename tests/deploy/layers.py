"""Layers that are hard to hold in 8 bits, for the tests of several formats."""

import torch


class Normalised(torch.nn.Module):
    """Attention whose weights differ by much from token to token before they are normalised."""

    def __init__(self):
        super().__init__()
        self.register_buffer("size", 2.0 ** -torch.arange(6)[:, None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = x[:, :1].flatten(2).sigmoid() * self.size
        return (weights @ x[:, 1:].flatten(2).transpose(1, 2)) / weights.sum(dim=2, keepdim=True)
