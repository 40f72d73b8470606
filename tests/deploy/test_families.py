"""Every family goes into every format, shallow and narrow as it may be."""

import pytest
import timm
import torch

from linvit.deploy import FORMATS, export_model

SMALL = {
    "care_s0": {"depths": (1, 1, 1, 1), "dims": (4, 4, 16, 32), "layer_scale_init_value": 0.5},
    "flatten_pvt_tiny": {"depths": (1, 1, 1, 1), "embed_dims": (16, 32, 80, 64), "num_heads": (1, 2, 5, 4)},
    "flatten_pvt_v2_b0": {"depths": (1, 1, 1, 1), "embed_dims": (8, 16, 40, 64)},
    "flatten_swin_tiny": {"depths": (1, 1, 2, 1), "embed_dim": 24},
    "flatten_cswin_tiny": {"depths": (1, 1, 1, 1), "embed_dim": 32},
    "flatten_deit_tiny": {"depth": 2, "embed_dim": 48},
    "linglo_b0": {"depths": (2, 2, 2, 2), "embed_dims": (8, 16, 40, 64)},
}


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", SMALL)
def test_family_goes_into_format(name, format, tmp_path):
    try:
        FORMATS[format].require()
    except ModuleNotFoundError as error:
        pytest.skip(str(error))  # what has an environment of its own is tested there
    torch.manual_seed(0)
    model = timm.create_model(name, img_size=96, num_classes=5, **SMALL[name])
    export = export_model(model, tmp_path / "model", format, torch.randn(2, 3, 96, 96), img_size=(96, 96))
    if export.check is None:
        assert "images 1x3x96x96 to logits" in export.structure
    else:
        assert export.check.max_error < 1e-4
