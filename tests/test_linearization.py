"""Conversion of timm's models: only the attention changes, weights are kept, what cannot be replaced is refused."""

import copy
import json
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import timm
import torch
from torch import nn

import linvit
from linvit.attention import FocusedLinearAttention, LinearAttention, TokenAttention
from linvit.linearization import MECHANISMS, describe
from tests.hub import serve_hub

VIT = {"img_size": (48, 64), "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 5}
PVT = {"depths": (1, 2, 1, 1), "embed_dims": (8, 16, 24, 32), "num_heads": (1, 2, 3, 4), "num_classes": 5}
SWIN = {"img_size": (48, 64), "depths": (2, 2, 1, 1), "embed_dim": 12, "num_heads": (1, 2, 3, 4), "num_classes": 5}
HOSTS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", VIT),
    "registers": ("vit_tiny_patch16_224", VIT | {"reg_tokens": 3, "class_token": False, "global_pool": "avg"}),
    "res_post": ("vit_tiny_patch16_224", VIT | {"block_fn": timm.models.vision_transformer.ResPostBlock}),
    "hybrid": ("vit_tiny_r_s16_p8_224", VIT | {"img_size": (96, 128)}),
    "deit": ("deit_tiny_distilled_patch16_224", VIT),
    "deit3": ("deit3_small_patch16_224", VIT),
    "dynamic": ("vit_tiny_patch16_224", VIT | {"dynamic_img_size": True, "dynamic_img_pad": True}),
    "pvt_v2": ("pvt_v2_b0", PVT),
    "pvt_v2_pooled": ("pvt_v2_b2_li", PVT),
    "swin": ("swin_tiny_patch4_window7_224", SWIN),
}
PREFIXES = {"vit": 1, "registers": 3, "res_post": 1, "hybrid": 1, "deit": 2, "deit3": 1, "dynamic": 1}
every_host = pytest.mark.parametrize("host", HOSTS)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def create(host: str, **kwargs) -> Any:
    """Build a small host in float64 whose every parameter is random, so that nothing can hide."""
    name, args = HOSTS[host]
    model = timm.create_model(name, **args | kwargs).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def images(host: str) -> torch.Tensor:
    height, width = HOSTS[host][1].get("img_size", (64, 96))
    return torch.randn(2, 3, height, width, dtype=torch.float64)


def attentions(model: nn.Module) -> dict[str, TokenAttention]:
    return {row.module: model.get_submodule(row.module) for row in model.linearized}


def save(model: nn.Module, folder: Path, x: torch.Tensor) -> None:
    """Save a model, and round its weights to what a loaded one has."""
    model.float().double()
    linvit.save_model(model, folder, classes=list("abcde"), input_config={"input_size": tuple(x.shape[1:])})


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def without_restrictions(host: str) -> Any:
    """Build a host whose attention is what linvit's softmax computes: all tokens attend to all, by content alone."""
    if host == "pvt_v2":
        return create(host, sr_ratios=(1, 1, 1, 1))
    if host == "swin":
        model = create(host, window_size=16)
        for name, parameter in model.named_parameters():
            if name.endswith("bias_table"):
                nn.init.zeros_(parameter)
        return model
    return create(host)


@pytest.mark.parametrize("host", [host for host in HOSTS if host != "pvt_v2_pooled"])
def test_softmax_put_in_reproduces_the_original(host):
    model, x = without_restrictions(host), images(host)
    expected = model(x)
    assert linvit.linearize(model, "softmax") is model
    assert attentions(model)
    assert relative_error(model(x), expected) < 1e-12


@every_host
@pytest.mark.parametrize("attention", ["focused", "linear", "relu", "key_only"])
def test_outputs_change_through_the_attention_alone(host, attention):
    """With the original's attention outputs put in the place of the new ones, the logits are the original's."""
    model, x = create(host), images(host)
    converted = linvit.linearize(copy.deepcopy(model), attention)
    untouched = copy.deepcopy(converted)
    recorded: dict[str, torch.Tensor] = {}

    def record(name, module, args, output=None):
        recorded[name] = args[0] if output is None else output

    def replay(name, module, args, output):
        assert output.shape == recorded[name].flatten(1, -2).shape
        return recorded[name].reshape_as(output)

    for name, attn in attentions(converted).items():
        if host == "swin":  # its attention returns windows; they are a map again when the block adds them
            drop_path = model.get_submodule(name.removesuffix(".attn")).drop_path1
            drop_path.register_forward_pre_hook(partial(record, name))
        else:
            model.get_submodule(name).register_forward_hook(partial(record, name))
        attn.register_forward_hook(partial(replay, name))
    expected = model(x)
    assert relative_error(untouched(x), expected) > 1e-3
    assert relative_error(converted(x), expected) < 1e-12


