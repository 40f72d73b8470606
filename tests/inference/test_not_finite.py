"""Networks whose outputs are not finite: one line and exit code 2 in every command, never an image without objects."""

import pytest
import torch

import linvit
from linvit.heads.detection import DetectionModel
from linvit.heads.segmentation import Segmenter

BACKBONE = {"depths": (1, 1, 1, 1), "dims": (4, 8, 16, 32), "layer_scale_init_value": 0.5}
DIGITS = [str(digit) for digit in range(10)]
SEEN = {"mean": [0.5] * 3, "std": [0.25] * 3, "short_side": None, "values": list(range(11)), "ignore": [255]}
HUGE = 1.6e38  # finite, and its products are not
EXPORT = ["export", "MODEL", "--to", "torch", "--out", "m.pt2", "--img-size", "64"]


def detector(name, part):
    model = DetectionModel(10, name, backbone_args=BACKBONE, size=64, max_size=96, anchor_size=16, channels=16)
    spoil(model.detector.get_submodule(part))
    linvit.save_model(model, "model", classes=DIGITS, input_config={})


def segmenter():
    decoder = {"pyramid_channels": 32, "segmentation_channels": 32}
    model = Segmenter(11, backbone_args=BACKBONE, decoder_args=decoder)
    spoil(model.head)
    linvit.save_model(model, "model", classes=["background", *DIGITS], input_config=SEEN)


def spoil(part):
    """Make sums of products too large for float32, in both directions: NaN."""
    for parameter in part.parameters():
        torch.nn.init.uniform_(parameter, -HUGE, HUGE)


def check(linvit_command, command):
    said = linvit_command(*[{"MODEL": "model"}.get(word, word) for word in command])
    assert said.code == 2
    assert "outputs are not finite (NaN or infinite)" in said.err
    assert said.err.count("\n") == 1
    assert not said.out


COMMANDS = [["predict", "MODEL", "digit-scenes"], ["eval", "MODEL", "digit-scenes"], EXPORT]


@pytest.mark.parametrize("command", COMMANDS)
def test_detector(linvit_command, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    detector("retinanet", "head.classification_head")
    check(linvit_command, command)


@pytest.mark.parametrize("part", ["rpn.head", "roi_heads.box_predictor"])
def test_parts_of_a_detector_of_two_stages(linvit_command, tmp_path, monkeypatch, part):
    monkeypatch.chdir(tmp_path)
    detector("faster_rcnn", part)
    check(linvit_command, COMMANDS[0])


@pytest.mark.parametrize("command", COMMANDS)
def test_segmentation_network(linvit_command, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    segmenter()
    check(linvit_command, command)
