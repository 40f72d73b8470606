"""Features as colours: what a model tells apart gets different ones."""

import torch
from torch import Tensor

__all__ = ["principal_colours"]

CUT = 0.02
"""Share of the positions at each end of a component that is cut off, so that a few do not darken all others."""


def principal_colours(maps: Tensor) -> Tensor:
    """Return the first three principal components of feature maps as red, green and blue, ``[N, 3, h, w]``, 0 to 1.

    Components are those of all positions of all maps together, so a colour means the same in each of them. Channels
    are brought to variance 1 before: a model's largest channels need not be those that say most.

    Args:
        maps: ``[N, C, h, w]``, three channels or more.

    Raises:
        ValueError: These are no such maps.
    """
    if maps.ndim != 4 or maps.shape[1] < 3:
        raise ValueError(f"maps must be [N, C, h, w] with 3 channels or more, got {list(maps.shape)}")
    count, _, height, width = maps.shape
    rows = maps.detach().double().permute(0, 2, 3, 1).flatten(0, 2)
    rows = rows - rows.mean(dim=0)
    deviation = rows.std(dim=0, correction=0)
    rows = rows / torch.where(deviation > 1e-9 * deviation.max(), deviation, torch.inf)  # a dead channel says nothing
    _, directions = torch.linalg.eigh(rows.T @ rows)
    directions = directions[:, -3:].flip(1)
    largest = directions.abs().argmax(dim=0)
    directions = directions * directions[largest, range(3)].sign()  # which end is the bright one is a convention
    said = rows @ directions
    low, high = torch.quantile(said, CUT, dim=0), torch.quantile(said, 1 - CUT, dim=0)
    colours = ((said - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    return colours.reshape(count, height, width, 3).permute(0, 3, 1, 2).float()
