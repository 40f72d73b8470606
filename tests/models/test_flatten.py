"""FLatten computes what the published code computes, on its checkpoints, and carries itself over to other sizes."""

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from linvit.weights import compare
from tests.golden import NAMES, load_golden, relative_error

GOLDEN = [name for name in NAMES if name.startswith("flatten")]
SMALL = {  # one of each host, as small as it gets
    "flatten_pvt_tiny": {"depths": (1, 1, 1, 1)},
    "flatten_pvt_v2_b0": {"depths": (1, 1, 1, 1)},
    "flatten_swin_tiny": {"depths": (1, 1, 2, 1)},
    "flatten_cswin_tiny": {"depths": (1, 1, 1, 1), "embed_dim": 32},
    "flatten_deit_tiny": {"depth": 2},
}
DERIVED = ("relative_position_index", "attn_mask")
every_host = pytest.mark.parametrize("name", SMALL)


def small(name: str, **kwargs) -> torch.nn.Module:
    """A model in float64 whose every parameter counts."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5, **SMALL[name] | kwargs).double().eval()
    for path, parameter in model.named_parameters():
        if path.endswith(("positional_encoding", "pos_embed", "bias_table", "scale")):
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def images(height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(1, 3, height, width, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", GOLDEN)
def test_parity_with_the_published_code(name):
    golden = load_golden(name)
    model = timm.create_model(name, dtype=torch.float64).eval()
    fit = compare(golden["weights"], model)
    assert not fit.problems
    assert not fit.resized
    model.load_state_dict(fit.tensors, strict=True)
    unused = 2 * 512 if name in ("flatten_pvt_tiny", "flatten_pvt_large") else 0  # PVT's final norm
    assert sum(p.numel() for p in model.parameters()) == golden["params"] - unused
    with torch.no_grad():
        assert relative_error(model(golden["images"])[0], golden["logits"]) < 1e-9
        assert relative_error(model.float()(golden["images"].float())[0], golden["logits"]) < 1e-5


@pytest.mark.parametrize(("name", "gmacs"), [("flatten_pvt_tiny", 2.04), ("flatten_swin_tiny", 4.48)])
def test_multiplications_are_those_of_the_published_code(name, gmacs):
    with torch.device("meta"):
        model = timm.create_model(name).eval()
        x = torch.zeros(1, 3, 224, 224)
    with FlopCounterMode(display=False) as counter:
        model(x)
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmacs, abs=0.02)


@every_host
def test_own_names_and_derived_buffers_pass(name):
    model = small(name)
    state_dict = model.state_dict()
    stray = {f"{path}.{leaf}": torch.zeros(2) for path in ("a.b", "layers.2") for leaf in DERIVED}
    fit = compare(state_dict | stray, model)
    assert not fit.problems
    assert not fit.resized
    assert fit.tensors.keys() == state_dict.keys()


@every_host
@pytest.mark.parametrize("size", [(96, 160), (50, 33)])
def test_setting_the_input_size_is_interpolating_on_the_fly(name, size):
    model, x = small(name), images(*size)
    expected = model(x)
    before = sum(p.numel() for p in model.parameters())
    model.set_input_size(size)
    assert sum(p.numel() for p in model.parameters()) < before
    if name == "flatten_deit_tiny":  # patches that the image does not fill are interpolated again
        size = tuple(16 * (side // 16) for side in size)
        x, expected = x[..., : size[0], : size[1]], small(name)(x[..., : size[0], : size[1]])
    torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-12)


@every_host
def test_weights_of_one_size_load_into_another(name):
    source = small(name)
    target = small(name, img_size=(96, 160))
    fit = compare(source.state_dict(), target)
    assert not fit.problems
    assert fit.resized
    target.load_state_dict(fit.tensors)
    x = images(96, 160)
    torch.testing.assert_close(target(x), source(x), rtol=1e-9, atol=1e-12)


def test_224_weights_load_into_the_384_model():
    """Swin's windows grow from 7 to 12, and their bias tables with them."""
    depths = {"depths": (1, 1, 1, 1), "embed_dim": 32}
    source = timm.create_model("flatten_swin_base", **depths)
    target = timm.create_model("flatten_swin_base_384", **depths)
    ramp = torch.arange(13.0).repeat_interleave(13)[:, None].expand(-1, 16).contiguous()
    source.layers[2].blocks[0].attn.relative_position_bias_table.data = ramp
    fit = compare(source.state_dict(), target)
    assert not fit.problems
    target.load_state_dict(fit.tensors)
    assert target.layers[0].blocks[0].attn.positional_encoding.shape == (1, 96 * 96, 32)
    table = target.layers[2].blocks[0].attn.relative_position_bias_table.reshape(23, 23, 16)
    torch.testing.assert_close(table, table[:, :1].expand_as(table), rtol=1e-4, atol=1e-4)  # rows stay rows
    assert (table[1:] > table[:-1]).all()
    assert table[11, 0, 0].item() == pytest.approx(6.0, abs=1e-4)  # the centre stays the centre


def test_a_table_that_no_interpolation_fits_is_named():
    model = small("flatten_pvt_tiny")
    state_dict = model.state_dict()
    name = "stages.0.blocks.0.attn.positional_encoding"
    fit = compare(state_dict | {name: state_dict[name][:, :-1]}, model)
    assert fit.problems == f"1 of another shape: {name} [1, 3135, 64] for [1, 3136, 64]"


def test_every_pixel_counts():
    """Sizes that fill no stride are padded, never cropped."""
    for name in SMALL:
        x = images(37, 101).requires_grad_()
        (gradient,) = torch.autograd.grad(small(name)(x).square().sum(), x)
        assert (gradient.abs().sum(dim=1) > 0).all(), name


def test_swin_shifts_odd_blocks_only_where_the_map_is_longer_than_a_window():
    model = timm.create_model("flatten_swin_tiny")
    assert [block.attn.shift_size for block in model.layers[2].blocks] == [0, 3] * 3
    attn = model.layers[2].blocks[1].attn.double()
    x = torch.randn(1, 49, 384, dtype=torch.float64)
    shifted = attn(x, [7, 7])
    attn.shift_size = 0
    torch.testing.assert_close(shifted, attn(x, [7, 7]))


@every_host
def test_stochastic_depth_rises_linearly_over_all_blocks(name):
    model = timm.create_model(name, drop_path_rate=0.1)
    rates = [getattr(m.drop_path2, "drop_prob", 0.0) for m in model.modules() if hasattr(m, "drop_path2")]
    assert rates == pytest.approx([0.1 * i / (len(rates) - 1) for i in range(len(rates))])


@every_host
def test_wrong_pool_and_format_are_named(name):
    with pytest.raises((ValueError, AssertionError), match="NCHW"):
        small(name).forward_intermediates(images(32, 32), output_fmt="HWNC")
    if name in ("flatten_pvt_tiny", "flatten_cswin_tiny", "flatten_deit_tiny"):
        with pytest.raises(ValueError, match="global_pool must be '' or 'avg', got 'max'"):
            timm.create_model(name, global_pool="max")


def test_convolutions_of_pvt_v2_start_by_their_fan_out():
    model = timm.create_model("flatten_pvt_v2_b2")
    assert model.stages[3].blocks[0].attn.dwc.weight.std().item() == pytest.approx((2 / 25) ** 0.5, rel=0.1)
    assert model.patch_embed.norm.eps == 1e-5
    assert model.stages[0].blocks[0].norm1.eps == model.stages[0].norm.eps == 1e-6
