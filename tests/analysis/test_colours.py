"""Features as colours: components of all maps together, scaled, and the same on every call."""

import pytest
import torch

from linvit.analysis import principal_colours


def test_colours_are_the_first_three_principal_components() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 3, 8, 9, generator=generator)
    mix = torch.randn(3, 20, generator=generator)
    maps = torch.einsum("nchw,cd->ndhw", hidden, mix) * 10.0 ** torch.linspace(-2, 2, 20).view(1, -1, 1, 1) + 5
    colours = principal_colours(maps)
    assert colours.shape == (2, 3, 8, 9)
    assert colours.min() == 0
    assert colours.max() == 1
    # The same by a singular value decomposition, before the ends are cut off.
    rows = maps.double().permute(0, 2, 3, 1).reshape(-1, 20)
    rows = (rows - rows.mean(0)) / rows.std(0)
    components = torch.linalg.svd(rows, full_matrices=False).U[:, :3]
    ours = colours.double().permute(0, 2, 3, 1).reshape(-1, 3)
    between = (ours > 0) & (ours < 1)
    for i in range(3):
        pair = torch.stack((ours[:, i], components[:, i]))[:, between[:, i]]
        assert torch.corrcoef(pair)[0, 1].abs() > 0.9999
    assert torch.equal(colours, principal_colours(maps * 4)), "no matter how large the features are"


def test_a_dead_channel_and_wrong_maps() -> None:
    maps = torch.randn(1, 5, 4, 4)
    maps[:, 2] = 7
    assert principal_colours(maps).isfinite().all()
    with pytest.raises(ValueError, match=r"maps must be \[N, C, h, w\] with 3 channels or more, got \[1, 2, 4, 4\]"):
        principal_colours(maps[:, :2])