@every_host
def test_weights_are_kept(host):
    model = create(host)
    before = model.state_dict()
    converted = linvit.linearize(copy.deepcopy(model)).state_dict()
    attention = [f"{row.module}." for row in linvit.linearize(copy.deepcopy(model)).linearized]
    assert len(attention) == sum("proj.weight" in name and ".attn." in name for name in before)
    for name, tensor in before.items():
        if not name.startswith(tuple(attention)) or ".proj." in name or ".qkv." in name:
            torch.testing.assert_close(converted[name], tensor, rtol=0, atol=0)
    if "pvt" in host:
        for prefix in attention:
            for part in ("weight", "bias"):
                joined = torch.cat([before[f"{prefix}q.{part}"], before[f"{prefix}kv.{part}"]])
                torch.testing.assert_close(converted[f"{prefix}qkv.{part}"], joined, rtol=0, atol=0)


@every_host
def test_key_only_keeps_keys_values_and_output(host):
    model = create(host)
    before = model.state_dict()
    converted = linvit.linearize(copy.deepcopy(model), "key_only")
    after = converted.state_dict()
    assert attentions(converted)
    for name, attn in attentions(converted).items():
        for part in ("weight", "bias"):
            kept = (
                before[f"{name}.kv.{part}"]
                if "pvt" in host
                else before[f"{name}.qkv.{part}"][-2 * attn.proj.in_features :]
            )
            torch.testing.assert_close(after[f"{name}.qkv.{part}"], kept, rtol=0, atol=0)
            torch.testing.assert_close(after[f"{name}.proj.{part}"], before[f"{name}.proj.{part}"], rtol=0, atol=0)
    assert all(row.dropped.startswith("queries") for row in converted.linearized)
    with torch.no_grad():
        assert converted(images(host)).isfinite().all()


def test_new_weights_on_request():
    model = create("vit")
    old = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    new = linvit.linearize(model, copy_weights=False).state_dict()
    for i in range(VIT["depth"]):
        for part in ("qkv", "proj"):
            weight = f"blocks.{i}.attn.{part}.weight"
            assert not torch.equal(new[weight], old[weight])
            assert new[weight].std() == pytest.approx(0.02, rel=0.2)
    torch.testing.assert_close(new["blocks.0.mlp.fc1.weight"], old["blocks.0.mlp.fc1.weight"])


@pytest.mark.parametrize(("host", "prefix"), PREFIXES.items())
def test_prefix_tokens_are_told_from_patches(host, prefix):
    assert {attn.num_prefix_tokens for attn in attentions(linvit.linearize(create(host))).values()} == {prefix}


@pytest.mark.parametrize(
    ("host", "size", "grid"),
    [
        ("vit", (48, 64), [3, 4]),
        ("hybrid", (96, 128), [3, 4]),
        ("dynamic", (48, 64), [3, 4]),
        ("dynamic", (64, 48), [4, 3]),
        ("dynamic", (32, 97), [2, 7]),
    ],
)
def test_vit_tells_its_attention_the_grid_of_the_image(host, size, grid):
    model = linvit.linearize(create(host))
    for attn in attentions(model).values():
        nn.init.normal_(attn.positional_encoding)  # or else a wrong grid shows little
    seen: dict[str, torch.Tensor] = {}
    attn = model.blocks[1].attn
    model.blocks[1].norm1.register_forward_hook(lambda module, args, output: seen.update(x=output))
    attn.register_forward_hook(lambda module, args, output: seen.update(y=output))
    model(torch.randn(1, 3, *size, dtype=torch.float64))
    expected = FocusedLinearAttention.forward(attn, seen["x"], grid)
    torch.testing.assert_close(seen["y"], expected, rtol=0, atol=0)
    transposed = FocusedLinearAttention.forward(attn, seen["x"], grid[::-1])
    assert relative_error(transposed, expected) > 1e-3


@pytest.mark.parametrize("host", ["dynamic", "pvt_v2", "swin"])
@pytest.mark.parametrize("size", [(32, 32), (80, 48), (68, 100)])
def test_sizes_that_the_host_takes(host, size):
    args = {"strict_img_size": False} if host == "swin" else {}
    model = create(host, **args)
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    assert model(x).isfinite().all()
    logits = linvit.linearize(model)(x)
    assert logits.shape == (2, 5)
    assert logits.isfinite().all()


