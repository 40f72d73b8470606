"""What the tools around a model ask of it beyond timm's own tests: meta tensors, TorchScript, sizes, heads."""

import copy
import warnings

import pytest
import timm
import torch

import linvit
from linvit.attention import WindowAttention
from tests.models import every_family

SIZE = 64
every_dense_family = pytest.mark.parametrize("name", ["care_s0", "flatten_pvt_v2_b0"])


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def images(height: int = SIZE, width: int = SIZE, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 3, height, width)


def create(name: str, **kwargs) -> torch.nn.Module:
    return timm.create_model(name, num_classes=3, img_size=SIZE, **kwargs).eval()


@every_family
def test_built_on_meta_then_filled_gives_the_same(name):
    """As transformers and FSDP do: no storage while it is built, then weights from a file, buffers computed anew."""
    model = create(name)
    with torch.device("meta"):
        other = create(name)
    other.to_empty(device="cpu")
    for module in other.modules():
        if hasattr(module, "init_non_persistent_buffers"):
            module.init_non_persistent_buffers()
    other.load_state_dict(model.state_dict())
    x = images()
    torch.testing.assert_close(other(x), model(x), rtol=0, atol=0)


@every_family
def test_weights_can_be_drawn_anew(name):
    model = create(name)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in (*other.parameters(), *other.buffers()):
            tensor.fill_(float("nan") if tensor.is_floating_point() else 10**9)
    other.init_weights()
    for (key, tensor), drawn in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert drawn.isfinite().all(), key
        if tensor.numel() > 1000 and tensor.is_floating_point():
            torch.testing.assert_close(drawn.std(), tensor.std(), rtol=0.2, atol=1e-6, msg=key)
    assert other(images()).isfinite().all()


@every_family
def test_features_by_getter_are_scripted(name):
    getter = timm.create_model(name, features_only=True, feature_cls="getter", scriptable=True).eval()
    x = images()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        for a, b in zip(torch.jit.script(getter)(x), getter(x), strict=True):
            torch.testing.assert_close(a, b)


@every_family
def test_input_size_without_arguments_changes_nothing(name):
    model = create(name)
    x = images()
    expected, size = model(x), model._traits["img_size"]
    model.set_input_size()
    assert model._traits["img_size"] == size
    assert torch.equal(model(x), expected)
    model.set_input_size(img_size=(96, 64))
    assert model(images(96, 64)).isfinite().all()
    assert tuple(model._traits["img_size"]) == (96, 64)


@every_family
def test_patch_size_changes_or_is_refused(name, tmp_path):
    model = create(name)
    if not name.startswith(("flatten_deit", "flatten_swin")):
        with pytest.raises(ValueError, match="patch_size must be 4"):
            model.set_input_size(patch_size=8)
        model.set_input_size(patch_size=4)
        return
    patch = 2 * model.patch_embed.patch_size[0]
    model.set_input_size(img_size=128, patch_size=patch)
    assert model.feature_info[0]["reduction"] == patch
    x = images(128, 128)
    save(model, tmp_path)
    torch.testing.assert_close(linvit.load_model(tmp_path)(x), model(x))


def save(model, folder) -> None:
    linvit.save_model(
        model,
        folder,
        classes=list("abc"),
        input_config={"input_size": (3, 64, 64), "mean": (0.5,) * 3, "std": (0.5,) * 3},
    )


def test_windows_of_another_size(tmp_path):
    model = create("flatten_swin_tiny", window_size=4)
    before = model.layers[2].blocks[1].attn.relative_position_bias_table
    model.set_input_size(window_size=8)
    windows = [module for module in model.modules() if isinstance(module, WindowAttention)]
    assert {(module.window_size, module.shift_size) for module in windows} == {(8, 0), (8, 4)}
    after = windows[1].relative_position_bias_table
    assert after.shape == (15**2, 12)
    torch.testing.assert_close(after.mean(), before.mean(), rtol=0.3, atol=2e-3)
    x = images()
    save(model, tmp_path)
    torch.testing.assert_close(linvit.load_model(tmp_path)(x), model(x))


@every_family
def test_a_head_that_was_reset_is_saved_and_loaded(name, tmp_path):
    model = timm.create_model(name, img_size=SIZE).eval()
    model.reset_classifier(3, "avg")
    save(model, tmp_path)
    x = images()
    for loaded in (linvit.load_model(tmp_path), timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()):
        torch.testing.assert_close(loaded(x), model(x))


@every_family
def test_without_pooling_classes_are_a_map(name):
    model = create(name, global_pool="")
    logits = model(images(64, 96))
    assert logits.shape == ((1, 24, 3) if "deit" in name else (1, 2, 3, 3))
    assert model.forward_head(model.forward_features(images()), pre_logits=True).shape[0] == 1


@every_family
def test_an_empty_batch_has_an_empty_result(name):
    model = create(name)
    with torch.no_grad():
        assert model(images(batch=0)).shape == (0, 3)
        assert model.forward_features(images(batch=0)).shape[0] == 0
    assert model(images(batch=0)).shape == (0, 3)


@every_family
def test_dilation_is_refused_in_one_line(name):
    with pytest.raises(ValueError, match=f"output_stride must be 32 for {name}, got 16: its stages are not dilated"):
        timm.create_model(name, features_only=True, output_stride=16)
    timm.create_model(name, features_only=True, output_stride=32)


def test_what_the_host_fixes_may_be_said_again():
    """Options that scripts give every ViT or Swin; here they are fixed."""
    timm.create_model("flatten_deit_tiny", dynamic_img_size=True, class_token=False)
    timm.create_model("flatten_swin_tiny", strict_img_size=False)
    with pytest.raises(ValueError, match="class_token is False here, got True"):
        timm.create_model("flatten_deit_tiny", class_token=True)


@pytest.mark.parametrize("name", ["flatten_deit_tiny", "flatten_swin_tiny", "flatten_pvt_v2_b0"])
def test_what_only_the_blocks_of_the_host_take_is_not_passed_over(name):
    """timm's constructor would accept it, and no block here would see it."""
    timm.create_model(name, qkv_bias=True, attn_drop_rate=0.0)
    with pytest.raises(ValueError, match=r"^attn_drop_rate is 0.0 here, got 0.1$"):
        timm.create_model(name, attn_drop_rate=0.1)
    with pytest.raises(ValueError, match=r"^qkv_bias is True here, got False$"):
        timm.create_model(name, qkv_bias=False)
