"""The picture of attention shows the mean over queries of the N x N weights that are never written down."""

import pytest
import timm
import torch

import linvit
from linvit.analysis.attention import attention_received, has_attention
from linvit.ops import elu_plus_one


def test_equals_the_explicit_weights(run_folder):
    model = linvit.load_model(run_folder)
    images = torch.randn(2, 3, 96, 64)
    mixer = model.stages[3].blocks[0].token_mixer  # 3x2 positions
    caught = []
    handle = mixer.qk.register_forward_hook(lambda m, i, out: caught.append(elu_plus_one(out)))
    received = attention_received(model, images)
    handle.remove()
    q, k = caught[0].flatten(2).chunk(2, dim=1)  # one head of 32 channels
    weights = q.transpose(1, 2) @ k
    weights = weights / weights.sum(dim=-1, keepdim=True)
    torch.testing.assert_close(received, weights.mean(dim=1).unflatten(1, (3, 2)))
    torch.testing.assert_close(received.sum(dim=(1, 2)), torch.ones(2))


def test_small_images_are_looked_at_in_an_earlier_stage(run_folder):
    assert attention_received(linvit.load_model(run_folder), torch.randn(1, 3, 64, 64)).shape == (1, 4, 4)


def test_leaves_no_hooks_behind(run_folder):
    model = linvit.load_model(run_folder)
    attention_received(model, torch.randn(1, 3, 64, 64))
    assert not any(module._forward_hooks for module in model.modules())


def test_other_models_are_named():
    model = timm.create_model("test_resnet")
    assert not has_attention(model)
    with pytest.raises(ValueError, match="ResNet has no CARE attention"):
        attention_received(model, torch.randn(1, 3, 64, 64))