@pytest.mark.parametrize("host", ["vit", "swin"])
def test_other_native_size_after_the_conversion(host, tmp_path):
    model = linvit.linearize(create(host))
    for attn in attentions(model).values():
        nn.init.normal_(attn.positional_encoding)
    model.set_input_size(img_size=(64, 96))
    x = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    save(model, tmp_path, x)
    assert relative_error(linvit.load_model(tmp_path).double()(x), model(x)) < 1e-12


@pytest.mark.parametrize("attention", ["focused", "key_only"])
def test_every_parameter_learns(attention):
    for host in HOSTS:
        model = linvit.linearize(create(host), attention).train()
        model(images(host)).square().sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, (host, name)
            assert parameter.grad.isfinite().all(), (host, name)


@pytest.mark.parametrize("host", ["vit", "pvt_v2", "swin"])
def test_type_mode_and_dropout_are_the_hosts(host):
    name, args = HOSTS[host]
    model = timm.create_model(name, **args, proj_drop_rate=0.3, drop_path_rate=0.2, dtype=torch.bfloat16).train()
    paths = [module.drop_prob for module in model.modules() if isinstance(module, timm.layers.DropPath)]
    linvit.linearize(model)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert all(module.training for module in model.modules())
    assert {attn.proj_drop.p for attn in attentions(model).values()} == {0.3}
    assert [module.drop_prob for module in model.modules() if isinstance(module, timm.layers.DropPath)] == paths
    assert model(images(host).bfloat16()).isfinite().all()


def test_stages_are_chosen_and_reported():
    model = linvit.linearize(create("swin"), stages=(0, 1))
    kinds = [[type(block.attn).__name__ for block in stage.blocks] for stage in model.layers]
    assert kinds == [["FocusedLinearAttention"] * 2] * 2 + [["WindowAttention"]] * 2
    linvit.linearize(model, "relu", stages=[3])
    assert [row.module for row in model.linearized] == [
        "layers.0.blocks.0.attn",
        "layers.0.blocks.1.attn",
        "layers.1.blocks.0.attn",
        "layers.1.blocks.1.attn",
        "layers.3.blocks.0.attn",
    ]
    head, *lines = linvit.linearize_report(model).splitlines()
    assert head.split() == ["module", "stage", "was", "attention", "dim", "num_heads", "dropped"]
    assert lines[1].split(maxsplit=6) == [
        *("layers.0.blocks.1.attn", "0", "WindowAttention", "focused", "12", "1"),
        "7x7 shifted windows, position bias",
    ]
    assert lines[4].split()[3:6] == ["relu", "96", "4"]

    assert {row.stage for row in linvit.linearize(create("vit"), stages=[1]).linearized} == {1}
    assert "nothing was replaced" in linvit.linearize_report(create("vit"))
    report = linvit.linearize_report(linvit.linearize(create("pvt_v2", attn_drop_rate=0.1)))
    assert "spatial reduction 8, attention dropout 0.1" in report


@pytest.mark.parametrize(
    ("host", "kwargs", "call", "message"),
    [
        ("vit", {}, {"attention": "magic"}, "attention must be one of focused, linear, .*, got 'magic'"),
        ("vit", {}, {"stages": [0, 2]}, r"stages must be from 0 to 1 for VisionTransformer, got \[0, 2\]"),
        ("swin", {}, {"stages": [-1]}, r"stages must be from 0 to 3 for SwinTransformer, got \[-1\]"),
        ("vit", {}, {"stages": []}, r"got \[\]"),
        ("vit", {"qk_norm": True}, {}, "blocks.0.attn: .* normalised queries and keys"),
        ("vit", {"scale_attn_norm": True}, {}, "blocks.0.attn: .* a norm before the output"),
        ("vit", {"attn_layer": "diff"}, {}, r"blocks.0.attn \(DiffAttention\); known is timm's Attention"),
        ("vit", {"block_fn": timm.models.vision_transformer.ParallelScalingBlock}, {}, r"blocks.0 \(ParallelScaling"),
        ("vit", {"patch_drop_rate": 0.5}, {}, "patch_drop"),
        ("swin", {"head_dim": 8}, {}, "layers.0.blocks.0.attn: .* heads of another total width"),
    ],
)
def test_what_cannot_be_replaced_is_refused(host, kwargs, call, message):
    model = create(host, **kwargs)
    before = str(model)
    with pytest.raises(ValueError, match=message) as refused:
        linvit.linearize(model, **call)
    assert "\n" not in str(refused.value)
    assert str(model) == before


