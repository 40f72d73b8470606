"""Hosts that take any mechanism: the same shapes, the published default, and a name for what is wrong."""

import pytest
import timm
import torch

import linvit
from linvit.attention import MECHANISMS
from tests.conftest import CLASSES, INPUT

HOSTS = {
    "flatten_deit_tiny": {"img_size": 32, "patch_size": 8, "embed_dim": 12, "depth": 1, "num_heads": 3},
    "flatten_pvt_tiny": {"img_size": 32, "depths": (1, 1, 1, 1), "embed_dims": (8, 8, 8, 8), "num_heads": (1, 1, 2, 2)},
}


@pytest.mark.parametrize("name", HOSTS)
@pytest.mark.parametrize("attention", MECHANISMS)
def test_a_host_takes_any_mechanism_and_is_saved_with_it(name, attention, tmp_path):
    torch.manual_seed(0)
    model = timm.create_model(name, attention=attention, num_classes=3, **HOSTS[name]).eval()
    images = torch.randn(2, 3, 33, 64)
    assert model(images).shape == (2, 3)
    linvit.save_model(model, tmp_path / "run", classes=CLASSES, input_config=INPUT)
    torch.testing.assert_close(linvit.load_model(tmp_path / "run")(images), model(images))


@pytest.mark.parametrize("name", HOSTS)
def test_focused_is_the_default_and_others_are_named(name):
    default = timm.create_model(name, **HOSTS[name]).state_dict().keys()
    assert default == timm.create_model(name, attention="focused", **HOSTS[name]).state_dict().keys()
    with pytest.raises(ValueError, match=r"attention must be one of focused, linear, linear_rank, .*, got 'x'"):
        timm.create_model(name, attention="x", **HOSTS[name])


def test_care_takes_another_native_size():
    model = timm.create_model("care_s0", depths=(1, 1, 1, 1), num_classes=3).eval()
    model.set_input_size(64)
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 3)
