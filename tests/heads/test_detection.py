"""Detectors: over every kind of backbone, at any size, boxes and masks in the image's own pixels."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

import linvit
from linvit.heads import build
from linvit.heads.backbone import Backbone
from linvit.heads.detection import DetectionModel, fit
from linvit.inference.detection import DetectionPredictor

TINY = {"depths": (1, 1, 1, 1), "dims": (4, 4, 16, 32)}
FEW = {"box_batch_size_per_image": 16, "rpn_post_nms_top_n_train": 20, "rpn_post_nms_top_n_test": 20}
NAMES = ("retinanet", "faster_rcnn", "mask_rcnn")


def detector(name: str = "retinanet", **settings) -> DetectionModel:
    torch.manual_seed(0)
    given = {
        "num_classes": 3,
        "name": name,
        "backbone": "test_efficientnet",
        "size": 64,
        "max_size": 128,
        "anchor_size": 16,
        "channels": 8,
        "detector_args": {} if name == "retinanet" else FEW,
    }
    return DetectionModel(**(given | settings))


def target(*boxes: list[float], side: int = 64) -> dict[str, Tensor]:
    masks = torch.zeros(len(boxes), side, side, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[int(top) : int(bottom), int(left) : int(right)] = 1
    labels = torch.arange(len(boxes)) % 3
    return {"boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), "labels": labels, "masks": masks}


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_everything_and_images_without_boxes_are_no_harm(name: str) -> None:
    model = detector(name).train()
    images = [torch.randint(256, (3, 64, 64), dtype=torch.uint8) for _ in range(2)]
    losses = model(images, [target([4, 4, 30, 40], [20, 20, 60, 50]), target()])
    total = torch.stack(list(losses.values())).sum()
    assert total.isfinite()
    total.backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not [name for name in without if "backbone.body.body" not in name]  # stages that no map comes from
    empty = model(images, [target(), target()])
    assert torch.stack(list(empty.values())).isfinite().all()


def test_what_training_asks_of_the_backbone_reaches_it() -> None:
    model = detector(backbone="flatten_deit_tiny", backbone_args={"depth": 3, "embed_dim": 48, "num_heads": 3}).train()
    (exempt,) = model.no_weight_decay()
    assert exempt.endswith("pos_embed")
    assert exempt in dict(model.named_parameters())
    image, calls, gradients = torch.randint(256, (3, 64, 64), dtype=torch.uint8), [], []
    model.get_parameter(exempt).register_hook(gradients.append)
    block: Any = model.backbone.body.get_submodule("model.blocks.1")
    block.attn.register_forward_hook(lambda *_: calls.append(None))
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        torch.stack(list(model([image], [target([4, 4, 30, 40])]).values())).sum().backward()
    assert len(calls) == 3, "computed once, and then once more in the backward pass"
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("name", ["retinanet", pytest.param("mask_rcnn", marks=pytest.mark.slow)])
def test_a_few_updates_find_a_square(name: str) -> None:
    """Labels, boxes and masks come back as they went in, from an image of another size than the detector sees."""
    args = FEW | {"box_score_thresh": 0.3} if name == "mask_rcnn" else {"score_thresh": 0.3}
    model = detector(name, detector_args=args, channels=16)
    image = torch.full((3, 64, 64), 30, dtype=torch.uint8)
    image[:, 16:48, 8:40] = 220
    wanted = target([8, 16, 40, 48]) | {"labels": torch.tensor([2])}
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    model.train()
    for _ in range(80):
        optimizer.zero_grad()
        loss = torch.stack(list(model([image] * 2, [wanted] * 2).values())).sum()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    large = image.repeat_interleave(3, 1).repeat_interleave(3, 2)
    (found,) = DetectionPredictor(model, device="cpu").outputs([large])
    assert found["labels"][0] == 2
    assert box_iou(found["boxes"][:1], torch.tensor([[24.0, 48, 120, 144]])) > 0.7
    if name == "mask_rcnn":
        assert found["masks"].shape[1:] == (192, 192)
        inside = torch.zeros(192, 192, dtype=torch.bool)
        inside[48:144, 24:120] = True
        both = (found["masks"][0] & inside).sum() / (found["masks"][0] | inside).sum()
        assert both > 0.7


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(480, 640, (64, 85)), (37, 1013, (5, 128)), (1, 1, (64, 64)), (1, 5000, (1, 128)), (64, 64, (64, 64))],
)
def test_images_are_brought_to_the_size(height: int, width: int, expected: tuple[int, int]) -> None:
    assert fit(height, width, 64, 128) == expected
    model = detector().eval()
    seen: list[Tensor] = []
    model.detector.backbone.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        model([torch.randint(256, (3, height, width), dtype=torch.uint8)])
    padded = tuple(-(-side // 32) * 32 for side in expected)
    assert seen[0].shape == (1, 3, *padded)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


def test_bytes_are_normalised_as_the_backbone_wants_and_not_aliased() -> None:
    model = detector(size=32, max_size=64).eval()
    seen: list[Tensor] = []
    model.detector.backbone.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    stripes = torch.zeros(3, 128, 128, dtype=torch.uint8)
    stripes[:, :, ::2] = 255
    with torch.no_grad():
        model([stripes])
        model([stripes / 255])
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (model.backbone.mean, model.backbone.std))
    torch.testing.assert_close((seen[0][0] * std + mean)[:, :, 1:-1], torch.full((3, 32, 30), 0.5), rtol=0, atol=0.02)
    torch.testing.assert_close(seen[0], seen[1])


@pytest.mark.parametrize(
    ("backbone", "args"),
    [
        ("care_s0", TINY),
        ("flatten_pvt_tiny", {"depths": (1, 1, 1, 1)}),
        ("flatten_swin_tiny", {"depths": (1, 1, 1, 1)}),
        ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1), "strict_img_size": False}),
        ("flatten_deit_tiny", {"depth": 5}),
        ("resnet18", {}),
    ],
)
def test_backbones_give_maps_at_the_strides(backbone: str, args: dict) -> None:
    model = Backbone(backbone, (4, 8, 16, 32), args=args).eval()
    with torch.no_grad():
        maps = model(torch.randn(1, 3, 64, 1024))  # what 37x1013 is padded to
    for each, stride, channels in zip(maps, (4, 8, 16, 32), model.channels, strict=True):
        assert each.shape == (1, channels, 64 // stride, 1024 // stride)


def test_2048_pixels_and_long_strips_pass_through() -> None:
    model = detector(backbone="care_s0", backbone_args=TINY, size=2048, max_size=2048).eval()
    with torch.inference_mode():
        found = model([torch.randint(256, (3, 2048, 2048), dtype=torch.uint8)])[0]
        assert found["boxes"].shape[1] == 4
        model.resize_to(37)
        model([torch.randint(256, (3, 37, 1013), dtype=torch.uint8)])


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["care_s0", "flatten_pvt_tiny", "flatten_swin_tiny"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(2048, 2048), (37, 1013)])
def test_high_resolution_with_every_backbone(backbone: str, name: str, size: tuple[int, int]) -> None:
    model = detector(name, backbone=backbone, size=min(size), max_size=max(size)).eval()
    with torch.inference_mode():
        found = model([torch.randint(256, (3, *size), dtype=torch.uint8)])[0]
    assert found["boxes"].isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_saved_and_loaded_it_finds_the_same(name: str, tmp_path) -> None:
    args = {"score_thresh": 0.0} if name == "retinanet" else FEW | {"box_score_thresh": 0.0}
    model = detector(name, detector_args=args, backbone_args={"drop_path_rate": 0.1}).eval()
    linvit.save_model(model, tmp_path, classes=["a", "b", "c"], input_config={"size": 64})
    loaded = linvit.load_model(tmp_path)
    image = torch.randint(256, (3, 50, 70), dtype=torch.uint8)
    with torch.no_grad():
        expected, found = model([image])[0], loaded([image])[0]
    assert len(found["boxes"]) > 0
    for key, value in expected.items():
        assert torch.equal(found[key], value)
    assert isinstance(build("detect", model.architecture), DetectionModel)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_lower_precision_finds_boxes(precision: str) -> None:
    model = detector(detector_args={"score_thresh": 0.0})
    (found,) = DetectionPredictor(model, "cpu", precision).outputs([torch.randint(256, (3, 64, 64), dtype=torch.uint8)])
    assert len(found["boxes"]) > 0
    assert found["boxes"].isfinite().all()


@pytest.mark.parametrize("where", ["file", "run folder"])
def test_backbone_takes_the_weights_of_a_classifier(where: str, tmp_path) -> None:
    torch.manual_seed(1)
    donor = timm.create_model("care_s0", num_classes=5, **TINY)
    if where == "file":
        place = tmp_path / "donor.pth"
        torch.save(donor.state_dict(), place)
    else:
        place = tmp_path
        linvit.save_model(donor, place, classes=list("abcde"), input_config={"input_size": (3, 32, 32)})
    model = detector(backbone="care_s0", backbone_args=TINY, pretrained=str(place)).backbone
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        maps = model.eval()(image)
        expected = donor.eval().forward_intermediates(image, intermediates_only=True)
    torch.testing.assert_close(maps[0], expected[1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "yolo"}, "name must be one of retinanet, faster_rcnn, mask_rcnn, not 'yolo'"),
        ({"backbone": "care_s9"}, "unknown backbone 'care_s9'; did you mean care_s"),
        ({"backbone_args": {"depht": 3}}, "backbone test_efficientnet cannot be built with {'depht': 3}"),
        ({"detector_args": {"nms_tresh": 3}}, "detector_args has no nms_tresh for retinanet; did you mean nms_thresh"),
        ({"num_classes": 0}, "num_classes must be at least 1, not 0"),
        ({"size": 900}, r"size must be from 1 to max_size \(128\), not 900"),
        ({"anchor_size": 0}, "anchor_size must be above 0"),
    ],
)
def test_wrong_settings_are_named(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        detector(**settings)


def test_weights_that_are_missing_or_of_another_model_are_named(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"pretrained: no weights at 'gone\.pth'"):
        detector(pretrained="gone.pth")
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "other.pth")
    with pytest.raises(ValueError, match="the checkpoint does not fit care_s0"):
        detector(backbone="care_s0", pretrained=str(tmp_path / "other.pth"))


def test_only_a_detector_detects() -> None:
    with pytest.raises(ValueError, match="needs a detector, and the model is a EfficientNet"):
        DetectionPredictor(timm.create_model("test_efficientnet"))
