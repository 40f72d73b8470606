"""timm's contract, for every model of linvit: what timm's own model tests ask, any size, safe half precision.

The tests are those of timm's ``tests/test_models.py`` in our words. A family that registers a model is in.
"""

import copy
import math
import re
import warnings

import pytest
import timm
import torch
from timm.models import FeatureInfo, get_notrace_functions, get_notrace_modules
from timm.optim import param_groups_layer_decay
from torchvision.models.feature_extraction import NodePathTracer, create_feature_extractor, get_graph_node_names

from linvit.weights import as_tuple
from tests.models import MODELS, every_family, every_model

SIZE = 96


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def images(height: int = SIZE, width: int = SIZE, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 3, height, width)


def awake(model: torch.nn.Module) -> torch.nn.Module:
    """Raise layer scales from their tiny start, so that no block can hide an error."""
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):
            torch.nn.init.constant_(parameter, 0.5)
    return model


def create(name: str, **kwargs) -> torch.nn.Module:
    return awake(timm.create_model(name, **kwargs)).eval()


def features_shape(model: torch.nn.Module, height: int, width: int) -> tuple[int, ...]:
    """Return what timm's layouts make of one image's last map: tokens, channels last, or channels first."""
    if hasattr(model, "num_prefix_tokens"):
        return (1, model.num_prefix_tokens + height * width, model.num_features)
    if getattr(model, "output_fmt", "NCHW") == "NHWC":
        return (1, height, width, model.num_features)
    return (1, model.num_features, height, width)


@every_model
def test_forward_features_head_and_reset(name):
    model = create(name)
    cfg = model.pretrained_cfg
    x = images(*cfg["input_size"][1:])
    features = model.forward_features(x)
    pre_logits = model.forward_head(features, pre_logits=True)
    assert features.shape == features_shape(model, *cfg["pool_size"])
    assert pre_logits.shape == (1, model.head_hidden_size)
    assert model(x).shape == (1, 1000)
    for module in (*as_tuple(cfg["first_conv"]), *as_tuple(cfg["classifier"])):
        assert f"{module}.weight" in model.state_dict()

    model.reset_classifier(0)
    torch.testing.assert_close(model(x), pre_logits)
    model.reset_classifier(0, "")
    assert model(x).shape == features.shape
    model.reset_classifier(7, "avg")
    assert model.num_classes == 7
    assert model(x).shape == (1, 7)
    assert not any(module.training for module in model.modules())
    assert create(name, num_classes=0, global_pool="")(x).shape == features.shape


@every_model
def test_every_parameter_gets_a_finite_gradient(name):
    model = awake(timm.create_model(name, num_classes=42, drop_path_rate=0.1)).train()
    loss = model(images(batch=2)).square().mean()
    loss.backward()
    assert loss.isfinite()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name


@every_model
def test_feature_pyramid(name):
    model = create(name, features_only=True)
    assert model.feature_info.reduction()[-4:] in ([4, 8, 16, 32], [16] * 4)
    for size in ((SIZE, SIZE), (37, 203)):
        maps = model(images(*size))
        assert len(maps) == len(model.feature_info.channels())
        for x, channels, stride in zip(
            maps, model.feature_info.channels(), model.feature_info.reduction(), strict=True
        ):
            assert x.shape == (1, channels, *(math.ceil(side / stride) for side in size))
            assert x.isfinite().all()


@every_family
def test_forward_intermediates(name):
    model = create(name)
    x = images()
    final, maps = model.forward_intermediates(x)
    torch.testing.assert_close(final, model.forward_features(x))
    assert [m.shape[1] for m in maps] == FeatureInfo(model.feature_info, len(maps)).channels()
    last_two = model.forward_intermediates(x, indices=2, intermediates_only=True)
    for a, b in zip(last_two, maps[-2:], strict=True):
        torch.testing.assert_close(a, b)
    (second,) = model.forward_intermediates(x, indices=[1], intermediates_only=True, stop_early=True)
    torch.testing.assert_close(second, maps[1])
    getter = timm.create_model(name, features_only=True, feature_cls="getter", out_indices=(1, 2))
    assert [m.shape for m in getter(x)] == [m.shape for m in maps[1:3]]
    with pytest.raises((ValueError, AssertionError)):
        model.forward_intermediates(x, output_fmt="HWNC")


@every_family
def test_pruning_to_intermediates_keeps_their_values(name):
    model = create(name)
    x = images()
    expected = model.forward_intermediates(x, indices=[1], intermediates_only=True)[0]
    parameters = sum(p.numel() for p in model.parameters())
    assert model.prune_intermediate_layers([1]) == [1]
    assert sum(p.numel() for p in model.parameters()) < parameters
    torch.testing.assert_close(model.forward_intermediates(x, indices=[1], intermediates_only=True)[0], expected)


