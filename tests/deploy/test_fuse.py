"""A fused model computes what the trained one computes, in every family and at any size."""

import copy
import pickle

import pytest
import timm
import torch
from torch import nn

import linvit
from linvit.deploy import fuse, fuse_report
from linvit.deploy.fusion import separate_groups
from tests.golden import relative_error
from tests.models import every_model

BOUNDS = [(torch.float64, 1e-10), (torch.float32, 1e-5)]
SIZES = [(64, 96), (37, 75)]


@torch.no_grad()
def lived_in(model: nn.Module) -> nn.Module:
    """Give a model weights in which nothing can hide: no statistic, gain, shift or position is at its start."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            module.weight.uniform_(0.5, 1.5, generator=generator)
            module.bias.normal_(0, 0.3, generator=generator)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.5, generator=generator)
            module.running_var.uniform_(0.3, 3.0, generator=generator)
            module.weight[0] = 0.0  # a dead channel: its scale cannot be divided by
    for name, tensor in model.named_parameters():
        if name.endswith("gamma"):
            tensor.uniform_(0.2, 1.0, generator=generator)
        elif name.endswith((".scale", "positional_encoding", "pos_embed", "bias_table")):
            tensor.normal_(0, 0.5, generator=generator)
        elif name.endswith(".bias") and not tensor.any():
            tensor.normal_(0, 0.1, generator=generator)
    return model.eval()


def assert_same(model: nn.Module, fused: nn.Module, dtype: torch.dtype, bound: float, sizes=SIZES) -> None:
    model, fused = model.to(dtype), fused.to(dtype)
    for size in sizes:
        images = torch.randn(2, 3, *size, dtype=dtype, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            expected, actual = model(images), fused(images)
        for one, other in zip(_maps(actual), _maps(expected), strict=True):
            assert relative_error(one, other) < bound


def _maps(output: torch.Tensor | list[torch.Tensor]) -> list[torch.Tensor]:
    return [output] if isinstance(output, torch.Tensor) else list(output)


@every_model
def test_fused_model_computes_the_same_and_leaves_the_original_alone(name):
    model = lived_in(timm.create_model(name, num_classes=10))
    before = copy.deepcopy(model.state_dict())
    exact = fuse(copy.deepcopy(model).double())
    fused = fuse(model)
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert_same(model, fused, *BOUNDS[1])
    assert_same(model, exact, *BOUNDS[0], sizes=SIZES[1:])


@pytest.mark.parametrize("name", ["care_s0", "care_s2"])
@pytest.mark.parametrize("features", [False, True])
def test_separate_groups_compute_the_same(name, features):
    args = {"features_only": True} if features else {"num_classes": 10}
    model = lived_in(timm.create_model(name, **args))
    assert_same(model, separate_groups(fuse(model)), *BOUNDS[1])
    assert_same(model, separate_groups(fuse(copy.deepcopy(model).double())), *BOUNDS[0])


def test_separate_groups_split_nothing_within_a_stage():
    model = separate_groups(fuse(timm.create_model("care_s0", num_classes=10)))
    program = torch.export.export(model, (torch.randn(1, 3, 64, 64),))
    splits = [node for node in program.graph.nodes if "split" in str(node.target) or "chunk" in str(node.target)]
    assert len(splits) == 2 + 2 * 6  # a stage that attends is entered by one; the six blocks before have two each


@every_model
def test_fused_backbone_computes_the_same_maps(name):
    model = lived_in(timm.create_model(name, features_only=True))
    assert_same(model, fuse(model), *BOUNDS[1], sizes=SIZES[1:])


@pytest.mark.parametrize("attention", ["focused", "linear", "relu", "key_only", "softmax"])
@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("deit3_small_patch16_224", {"depth": 2, "embed_dim": 48, "num_heads": 3, "img_size": 64}),
        ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1), "embed_dim": 24, "img_size": 64}),
    ],
)
def test_fused_linearized_model_computes_the_same(name, args, attention):
    args = args | ({"dynamic_img_size": True} if "deit" in name else {"strict_img_size": False})
    model = lived_in(linvit.linearize(timm.create_model(name, num_classes=5, **args), attention))
    assert_same(model, fuse(model), *BOUNDS[1], sizes=[(64, 64)])


@pytest.mark.parametrize("interaction", ["modulate", "gate", "local_global"])
def test_fused_key_only_attention_computes_the_same(interaction):
    args = {"depths": (2, 2, 2, 2), "embed_dims": (8, 16, 40, 64), "interaction": interaction}
    model = lived_in(timm.create_model("linglo_b0", num_classes=5, **args))
    assert_same(model, fuse(model), *BOUNDS[1], sizes=SIZES[1:])


@pytest.mark.parametrize("changes", [{"mixing": "stacked"}, {"memory": False}])
def test_fused_care_that_is_there_to_compare_with_computes_the_same(changes):
    small = {"depths": (1, 1, 2, 1), "dims": (4, 4, 16, 32), "num_classes": 5}
    model = lived_in(timm.create_model("care_s0", **small, **changes))
    fused = fuse(model)
    assert_same(model, fused, *BOUNDS[1], sizes=SIZES[1:])
    assert_same(model, separate_groups(fused), *BOUNDS[1], sizes=SIZES[1:])


def test_report_counts_what_went():
    model = timm.create_model("care_s0", depths=(1, 1, 1, 1), dims=(4, 4, 16, 32))
    fused = fuse(model)
    removed = fuse_report(fused).removed
    assert removed["BatchNorm"] == 1 + 3 + 2 * 4  # stem, downsampling, two in each block
    assert removed["layer scale"] == 3
    assert removed["classifier of CARE"] == 2
    assert removed["weight"] > model.head.fc.weight.numel()
    assert "BatchNorm" in str(fuse_report(fused))


def test_fused_heads_keep_their_interface():
    model = lived_in(timm.create_model("care_s0", depths=(1, 1, 1, 1), dims=(4, 4, 16, 32), num_classes=7))
    fused = fuse(model)
    images = torch.randn(2, 3, 64, 64)
    features = fused.forward_features(images)
    torch.testing.assert_close(fused.forward_head(features), model(images), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        fused.forward_head(features, pre_logits=True),
        model.forward_head(model.forward_features(images), pre_logits=True),
        rtol=1e-4,
        atol=1e-5,
    )
    with pytest.raises(ValueError, match="can only be reset to 0, got 5"):
        fused.reset_classifier(5)
    fused.reset_classifier(0)
    assert fused(images).shape == (2, model.num_features)


def test_chain_folds_a_batch_norm_on_either_side_but_not_over_a_border():
    def norm() -> nn.Module:
        return lived_in(nn.Sequential(nn.BatchNorm2d(4)))[0]

    chain = nn.Sequential(norm(), nn.Conv2d(4, 6, 1), nn.GELU(), nn.Conv2d(6, 4, 3, padding=1, bias=False), norm())
    border = nn.Sequential(norm(), nn.Conv2d(4, 4, 3, padding=1)).eval()
    between = nn.Sequential(nn.Conv2d(4, 4, 3), norm(), nn.Conv2d(4, 4, 1))
    model = nn.Sequential(chain, border, between).eval()
    fused = fuse(model)
    x = torch.randn(2, 4, 9, 7)
    torch.testing.assert_close(fused(x), model(x), rtol=1e-5, atol=1e-5)
    assert fuse_report(fused).removed["BatchNorm"] == 3
    assert isinstance(fused.model[1][0], nn.BatchNorm2d)


def test_training_mode_is_refused():
    model = timm.create_model("care_s0", depths=(1, 1, 1, 1), dims=(4, 4, 16, 32))
    fused = fuse(model.train())
    assert model.training
    assert not fused.training
    assert not any(parameter.requires_grad for parameter in fused.parameters())
    with pytest.raises(ValueError, match="for inference alone"):
        fused.train()
    assert fused.eval() is fused
    with pytest.raises(ValueError, match="Care is fused already"):
        fuse(fused)
    with pytest.raises(ValueError, match="Care is not fused"):
        fuse_report(model)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("care_s0", {"depths": (1, 1, 1, 1), "dims": (4, 4, 16, 32)}),
        ("care_s0", {"depths": (1, 1, 1, 1), "dims": (4, 4, 16, 32), "features_only": True}),
        ("flatten_swin_tiny", {"depths": (1, 1, 1, 1), "embed_dim": 24, "img_size": 64}),
        ("linglo_b0", {"depths": (1, 1, 1, 1), "embed_dims": (8, 16, 40, 64)}),
    ],
)
@pytest.mark.parametrize("separate", [False, True])
def test_fused_models_are_copied_and_pickled_as_any_module(name, args, separate):
    fused = fuse(lived_in(timm.create_model(name, **args)))
    fused = separate_groups(fused) if separate else fused
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = _maps(fused(images))
        for again in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
            assert fuse_report(again) == fuse_report(fused)
            assert type(again) is type(fused)
            for parameter in again.parameters():
                parameter.zero_()
            assert not torch.equal(_maps(again(images))[-1], expected[-1])
            again.load_state_dict(fused.state_dict())
            for one, other in zip(_maps(again(images)), expected, strict=True):
                torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_fused_linearized_model_is_pickled_with_its_grid():
    args = {"depth": 2, "embed_dim": 48, "num_heads": 3, "img_size": 64, "num_classes": 5, "dynamic_img_size": True}
    fused = fuse(lived_in(linvit.linearize(timm.create_model("deit3_small_patch16_224", **args))))
    again = pickle.loads(pickle.dumps(fused))
    for size in ((64, 64), (96, 64)):
        images = torch.randn(1, 3, *size)
        torch.testing.assert_close(again(images), fused(images), rtol=0, atol=0)


def test_fused_model_has_the_interface_of_the_model():
    model = lived_in(timm.create_model("care_s0", depths=(1, 1, 1, 1), dims=(4, 4, 16, 32), num_classes=7))
    fused = fuse(model)
    images = torch.randn(1, 3, 64, 64)
    maps = fused.forward_intermediates(images, intermediates_only=True)
    for one, other in zip(maps, model.forward_intermediates(images, intermediates_only=True), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    assert (fused.num_classes, fused.num_features) == (7, model.num_features)
    assert fused.pretrained_cfg == model.pretrained_cfg
    assert isinstance(fused.get_classifier(), nn.Module)
    with pytest.raises(AttributeError, match="no_such_thing"):
        fused.no_such_thing  # noqa: B018
