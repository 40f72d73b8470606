"""Receptive fields and class maps, against their formulas written out; CARE's groups."""

import pytest
import timm
import torch
from torch import Tensor, nn

from linvit.analysis import GROUPS, care_contributions, effective_receptive_field, grad_cam, map_modules
from tests.analysis.test_layers import SMALL, build


def small(kind: str, **more: object) -> tuple[nn.Module, Tensor]:
    name, arguments, size = SMALL[kind]
    return build(name, arguments | {"num_classes": 5} | more), torch.randn(1, 3, *size, dtype=torch.float64)


@pytest.mark.parametrize("kind", ["care", "pvt", "swin", "deit", "timm_pvt_v2"])
def test_grad_cam_is_its_formula(kind: str) -> None:
    """On the last map, where the gradient can be taken of the head alone."""
    model, image = small(kind)
    last = map_modules(model)[-1]
    caught: list[Tensor] = []
    handle = model.get_submodule(last).register_forward_hook(lambda module, args, output: caught.append(output))
    logits = model(image)
    handle.remove()
    (gradient,) = torch.autograd.grad(logits[0, 3], caught[0])
    features = caught[0].detach()
    if kind in ("swin", "deit"):  # channels last
        features, gradient = features.flatten(1, -2), gradient.flatten(1, -2)
        expected = (gradient.mean(dim=1, keepdim=True) * features).sum(-1).relu()
    else:
        expected = (gradient.mean(dim=(2, 3), keepdim=True) * features).sum(1).relu()
    torch.testing.assert_close(grad_cam(model, image, 3, last).flatten(), expected.flatten(), atol=1e-9, rtol=1e-6)


def test_grad_cam_by_default_takes_the_likeliest_class_on_a_map_with_enough_positions() -> None:
    model, image = small("care")
    index = int(model(image)[0].argmax())
    cam = grad_cam(model, image)
    assert cam.shape == (5, 7), "of the third stage: the fourth has 3 x 4 positions"
    torch.testing.assert_close(cam, grad_cam(model, image, index, "stages.2"))
    with pytest.raises(ValueError, match="class must be from 0 to 4, got 5"):
        grad_cam(model, image, 5)


def test_the_last_block_of_a_vit_speaks_through_its_class_token_alone() -> None:
    model, image = small("timm_vit")
    assert grad_cam(model, image, 1, map_modules(model)[-1]).max() == 0
    assert grad_cam(model, image, 1).max() > 0


def test_receptive_field_of_a_convolution_is_its_kernel() -> None:
    class Convolution(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 5, padding=2, bias=False)
            self.feature_info = [{"module": "conv", "num_chs": 2}]

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x)

    model = Convolution().double()
    field = effective_receptive_field(model, torch.randn(2, 3, 20, 20).double(), at=(10, 6))
    kernel = model.conv.weight.sum(dim=0).abs().sum(dim=0)
    assert field.sum().item() == pytest.approx(1)
    torch.testing.assert_close(field[4:9, 8:13], (kernel / kernel.sum()).detach(), atol=1e-9, rtol=1e-6)
    assert field[:4].abs().max() == 0


def test_receptive_field_of_attention_is_the_whole_image_and_parameters_are_left_alone() -> None:
    model, image = small("deit")
    field = effective_receptive_field(model, image)
    assert field.shape == image.shape[-2:]
    assert (field > 0).double().mean() > 0.99
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    with pytest.raises(ValueError, match="outside the image"):
        effective_receptive_field(model, image, at=(96, 3))
    with pytest.raises(ValueError, match="feature_info"):
        effective_receptive_field(nn.Identity(), image)


def test_groups_of_care_contribute_as_leaving_them_out_says() -> None:
    model, image = small("care")
    blocks = care_contributions(model, image)
    assert [block["mixer"] for block in blocks] == ["convolution", "convolution", "attention", "attention"]
    assert [block["grid"] for block in blocks] == [[20, 28], [10, 14], [5, 7], [3, 4]]
    assert all(set(block["contributions"]) == set(GROUPS) for block in blocks)

    caught: list[tuple[Tensor, ...]] = []
    block = model.stages[2].blocks[0]
    handle = block.inter_layer.register_forward_hook(lambda module, args, output: caught.append((*args, output)))
    with torch.no_grad():
        model(image)
        handle.remove()
        memory, features, whole = caught[0]
        flat = features.clone()
        flat[:, 32:64] = features[:, 32:64].mean(dim=(2, 3), keepdim=True)
        without = block.inter_layer(memory, flat)
    gamma = block.gamma.view(-1, 1, 1)
    expected = ((whole - without) * gamma).norm() / (whole * gamma).norm()
    assert blocks[2]["contributions"]["local 3x3"] == pytest.approx(expected.item(), rel=1e-6)
    with pytest.raises(ValueError, match="FlattenDeit has no groups of channels"):
        care_contributions(*small("deit"))


def test_a_model_that_classifies_nothing_has_no_class_maps() -> None:
    model = timm.create_model("linglo_b0", num_classes=0, global_pool="")
    with pytest.raises(ValueError, match="no classifier"):
        grad_cam(model, torch.randn(1, 3, 64, 64))
