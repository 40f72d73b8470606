"""torchvision's detectors and the decoders of segmentation-models-pytorch, over the maps of any family."""

from collections import OrderedDict

import pytest
import torch
from torch import nn
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign

smp = pytest.importorskip("segmentation_models_pytorch", reason="needs linvit[segment]")

pytestmark = pytest.mark.slow


class Pyramid(nn.Module):
    """The last three maps through a feature pyramid, as torchvision's detectors ask for a backbone."""

    def __init__(self, features: nn.Module):
        super().__init__()
        self.features = features
        self.fpn = FeaturePyramidNetwork(features.feature_info.channels()[-3:], 16)
        self.out_channels = 16

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.fpn(OrderedDict((str(i), m) for i, m in enumerate(self.features(x)[-3:])))


@pytest.mark.parametrize("detector", [RetinaNet, FasterRCNN, MaskRCNN])
def test_torchvision_detectors(small, detector):
    anchors = AnchorGenerator(((16,), (32,), (64,)), ((0.5, 1.0, 2.0),) * 3)
    size = {"min_size": 96, "max_size": 128}
    backbone = Pyramid(small(features_only=True))
    if detector is RetinaNet:
        model = RetinaNet(backbone, 3, anchor_generator=anchors, **size)
    else:
        pool = {"box_roi_pool": MultiScaleRoIAlign(["0", "1", "2"], 7, 2)}
        if detector is MaskRCNN:
            pool["mask_roi_pool"] = MultiScaleRoIAlign(["0", "1", "2"], 14, 2)
        model = detector(backbone, 3, rpn_anchor_generator=anchors, **pool, **size)
    images = [torch.rand(3, 90, 120), torch.rand(3, 77, 64)]
    targets = []
    for image in images:
        height, width = image.shape[1:]
        boxes = torch.tensor([[4.0, 5.0, width / 2, height / 2], [8.0, 9.0, width - 2.0, height - 3.0]])
        masks = torch.randint(2, (2, height, width), dtype=torch.uint8)
        targets.append({"boxes": boxes, "labels": torch.tensor([1, 2]), "masks": masks})
    loss = sum(model.train()(images, targets).values())
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in list(backbone.features.parameters())[:8])
    with torch.no_grad():
        found = model.eval()(images)
    assert all({"boxes", "labels", "scores"} <= one.keys() for one in found)


PYRAMIDS = ["Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet", "UPerNet", "Segformer"]
DILATING = ["DeepLabV3", "DeepLabV3Plus", "PAN"]


def learns(model: nn.Module, size: tuple[int, int]) -> None:
    masks = model.train()(torch.randn(2, 3, *size))
    assert masks.shape == (2, 4, *size)
    masks.square().mean().backward()
    gradients = [p.grad for p in model.encoder.parameters() if p.grad is not None]
    assert len(gradients) > 10
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("decoder", PYRAMIDS)
def test_decoders(name, decoder):
    if "deit" in name:
        pytest.skip("all maps of a DeiT are of stride 16; these decoders are for pyramids")
    learns(getattr(smp, decoder)(f"tu-{name}", encoder_weights=None, classes=4), (64, 96))


@pytest.mark.parametrize("decoder", DILATING)
def test_decoders_that_would_dilate_are_refused_in_one_line(name, decoder):
    if "deit" in name:
        pytest.skip("smp itself refuses the maps of a DeiT, which are all of stride 16")
    with pytest.raises(
        ValueError, match=f"output_stride must be 32 for {name}, got (8|16): its stages are not dilated"
    ):
        getattr(smp, decoder)(f"tu-{name}", encoder_weights=None)


def test_pan_without_dilation(name):
    if "deit" in name:
        pytest.skip("all maps of a DeiT are of stride 16; this decoder is for pyramids")
    learns(smp.PAN(f"tu-{name}", encoder_weights=None, classes=4, encoder_output_stride=32), (256, 256))


def test_dpt_takes_a_deit():
    options = {"encoder_weights": None, "classes": 4, "decoder_readout": "ignore", "dynamic_img_size": True}
    learns(smp.DPT("tu-flatten_deit_tiny", **options), (64, 96))


def test_every_decoder_was_tried():
    assert {kind.__name__ for kind in smp._MODEL_ARCHITECTURES} == {*PYRAMIDS, *DILATING, "DPT"}
