"""Segmentation networks: any backbone and size, windows, pretrained backbones, saving."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from torch import Tensor, nn

import linvit
from linvit.checkpoints import task_of
from linvit.heads.segmentation import Segmenter, slide

SMALL: dict[str, Any] = {"depths": (1, 1, 1, 1), "dims": (4, 4, 16, 32), "layer_scale_init_value": 0.5}
NARROW: dict[str, Any] = {"pyramid_channels": 32, "segmentation_channels": 32}
INPUT = {"short_side": None, "mean": [0.5] * 3, "std": [0.5] * 3, "values": [0, 1, 2], "ignore": [255]}


def small(**settings: Any) -> Segmenter:
    torch.manual_seed(0)
    given: dict[str, Any] = {"num_classes": 3, "backbone_args": SMALL, "decoder_args": NARROW} | settings
    return Segmenter(**given).eval()


@pytest.mark.parametrize(("name", "reference"), [("fpn", smp.FPN), ("upernet", smp.UPerNet)])
def test_it_computes_what_segmentation_models_pytorch_does(name: str, reference: Callable[..., nn.Module]) -> None:
    torch.manual_seed(0)
    args = NARROW if name == "fpn" else {"decoder_channels": 16}
    ours: Any = Segmenter(5, name, "flatten_pvt_v2_b0", decoder_args=args).double().eval()  # type: ignore[arg-type]
    if name == "fpn":
        args = {f"decoder_{key}": value for key, value in args.items()}
    theirs: Any = reference("tu-flatten_pvt_v2_b0", encoder_weights=None, classes=5, **args).double().eval()
    theirs.decoder.load_state_dict(ours.decoder.state_dict())
    theirs.segmentation_head.load_state_dict(ours.head.state_dict())
    weights = ours.backbone.body.model.state_dict()
    flat = {key.replace("stages.", "stages_", 1): value for key, value in weights.items()}
    theirs.encoder.model.load_state_dict(flat)
    image = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(ours(image), theirs(image), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("size", [(37, 101), (1, 1), (64, 96)])
@pytest.mark.parametrize("name", ["fpn", "upernet"])
def test_any_size_gives_a_logit_for_every_pixel(name: str, size: tuple[int, int]) -> None:
    network = small(name=name, decoder_args=NARROW if name == "fpn" else {"decoder_channels": 16})
    with torch.no_grad():
        logits = network(torch.randn(2, 3, *size))
    assert logits.shape == (2, 3, *size)
    assert logits.isfinite().all()


def test_padding_to_whole_strides_is_all_that_other_sizes_change() -> None:
    network = small()
    image = torch.randn(1, 3, 37, 50)
    padded = torch.zeros(1, 3, 64, 64)
    padded[..., :37, :50] = image
    with torch.no_grad():
        torch.testing.assert_close(network(image), network(padded)[..., :37, :50])


@pytest.mark.parametrize(
    ("backbone", "args"),
    [
        ("flatten_deit_tiny", {"depth": 5}),
        ("flatten_swin_tiny", {"depths": (1, 1, 1, 1), "embed_dim": 12}),
        ("flatten_cswin_tiny", {"depths": (1, 1, 1, 1)}),
        ("resnet18", {}),
    ],
)
def test_backbones_of_every_kind(backbone: str, args: dict[str, Any]) -> None:
    network: Any = Segmenter(2, "fpn", backbone, args, NARROW).train()
    network(torch.randn(2, 3, 64, 64)).sum().backward()
    assert not [name for name, parameter in network.named_parameters() if parameter.grad is None], "all take part"
    network.eval()
    with torch.no_grad():
        maps = network.backbone(torch.randn(1, 3, 64, 96))
        assert network(torch.randn(1, 3, 33, 65)).shape == (1, 2, 33, 65)
    assert [tuple(x.shape[1:]) for x in maps] == [
        (width, 64 // stride, 96 // stride)
        for width, stride in zip(network.backbone.channels, (4, 8, 16, 32), strict=True)
    ]
    assert network.no_weight_decay() <= {name for name, _ in network.named_parameters()}
    assert any(name.endswith("pos_embed") for name in network.no_weight_decay()) == ("deit" in backbone)


class ByPixel(nn.Module):
    """Gives each pixel two logits that depend on it, and on where the window begins if asked to."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[tuple[int, int]] = []

    def forward(self, image: Tensor) -> Tensor:
        self.sizes.append((image.shape[2], image.shape[3]))
        return torch.cat([image[:, :1] * 2, image[:, 1:2] + len(self.sizes)], dim=1)


@pytest.mark.parametrize("size", [(10, 23), (7, 7), (3, 9), (8, 6), (30, 1)])
@pytest.mark.parametrize(("window", "stride"), [(7, 4), (7, 7), (5, 1)])
def test_overlapping_windows_are_averaged(size: tuple[int, int], window: int, stride: int) -> None:
    """Against a loop over all pixels that asks which windows hold it."""
    torch.manual_seed(0)
    image = torch.randn(2, 3, *size, dtype=torch.float64).float()
    network = ByPixel()
    found = slide(network, image, window, stride)
    starts = []
    for length in size:
        places = list(range(0, max(length - window, 0) + 1, stride))
        if places[-1] + window < length:
            places.append(length - window)
        starts.append(places)
    order = [(top, left) for top in starts[0] for left in starts[1]]
    assert network.sizes == [(min(window, size[0]), min(window, size[1]))] * len(order)
    for row in range(size[0]):
        for column in range(size[1]):
            numbers = [
                n
                for n, (top, left) in enumerate(order, 1)
                if top <= row < top + window and left <= column < left + window
            ]
            assert numbers, "no gaps"
            pixel = image[:, :, row, column]
            expected = torch.stack([pixel[:, 0] * 2, pixel[:, 1] + sum(numbers) / len(numbers)], dim=1)
            torch.testing.assert_close(found[:, :, row, column], expected, rtol=1e-5, atol=1e-4)


