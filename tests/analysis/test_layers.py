"""What is read off a layer is what it computes: its weights, times its values, are what its module put out."""

import subprocess
import sys
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import linvit
from linvit.analysis import has_attention, visit_layers
from linvit.analysis.layer import Layer

SMALL = {
    "care": ("care_s0", {"depths": (1, 1, 1, 1), "dims": (4, 4, 32, 32)}, (80, 112)),
    "pvt": ("flatten_pvt_tiny", {"depths": (1, 1, 1, 1), "embed_dims": (16, 16, 40, 32)}, (37, 75)),
    "pvt_v2": ("flatten_pvt_v2_b0", {"depths": (1, 1, 1, 1)}, (37, 75)),
    "swin": ("flatten_swin_tiny", {"depths": (1, 1, 2, 2), "embed_dim": 24}, (62, 150)),
    "cswin": ("flatten_cswin_tiny", {"depths": (1, 1, 2, 1), "embed_dim": 16}, (62, 150)),
    "deit": ("flatten_deit_tiny", {"depth": 2, "embed_dim": 48}, (64, 96)),
    "linglo": ("linglo_b0", {}, (37, 75)),
    "linglo_gate": ("linglo_b0", {"interaction": "gate"}, (37, 75)),
    "linglo_softmax": ("linglo_b0", {"attention": "softmax"}, (37, 75)),
    "timm_vit": ("vit_tiny_patch16_224", {"img_size": (64, 96), "depth": 2, "embed_dim": 48}, (64, 96)),
    "timm_vit_norms": (
        "vit_tiny_patch16_224",
        {"img_size": 64, "depth": 1, "embed_dim": 48, "qk_norm": True},
        (64, 64),
    ),
    "timm_deit": ("deit_tiny_distilled_patch16_224", {"img_size": 64, "depth": 1, "embed_dim": 48}, (64, 64)),
    "timm_swin": (
        "swin_tiny_patch4_window7_224",
        {"img_size": 112, "depths": (2, 1, 2, 1), "embed_dim": 24},
        (112, 112),
    ),
    "timm_swin_padded": (
        "swin_tiny_patch4_window7_224",
        {"img_size": (64, 96), "depths": (2, 2, 1, 1), "embed_dim": 24},
        (64, 96),
    ),
    "timm_pvt_v2": ("pvt_v2_b0", {}, (64, 96)),
    "timm_pvt_v2_pooled": ("pvt_v2_b2_li", {"depths": (1, 1, 1, 1)}, (64, 96)),
}
TIMM = ["vit_small_patch16_224", "deit_small_patch16_224", "swin_tiny_patch4_window7_224", "pvt_v2_b1"]
CONVERTED = ["focused", "linear", "linear_rank", "relu", "key_only", "softmax"]


def build(name: str, arguments: dict[str, Any]) -> nn.Module:
    """Build a model in float64 whose tables and convolutions say something, untrained though it is."""
    torch.manual_seed(0)
    model = timm.create_model(name, **arguments).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3 if parameter.ndim != 1 else 0.1)
    return model


def converted(attention: str) -> nn.Module:
    model = timm.create_model("vit_tiny_patch16_224", img_size=(64, 96), depth=2, embed_dim=48, num_heads=3)
    linvit.linearize(model, attention)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.double().eval()


def outputs(model: nn.Module, image: Tensor) -> tuple[list[Layer], dict[str, Tensor]]:
    """Return a model's layers, and what each of its modules put out."""
    out: dict[str, Tensor] = {}
    inputs: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            out[name] = output
            inputs[name] = args[0] if args else None

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in model.named_modules()]
    layers = visit_layers(model, image, lambda layer: layer)
    for handle in handles:
        handle.remove()
    for name, module in model.named_modules():
        if type(module).__name__ == "SwinTransformerBlock":  # its windows are put together outside of its attention
            with torch.no_grad():
                out[f"{name}.attn"] = module._attn(module.norm1(inputs[name])).flatten(1, 2)
    return layers, out


def explicit(layer: Layer) -> Tensor:
    """Return the N x N matrix of every channel, ``[C, N, M]``."""
    return layer.mixing(torch.arange(layer.num_queries), torch.arange(layer.values.shape[1]))


def check(model: nn.Module, size: tuple[int, int]) -> set[str]:
    layers, out = outputs(model, torch.randn(1, 3, *size, dtype=torch.float64))
    assert layers
    for layer in layers:
        mixed = torch.einsum("cnm,mc->nc", explicit(layer), layer.values)
        mixed[layer.prefix :] += layer.bias
        module = model.get_submodule(layer.name)
        found = out[layer.name][0]
        mine = mixed.T.unflatten(1, layer.grid) if layer.mechanism == "care" else module.proj(mixed)
        weights = layer.rows(torch.arange(layer.num_queries))
        torch.testing.assert_close(layer.received(), weights.mean(dim=1), atol=1e-12, rtol=0)
        assert (weights >= 0).all()
        assert (weights.sum(dim=-1) < 1 + 1e-9).all()
        if layer.name.startswith("layers") and "window" in layer.mechanism and weights.sum(-1).min() < 0.999:
            continue  # timm's padding takes part: the values of its biases are no token's
        torch.testing.assert_close(mine, found, atol=1e-9, rtol=1e-6)
    return {layer.mechanism for layer in layers}


