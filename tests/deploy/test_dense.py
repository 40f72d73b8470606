"""Detectors and segmentation networks go into files, too, as far as what they return has a fixed shape."""

import json

import onnx
import pytest
import torch

import linvit
from linvit.deploy import export_model, find_format
from linvit.heads.detection import DetectionModel
from linvit.heads.segmentation import Segmenter

BACKBONE = {"depths": (1, 1, 1, 1), "dims": (4, 8, 16, 32), "layer_scale_init_value": 0.5}
CLASSES = ["road", "tree", "sky"]
SEEN = {"mean": [0.5] * 3, "std": [0.25] * 3, "short_side": None, "values": [0, 1, 2], "ignore": [255]}


def images(batch: int = 2, height: int = 64, width: int = 96) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    torch.manual_seed(0)
    decoder = {"pyramid_channels": 32, "segmentation_channels": 32}
    model = Segmenter(3, backbone_args=BACKBONE, decoder_args=decoder)
    folder = tmp_path_factory.mktemp("runs") / "segment"
    linvit.save_model(model, folder, classes=CLASSES, input_config=SEEN)
    return folder


def detector(name: str) -> DetectionModel:
    torch.manual_seed(0)
    model = DetectionModel(4, name, backbone_args=BACKBONE, size=64, max_size=96, anchor_size=16, channels=16)
    if name == "retinanet":  # as it is made, it finds nothing
        torch.nn.init.zeros_(model.detector.head.classification_head.cls_logits.bias)
    return model.eval()


def test_segmentation_network_as_a_file_of_its_logits(segmenter, tmp_path):
    model = linvit.load_model(segmenter)
    export = export_model(model, tmp_path / "m.onnx", "onnx", images(), img_size=(64, 96), classes=CLASSES)
    assert export.check.max_error < 1e-5
    assert export.check.top1_agreement == 1.0
    (logits,) = find_format("onnx").load(tmp_path / "m.onnx")(images(1))
    with torch.no_grad():
        torch.testing.assert_close(logits, model(images(1)), rtol=1e-3, atol=1e-5)
    properties = {
        p.key: json.loads(p.value)
        for p in onnx.load(tmp_path / "m.onnx").metadata_props
        if p.key not in ("interpolation", "crop_mode", "precision")  # plain words
    }
    assert properties["classes"] == CLASSES
    assert properties["mean"] == SEEN["mean"]


def test_command_exports_a_segmentation_run_at_a_given_size(linvit_command, segmenter, tmp_path):
    said = linvit_command("export", segmenter, "--to", "torch", "--out", tmp_path / "m.pt2")
    assert said.code == 2
    assert said.err == "linvit: error: img_size: the model takes images of any size; give --img-size HEIGHTxWIDTH\n"
    args = ("--img-size", "64x96", "--with-preprocessing", "--json")
    said = linvit_command("export", segmenter, "--to", "torch", "--out", tmp_path / "m.pt2", *args)
    assert said.json["top1_agreement"] == 1.0
    (probabilities,) = find_format("torch").load(tmp_path / "m.pt2")(torch.zeros(2, 64, 96, 3, dtype=torch.uint8))
    assert probabilities.shape == (2, 3, 64, 96)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(2, 64, 96))


@torch.no_grad()
def test_retinanet_as_a_file_of_boxes_and_scores_among_which_are_its_detections(tmp_path):
    model = detector("retinanet")
    image = images(1)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (model.backbone.mean, model.backbone.std))
    normalised = (image - mean) / std
    export = export_model(model, tmp_path / "m.onnx", "onnx", normalised, img_size=(64, 96))
    assert export.check.max_error < 1e-5
    boxes, scores = find_format("onnx").load(tmp_path / "m.onnx")(normalised)
    assert scores.shape == (1, boxes.shape[1], 4)
    (found,) = model(list(image))
    assert len(found["boxes"]) > 10
    for box, score, label in zip(found["boxes"], found["scores"], found["labels"], strict=True):
        distance = (boxes[0] - box).abs().amax(1) / 96 + (scores[0, :, label] - score).abs()
        assert distance.min() < 1e-4


def test_detectors_that_select_regions_inside_say_what_can_be_exported(tmp_path):
    model = detector("faster_rcnn")
    with pytest.raises(ValueError, match=r"faster_rcnn selects regions inside.*--features, or train a retinanet"):
        export_model(model, tmp_path / "m.pt2", "torch", images())
    export = export_model(model, tmp_path / "m.pt2", "torch", images(), img_size=(64, 96), features=True)
    assert export.check.max_error < 1e-5
    assert len(find_format("torch").load(tmp_path / "m.pt2")(images(1))) == 5


def test_size_must_suit_the_strides(segmenter, tmp_path):
    with pytest.raises(ValueError, match="img_size must be multiples of 32 to segment, got 50x96"):
        export_model(linvit.load_model(segmenter), tmp_path / "m.pt2", "torch", images(), img_size=(50, 96))
