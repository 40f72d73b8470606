"""CARE computes what the published code computes, in float64 to 1e-9 and in float32 to 1e-5."""

import pytest
import timm
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from linvit.attention import StackedTokenMixer
from linvit.models.care_reference import care_reference
from linvit.ops import elu_plus_one, linear_attention_reference
from tests.golden import load_golden, relative_error

PUBLISHED = {  # parameters (M), GMACs at 224
    "care_s0": (7.3, 0.7),
    "care_s1": (9.6, 1.0),
    "care_s2": (19.5, 1.9),
}


@pytest.fixture(scope="module", params=["care_s0", "care_s2"])
def golden(request):
    return {"name": request.param} | load_golden(request.param)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_parity_with_the_published_code(golden, dtype, bound):
    model = timm.create_model(golden["name"]).to(dtype).eval()
    model.load_state_dict(golden["weights"], strict=True)
    with torch.no_grad():
        pooled = model.forward_head(model.forward_features(golden["images"].to(dtype)), pre_logits=True)
        head, dist_head = model.head(pooled)[0], model.dist_head(pooled)[0]
        logits = model(golden["images"].to(dtype))[0]
    assert relative_error(logits, golden["logits"]) < bound
    assert relative_error(head[:16], golden["head_logits"]) < bound
    assert relative_error(dist_head[:16], golden["dist_head_logits"]) < bound


def test_names_and_shapes_are_the_published_ones(golden):
    state_dict = timm.create_model(golden["name"]).state_dict()
    assert {name: list(tensor.shape) for name, tensor in state_dict.items()} == golden["shapes"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameters_and_macs(name):
    params, gmacs = PUBLISHED[name]
    with torch.device("meta"):
        model = timm.create_model(name).eval()
        images = torch.zeros(1, 3, 224, 224)
    with FlopCounterMode(display=False) as counter:
        model(images)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == params
    assert round(counter.get_total_flops() / 2e9, 1) == gmacs


def random_care(**kwargs) -> torch.nn.Module:
    """A small CARE in float64 whose every block counts."""
    torch.manual_seed(0)
    args = {"depths": (1, 1, 2, 2), "dims": (4, 4, 8, 8), "head_dims": (None, None, 4, 8), "num_classes": 5}
    model = timm.create_model("care_s0", layer_scale_init_value=0.5, **args | kwargs).double()
    for norm in (m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        torch.nn.init.uniform_(norm.running_mean, -0.1, 0.1)
        torch.nn.init.uniform_(norm.running_var, 0.5, 1.5)
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    return model


def test_training_equals_the_plain_transcription_in_outputs_and_gradients():
    model = random_care().train()
    model.set_distilled_training()
    weights = {k: v.detach().clone().requires_grad_(v.is_floating_point()) for k, v in model.state_dict().items()}
    for name, tensor in weights.items():
        if "running" in name:
            tensor.requires_grad_(False)
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    outputs = model(images)
    expected = care_reference(weights, images, head_dims=(None, None, 4, 8), training=True)
    for a, b in zip(outputs, expected, strict=True):
        torch.testing.assert_close(a, b)
    outputs[0].square().sum().add(outputs[1].sum()).backward()
    expected[0].square().sum().add(expected[1].sum()).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, weights[name].grad, msg=lambda m, name=name: f"{name}: {m}")
    for name, buffer in model.named_buffers():
        if "running" in name:
            torch.testing.assert_close(buffer, weights[name])


def test_heads_average_unless_distilled_training():
    model = random_care()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    assert model.train()(images).shape == (2, 5)
    model.set_distilled_training()
    head, dist_head = model(images)
    assert not torch.equal(head, dist_head)
    model.eval()
    pooled = model.forward_head(model.forward_features(images), pre_logits=True)
    torch.testing.assert_close(model(images), (model.head(pooled) + model.dist_head(pooled)) / 2)


def test_padding_changes_nothing_at_multiples_of_32_and_keeps_every_pixel_elsewhere():
    model = random_care().eval()
    weights = model.state_dict()
    images = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    head, dist_head = care_reference(weights, images, head_dims=(None, None, 4, 8))
    torch.testing.assert_close(model(images), (head + dist_head) / 2)
    images = torch.randn(1, 3, 37, 1013, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(model(images).square().sum(), images)
    assert (gradient.abs().sum(dim=1) > 0).all()  # the last rows and columns count, too


def test_stochastic_depth_rises_linearly_and_reaches_the_last_block():
    model = timm.create_model("care_s0", drop_path_rate=0.17)
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for stage in model.stages for block in stage.blocks]
    assert rates == pytest.approx([0.01 * i for i in range(18)])


def test_layer_scale_starts_at_the_published_value():
    model = timm.create_model("care_s0")
    gammas = [p for name, p in model.named_parameters() if name.endswith("gamma")]
    assert len(gammas) == 17  # all blocks but the last
    assert all((gamma == 1e-6).all() for gamma in gammas)


def test_wrong_pool_is_named():
    with pytest.raises(ValueError, match="global_pool must be '' or 'avg', got 'max'"):
        timm.create_model("care_s0", global_pool="max")


# What the model is compared with


@torch.no_grad()
@pytest.mark.parametrize("head_dim", [None, 4])
def test_stacked_mixers_take_all_features_in_turn_and_add_to_their_input(head_dim):
    torch.manual_seed(0)
    mixer = StackedTokenMixer(8, head_dim).double()
    weights = dict(mixer.named_parameters())
    x = torch.randn(2, 24, 5, 6, dtype=torch.float64)

    def depthwise(name: str, x: torch.Tensor) -> torch.Tensor:
        weight = weights[f"{name}.weight"]
        return F.conv2d(x, weight, weights[f"{name}.bias"], padding=[s // 2 for s in weight.shape[2:]], groups=24)

    local = x + depthwise("dwconv1", x)
    local = local + depthwise("dwconv2", local)
    if head_dim is None:
        mixed = depthwise("dwconvatt_1", local) + depthwise("dwconvatt_2", local)
    else:
        q, k = elu_plus_one(F.conv2d(local, weights["qk.weight"], weights["qk.bias"])).chunk(2, dim=1)
        q, k, v = (t.flatten(2).unflatten(1, (6, 4)).transpose(2, 3) for t in (q, k, local))
        mixed = linear_attention_reference(q, k, v).transpose(2, 3).reshape(x.shape)
    torch.testing.assert_close(mixer(x), local + mixed)
    with pytest.raises(ValueError, match="three times dim 8 is not a multiple of head_dim 5"):
        StackedTokenMixer(8, 5)


def test_without_the_memory_a_stage_is_its_three_groups():
    small = {"depths": (1, 1, 1, 1), "dims": (4, 4, 16, 32), "num_classes": 7}
    model = timm.create_model("care_s0", memory=False, **small).eval()
    assert [info["num_chs"] for info in model.feature_info] == [12, 12, 48, 4 * 96]
    assert model(torch.randn(2, 3, 37, 75)).shape == (2, 7)
    with pytest.raises(ValueError, match="mixing must be one of decoupled, stacked, got 'side by side'"):
        timm.create_model("care_s0", mixing="side by side", **small)