def test_other_models_and_second_conversions_are_refused():
    with pytest.raises(ValueError, match="cannot linearize EfficientNet; known are timm's VisionTransformer, Pyramid"):
        linvit.linearize(timm.create_model("test_efficientnet"))
    model = linvit.linearize(create("vit"), stages=[1])
    with pytest.raises(ValueError, match=r"blocks.1.attn \(FocusedLinearAttention\); known is timm's Attention"):
        linvit.linearize(model)
    assert type(model.blocks[0].attn) is timm.layers.Attention
    with pytest.raises(ValueError, match="attn_mask"):
        model.forward_features(images("vit"), attn_mask=torch.zeros(13, 13, dtype=torch.float64))


def test_new_mechanism_takes_one_line(monkeypatch):
    class Mean(LinearAttention):
        def forward(self, x, grid_size=None):
            return x.mean(dim=1, keepdim=True).expand_as(x)

    monkeypatch.setitem(MECHANISMS, "mean", Mean)
    model = linvit.linearize(create("pvt_v2"), "mean")
    assert {type(attn) for attn in attentions(model).values()} == {Mean}
    assert model(images("pvt_v2")).isfinite().all()


# timm takes the block of res_post as a class, which no config.json can hold.
@pytest.mark.parametrize("host", [host for host in HOSTS if host != "res_post"])
def test_saved_model_is_loaded_as_converted(host, tmp_path):
    model, x = linvit.linearize(create(host), stages=[0]), images(host)
    linvit.linearize(model, "key_only" if host in ("vit", "swin") else "linear", stages=[1])
    for name, parameter in model.named_parameters():
        if name.endswith(("positional_encoding", "scale")):
            nn.init.normal_(parameter)
    save(model, tmp_path, x)
    loaded = linvit.load_model(tmp_path)
    assert not loaded.training
    assert loaded.linearized == model.linearized
    assert describe(loaded) == describe(model)
    assert loaded.pretrained_cfg["label_names"] == list("abcde")
    assert relative_error(loaded.double()(x), model(x)) < 1e-12
    assert linvit.load_model(tmp_path / "model.safetensors").linearized == model.linearized


def test_saved_model_that_does_not_fit_its_description(tmp_path):
    save(linvit.linearize(create("vit")), tmp_path, images("vit"))
    config = json.loads((tmp_path / "config.json").read_text())
    config["linearize"].pop()
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"4 unexpected: blocks.1.attn."):
        linvit.load_model(tmp_path)
    config["linearize"].append({"module": "blocks.7.attn", "attention": "focused", "grid_size": [3, 4]})
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"VisionTransformer has no attention 'blocks.7.attn' to replace"):
        linvit.load_model(tmp_path)


def test_converted_model_from_the_hub(tmp_path, monkeypatch):
    model, x = linvit.linearize(create("vit")), images("vit")
    save(model, tmp_path / "saved", x)
    files = {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()}
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    with serve_hub("someone/linear", files) as endpoint:
        for name in ("ENDPOINT", "HUGGINGFACE_CO_URL_TEMPLATE"):
            value = endpoint if name == "ENDPOINT" else f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
            monkeypatch.setattr(huggingface_hub.constants, name, value)
        loaded = linvit.load_model("hf-hub:someone/linear")
    assert relative_error(loaded.double()(x), model(x)) < 1e-12


@pytest.mark.parametrize("host", ["vit", "pvt_v2", "swin"])
def test_pickled_and_exported_programs(host):
    model, x = linvit.linearize(create(host)), images(host)
    expected = model(x)
    assert relative_error(pickle.loads(pickle.dumps(model))(x), expected) < 1e-12
    with torch.no_grad():
        assert relative_error(torch.export.export(model, (x,), strict=True).module()(x), expected) < 1e-12


def test_copy_sees_its_own_images():
    model = linvit.linearize(create("dynamic"))
    twin = copy.deepcopy(model)
    tokens = torch.randn(1, 13, 48, dtype=torch.float64)
    expected = model.blocks[0].attn(tokens)
    twin(torch.randn(1, 3, 32, 32, dtype=torch.float64))
    torch.testing.assert_close(model.blocks[0].attn(tokens), expected)