def test_predict_goes_by_windows_and_resizes_to_the_size_asked_for() -> None:
    network = small(window=32, stride=20)
    image = torch.randn(1, 3, 50, 70)
    with torch.no_grad():
        assert torch.equal(network.predict(image, (50, 70)), slide(network, image, 32, 20))
        assert network.predict(image, (25, 140)).shape == (1, 3, 25, 140)
        network.set_window(None)
        assert torch.equal(network.predict(image, (50, 70)), network(image))
    network.set_window(30)
    assert network.stride == 20


def test_it_is_saved_and_loaded_with_its_windows(tmp_path: Path) -> None:
    network = small(name="upernet", decoder_args={"decoder_channels": 16}, window=48)
    linvit.save_model(network, tmp_path, classes=["a", "b", "c"], input_config=INPUT)
    assert task_of(tmp_path) == "segment"
    loaded: Any = linvit.load_model(tmp_path)
    image = torch.randn(1, 3, 40, 90)
    with torch.no_grad():
        assert torch.equal(loaded.predict(image, (40, 90)), network.predict(image, (40, 90)))
    assert (loaded.window, loaded.stride) == (48, 32)
    assert loaded.pretrained_cfg["values"] == [0, 1, 2]


def test_the_backbone_starts_from_a_classifier(run_folder: Path, tmp_path: Path) -> None:
    """By checkpoint file, by run folder beside its name, and by run folder as the backbone: the same."""
    classifier: Any = linvit.load_model(run_folder)
    torch.save({"state_dict": classifier.state_dict()}, tmp_path / "donor.pth")
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = classifier.forward_intermediates(image, intermediates_only=True)
        for backbone, pretrained, args in [
            ("care_s0", str(tmp_path / "donor.pth"), SMALL),
            ("care_s0", str(run_folder), SMALL),
            (str(run_folder), True, {"drop_path_rate": 0.3}),
        ]:
            network = small(backbone=backbone, pretrained=pretrained, backbone_args=args)
            for ours, theirs in zip(network.backbone(image), expected, strict=True):
                assert torch.equal(ours, theirs)
    assert network.architecture["backbone"] == "care_s0"
    assert network.architecture["backbone_args"]["drop_path_rate"] == 0.3
    assert network.architecture["backbone_args"]["dims"] == [4, 4, 16, 32]


def test_a_classifier_with_replaced_attention_is_a_backbone(tmp_path: Path) -> None:
    args: dict[str, Any] = {"embed_dims": (8, 8, 16, 16), "num_heads": (1, 1, 1, 1), "depths": (1, 1, 1, 1)}
    classifier: Any = linvit.linearize(timm.create_model("pvt_v2_b0", num_classes=2, **args).eval(), "focused", [0, 1])
    config = {"input_size": (3, 64, 64), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    linvit.save_model(classifier, tmp_path / "linear", classes=["a", "b"], input_config=config)
    network = small(backbone=str(tmp_path / "linear"), pretrained=True, backbone_args=None)
    linvit.save_model(network, tmp_path / "dense", classes=["a", "b", "c"], input_config=INPUT)
    loaded: Any = linvit.load_model(tmp_path / "dense")
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for ours, theirs in zip(
            loaded.backbone(image), classifier.forward_intermediates(image, intermediates_only=True), strict=True
        ):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "unet"}, "name must be one of fpn, upernet, not 'unet'"),
        ({"backbone": "care_s9"}, "unknown backbone 'care_s9'; did you mean care_s"),
        ({"backbone_args": {"depht": 3}}, r"backbone care_s0 cannot be built with {'depht': 3}"),
        ({"decoder_args": {"width": 3}}, r"decoder_args {'width': 3} do not suit fpn"),
        ({"num_classes": 1}, "num_classes must be at least 2, not 1"),
        ({"window": 0}, "window must be at least 1"),
        ({"window": 8, "stride": 9}, "stride must be from 1 to the window of 8, not 9"),
        ({"stride": 9}, "stride must be left out without a window, not 9"),
        ({"pretrained": "gone.pth"}, "pretrained: no weights at 'gone.pth'"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        small(**settings)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["care_s0", "flatten_pvt_v2_b0", "flatten_deit_tiny"])
@pytest.mark.parametrize("size", [(2048, 2048), (37, 1013)])
def test_high_resolution(backbone: str, size: tuple[int, int]) -> None:
    network = Segmenter(4, "fpn", backbone, decoder_args=NARROW).eval()
    with torch.inference_mode():
        logits = network(torch.randn(1, 3, *size))
    assert logits.shape == (1, 4, *size)
    assert logits.isfinite().all()
