"""Tables of positions on other grids."""

import pytest
import torch

from linvit.ops import positions_on_grid, resize_positions


def table(height: int, width: int, channels: int = 3) -> torch.Tensor:
    return torch.randn(1, height * width, channels, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_native_grid_is_the_identity():
    native = table(5, 7)
    assert resize_positions(native, [5, 7], [5, 7]) is native


def test_doubling_by_hand():
    """Half-pixel centres: the new samples lie a quarter of a step beside the old ones, the ends stay."""
    row = torch.tensor([[[0.0], [4.0], [8.0]]])
    assert resize_positions(row, [1, 3], [1, 6]).flatten().tolist() == [0, 1, 3, 5, 7, 8]
    assert resize_positions(row, [3, 1], [6, 1]).flatten().tolist() == [0, 1, 3, 5, 7, 8]


@pytest.mark.parametrize("grid", [[1, 1], [3, 11], [14, 2]])
def test_rows_stay_rows(grid):
    """A table that depends on the row alone still does."""
    native = torch.arange(5.0).repeat_interleave(7).reshape(1, 35, 1)
    new = resize_positions(native, [5, 7], grid).reshape(grid)
    torch.testing.assert_close(new, new[:, :1].expand_as(new))
    assert (new[1:] > new[:-1]).all()


def test_prefix_tokens_get_zeros():
    native = table(5, 7)
    positions = positions_on_grid(native, [5, 7], [5, 7], 37, num_prefix_tokens=2)
    assert (positions[:, :2] == 0).all()
    assert torch.equal(positions[:, 2:], native)


def test_tokens_that_do_not_fit_are_counted():
    with pytest.raises(ValueError, match="got 36 tokens for 2 prefix tokens and a grid of 5 x 7"):
        positions_on_grid(table(5, 7), [5, 7], [5, 7], 36, num_prefix_tokens=2)