@pytest.mark.parametrize("kind", SMALL)
@torch.no_grad()
def test_weights_times_values_are_the_output(kind: str) -> None:
    name, arguments, size = SMALL[kind]
    check(build(name, arguments), size)


@pytest.mark.parametrize("attention", CONVERTED)
@torch.no_grad()
def test_converted_models_too(attention: str) -> None:
    assert check(converted(attention), (64, 96)) == {attention}


@pytest.mark.parametrize(("kind", "size"), [("timm_swin", (112, 112)), ("timm_pvt_v2", (64, 96))])
@torch.no_grad()
def test_models_that_are_converted_in_part(kind: str, size: tuple[int, int]) -> None:
    name, arguments, _ = SMALL[kind]
    model = linvit.linearize(build(name, arguments), "focused", stages=(0, 1))
    assert check(model, size) == {"focused", "window" if kind == "timm_swin" else "softmax"}


@torch.no_grad()
def test_padding_of_timms_swin_gets_its_share() -> None:
    """A window that is partly padding: what its real tokens give to the padding is missing from their rows."""
    name, arguments, size = SMALL["timm_swin_padded"]
    model = build(name, arguments)
    layers = visit_layers(model, torch.randn(1, 3, *size, dtype=torch.float64), lambda layer: layer)
    share = [layer.rows(torch.arange(layer.num_queries)).sum(-1).amin().item() for layer in layers]
    assert any(value < 0.999 for value in share)
    assert layers[0].grid == (16, 24)


def test_modulate_looks_at_all_alike() -> None:
    model = build("linglo_b0", {"interaction": "modulate"})
    for layer in visit_layers(model, torch.randn(1, 3, 64, 64, dtype=torch.float64), lambda layer: layer):
        rows = layer.rows(torch.tensor([0, 3]))
        assert not layer.has_local
        torch.testing.assert_close(rows[:, 0], rows[:, 1])


def test_half_precision_is_looked_at_in_float32() -> None:
    model = timm.create_model("flatten_deit_tiny", depth=1, embed_dim=48).to(torch.bfloat16)
    image = torch.randn(1, 3, 64, 64, dtype=torch.bfloat16)
    (rows,) = visit_layers(model, image, lambda layer: layer.rows(torch.tensor([0])))
    assert rows.dtype == torch.float32
    assert rows.isfinite().all()


def test_leaves_no_hooks_behind_and_the_mode_as_it_was() -> None:
    model = timm.create_model("flatten_deit_tiny", depth=1, embed_dim=48).train()
    with pytest.raises(RuntimeError, match="stop here"):
        visit_layers(model, torch.randn(1, 3, 64, 64), _stop)
    assert model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def _stop(layer: Layer) -> None:
    raise RuntimeError("stop here")


def test_what_cannot_be_looked_into_is_named() -> None:
    model = timm.create_model("test_resnet")
    assert not has_attention(model)
    with pytest.raises(ValueError, match="ResNet has no attention"):
        visit_layers(model, torch.randn(1, 3, 64, 64), lambda layer: layer)
    with pytest.raises(ValueError, match="one image"):
        visit_layers(timm.create_model("linglo_b0"), torch.randn(2, 3, 64, 64), lambda layer: layer)


MEASURE = """
import resource, sys, torch, timm
import linvit
from linvit.analysis import attention_of, attention_received, visit_layers
name, size = sys.argv[1], int(sys.argv[2])
arguments = {"img_size": size} if name.startswith(("vit", "deit", "swin")) else {}
model = timm.create_model(name, **arguments).eval()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
layers = visit_layers(
    model, torch.randn(1, 3, size, size), lambda layer: (attention_received(layer), attention_of(layer, 3, 5))
)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(len(layers), max(received[0].numel() for received, _ in layers), (after - before) / 2**20)
"""


def grown(name: str, size: int) -> tuple[int, float]:
    """Return the largest number of tokens of a model's layers, and the memory that looking into all of them took."""
    run = subprocess.run([sys.executable, "-c", MEASURE, name, str(size)], capture_output=True, text=True, check=True)
    layers, tokens, gigabytes = run.stdout.split()
    assert int(layers) > 0
    return int(tokens), float(gigabytes)


@pytest.mark.parametrize("name", ["flatten_pvt_v2_b0", "care_s0"])
def test_memory_at_1024_pixels(name: str) -> None:
    """65,536 tokens of the first stage would take 17 GB as one matrix; CARE attends from the third stage on."""
    tokens, gigabytes = grown(name, 1024)
    assert tokens == {"flatten_pvt_v2_b0": 65536, "care_s0": 4096}[name]
    assert gigabytes < 1.0


@pytest.mark.slow
@pytest.mark.parametrize("name", [*linvit.list_models(), *TIMM])
def test_memory_of_every_model_at_1024_pixels(name: str) -> None:
    assert grown(name, 1024)[1] < 1.0
