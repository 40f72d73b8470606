"""A part that is frozen is zero before, during and after the training."""

from types import SimpleNamespace

import pytest
import timm
import torch

import linvit  # noqa: F401 -- registers the models
from linvit.studies import Frozen

ARGS = {"img_size": 32, "patch_size": 8, "embed_dim": 12, "depth": 2, "num_heads": 3, "num_classes": 3}


def host():
    torch.manual_seed(0)
    return timm.create_model("flatten_deit_tiny", **ARGS)


def test_frozen_convolutions_leave_the_attention_alone():
    model = host()
    module = torch.nn.ModuleDict({"model": model})
    Frozen("*.attn.dwc.*").setup(SimpleNamespace(), module, "fit")
    images = torch.randn(2, 3, 32, 32)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(images).sum().backward()
    optimizer.step()
    for block in model.blocks:
        assert not block.attn.dwc.weight.any()
        assert not block.attn.dwc.bias.any()
    assert host().blocks[0].attn.dwc.weight.any(), "without it they are drawn at random"


def test_a_pattern_that_matches_nothing_is_refused():
    with pytest.raises(ValueError, match="matches no parameter"):
        Frozen("*.nothing.*").setup(SimpleNamespace(), torch.nn.ModuleDict({"model": host()}), "fit")
