"""Small models of all families, and what the tests of clients share."""

from collections.abc import Iterator

import pytest
import timm
import torch

from tests.models.test_transforms import SMALL as SMALLEST

SMALL = SMALLEST | {"flatten_deit_tiny": {"depth": 12, "embed_dim": 24}}  # whose features are four of its blocks


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    torch.manual_seed(0)
    yield
    torch.set_grad_enabled(True)


@pytest.fixture(params=SMALL)
def name(request) -> str:
    return request.param


@pytest.fixture
def small(name):
    """Build the small model of the family."""

    def build(**kwargs) -> torch.nn.Module:
        return timm.create_model(name, **SMALL[name] | {"img_size": 64} | kwargs)

    return build
