"""Learned tables with one vector per grid position, carried over to grids of another size."""

import torch
import torch.nn.functional as F

from linvit.ops.dispatch import operator
from linvit.ops.sizes import surely_equal

__all__ = ["positions_on_grid", "resize_positions"]


@operator(autocast=True)
def resize_positions(table: torch.Tensor, old: list[int], new: list[int]) -> torch.Tensor:
    """Interpolate a table ``[1, h w, C]`` of the grid ``old = [h, w]`` bilinearly to the grid ``new = [H, W]``.

    Returns:
        ``[1, H W, C]``; the table itself where the grids are the same. In an export for any size, where they are
        symbols, it is interpolated always, which changes nothing on the same grid.
    """
    if torch.jit.is_scripting():
        same = old[0] == new[0] and old[1] == new[1]
    else:
        same = surely_equal(old[0], new[0]) and surely_equal(old[1], new[1])
    if same:
        return table
    grid = table.reshape(1, old[0], old[1], -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(new[0], new[1]), mode="bilinear", align_corners=False)
    return grid.flatten(2).transpose(1, 2)


@operator(autocast=True)
def positions_on_grid(
    table: torch.Tensor, native: list[int], grid: list[int], num_tokens: int, num_prefix_tokens: int = 0
) -> torch.Tensor:
    """Return what to add to a sequence of ``num_tokens``: zeros for its prefix tokens, then the table on ``grid``.

    Args:
        table: One vector per position of the native grid, ``[1, h w, C]``.
        native: ``[h, w]``.
        grid: ``[H, W]``, the grid of the tokens after the prefix.
        num_tokens: Length N of the sequence.
        num_prefix_tokens: Tokens before the grid (class token, registers).

    Returns:
        ``[1, N, C]``.

    Raises:
        ValueError: ``num_tokens`` is not ``num_prefix_tokens + H W``.
    """
    if num_tokens != num_prefix_tokens + grid[0] * grid[1]:
        raise ValueError(
            f"got {num_tokens} tokens for {num_prefix_tokens} prefix tokens and a grid of {grid[0]} x {grid[1]}"
        )
    positions = resize_positions(table, native, grid)
    return F.pad(positions, (0, 0, num_prefix_tokens, 0)) if num_prefix_tokens else positions