@every_family
@pytest.mark.parametrize("size", [(1, 1), (37, 1013), (224, 160)])
def test_any_height_and_width(name, size):
    assert create(name)(images(*size)).isfinite().all()


@every_model
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(name, dtype):
    """Finite, and no further from float32 than the rounding of every layer explains, in pure half and autocast."""
    model = create(name)
    x = images()
    with torch.no_grad():
        expected = model(x)
        with torch.autocast("cpu", dtype):
            mixed = model(x)
        pure = model.to(dtype)(x.to(dtype))
    bound = 32 * torch.finfo(dtype).eps * expected.abs().max()
    for output in (mixed, pure):
        assert output.isfinite().all()
        assert (output - expected).abs().max() < bound


@every_family
def test_gradient_checkpointing_changes_nothing(name):
    model = awake(timm.create_model(name, num_classes=3)).train()
    other = copy.deepcopy(model)
    other.set_grad_checkpointing()
    x = images(batch=2)
    gradients = []
    for m in (model, other):
        m(x).square().sum().backward()
        gradients.append([p.grad for p in m.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@every_family
def test_layer_groups_cover_every_parameter_in_order(name):
    model = timm.create_model(name)
    groups = param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.8)
    scales = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    assert len(scales) == sum(1 for _ in model.parameters())
    assert len(set(scales.values())) > 4
    cfg = model.pretrained_cfg
    for module in as_tuple(cfg["first_conv"]):
        assert scales[id(model.get_parameter(f"{module}.weight"))] == min(scales.values())
    for module in as_tuple(cfg["classifier"]):
        assert scales[id(model.get_parameter(f"{module}.weight"))] == 1.0
    assert set(model.no_weight_decay()) <= {param_name for param_name, _ in model.named_parameters()}


def traced(model: torch.nn.Module, train: bool) -> torch.nn.Module:
    """Trace symbolically, as timm's tests do."""
    kwargs = {
        "leaf_modules": get_notrace_modules(),
        "autowrap_functions": get_notrace_functions(),
        "param_shapes_constant": True,
    }
    train_nodes, eval_nodes = get_graph_node_names(model, tracer_kwargs=kwargs)
    if train:
        assert NodePathTracer(**kwargs).trace(model)
    return create_feature_extractor(
        model, train_return_nodes=train_nodes[-1:], eval_return_nodes=eval_nodes[-1:], tracer_kwargs=kwargs
    )


@every_family
def test_fx_forward_and_backward(name):
    model = create(name)
    x = images()
    (output,) = traced(model, train=False)(x).values()
    torch.testing.assert_close(output, model(x))
    model = traced(awake(timm.create_model(name, num_classes=3)).train(), train=True)
    (output,) = model(images(batch=2)).values()
    output.mean().backward()
    assert all(p.grad is not None for p in model.parameters())


@every_family
def test_torchscript(name):
    model = awake(timm.create_model(name, scriptable=True)).eval()
    x = images(SIZE, SIZE)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch deprecates it; timm's tests still ask for it
        torch.testing.assert_close(torch.jit.script(model)(x), model(x))
        (output,) = torch.jit.script(traced(model, train=False))(x).values()
        torch.testing.assert_close(output, model(x))


@every_family
def test_compile_and_strict_export_are_one_graph(name):
    model = create(name)
    x = images()
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(x), expected)
        exported = torch.export.export(model, (x,), strict=True).module()
        torch.testing.assert_close(exported(x), expected)


@every_family
def test_input_channels_device_and_dtype_reach_every_tensor(name):
    model = timm.create_model(name, in_chans=5, dtype=torch.float64)
    assert model(torch.randn(2, 5, SIZE, SIZE, dtype=torch.float64)).dtype == torch.float64
    meta = timm.create_model(name, device="meta")
    assert all(p.is_meta for p in meta.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_listed_by_timm_with_its_weights(name):
    assert name in timm.list_models(name)
    cfg = timm.get_pretrained_cfg(name)
    assert cfg.input_size[0] == 3
    assert cfg.paper_ids
    assert cfg.architecture == name


@pytest.mark.parametrize("name", MODELS)
def test_docstrings_give_the_model_s_own_size(name):
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in timm.create_model(name).parameters()) / 1e6
    stated = re.findall(r"([\d.]+) M parameters", timm.model_entrypoint(name).__doc__)
    assert all(float(number) == round(size, 1) for number in stated), (stated, size)
