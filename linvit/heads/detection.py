"""Detectors: torchvision's RetinaNet, Faster R-CNN and Mask R-CNN with a feature pyramid over any backbone."""

from collections import OrderedDict
from collections.abc import Sequence
from inspect import signature
from typing import Any, get_args
from typing import Literal as Choice

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool, LastLevelP6P7

from linvit.checks import did_you_mean, require, require_numbers, said_as
from linvit.heads import DenseModel
from linvit.heads.backbone import Backbone
from linvit.linearization import Described

__all__ = ["DetectionModel", "DetectorName", "build"]

DetectorName = Choice["retinanet", "faster_rcnn", "mask_rcnn"]

Target = dict[str, Tensor]
"""``boxes [N, 4]`` (left, top, right, bottom in pixels), ``labels [N]`` from 0, and ``masks [N, H, W]`` for Mask R-CNN;
of a detection also ``scores [N]``, best first."""

LEVELS = 5  # of the pyramid: P3 to P7 in RetinaNet, P2 to P6 in the others


class DetectionModel(DenseModel):
    """A detector.

    Args:
        num_classes: Number of classes, without the background.
        name: retinanet, faster_rcnn or mask_rcnn.
        backbone: Model by timm's name.
        backbone_args: More arguments of the backbone, such as ``drop_path_rate``.
        size: Pixels that the shorter side of an image is brought to when it is searched.
        max_size: Most pixels of the longer side then; the shorter one follows.
        anchor_size: Side in pixels of the smallest anchor; it doubles from level to level of the pyramid.
        channels: Channels of the pyramid.
        detector_args: More arguments of torchvision's detector, such as ``nms_thresh``.
        pretrained: Weights that the backbone starts from, as for :class:`linvit.heads.backbone.Backbone`.
        replaced: Attention replaced in the backbone, as :func:`linvit.linearization.describe` says it.

    Raises:
        ValueError: An argument is outside its range, or does not suit the detector or the backbone.
    """

    task = "detect"
    backbone_name = "detector.backbone.body"

    def __init__(
        self,
        num_classes: int,
        name: DetectorName = "retinanet",
        backbone: str = "care_s0",
        backbone_args: dict[str, Any] | None = None,
        size: int = 800,
        max_size: int = 1333,
        anchor_size: float = 32,
        channels: int = 256,
        detector_args: dict[str, Any] | None = None,
        pretrained: bool | str = False,
        replaced: Sequence[Described] = (),
    ) -> None:
        require(num_classes >= 1, "num_classes", num_classes, "at least 1")
        require(name in get_args(DetectorName), "name", name, f"one of {', '.join(get_args(DetectorName))}")
        require(1 <= size <= max_size, "size", size, f"from 1 to max_size ({max_size})")
        require(anchor_size > 0, "anchor_size", anchor_size, "above 0")
        require(channels >= 1, "channels", channels, "at least 1")
        strides = (8, 16, 32) if name == "retinanet" else (4, 8, 16, 32)
        features = Backbone(backbone, strides, pretrained, backbone_args, replaced)
        settings = {"size": size, "max_size": max_size, "anchor_size": anchor_size, "channels": channels}
        args = detector_args or {}
        super().__init__(num_classes=num_classes, name=name, **features.architecture, **settings, detector_args=args)
        make = _retinanet if name == "retinanet" else _rcnn
        self.has_masks = name == "mask_rcnn"
        self._first_label = 0 if name == "retinanet" else 1  # the others keep 0 for the background
        with said_as(f"detector_args {args} do not suit {name}"):
            self.detector: Any = make(name, features, channels, anchor_size, num_classes, args)
        self.detector.transform = _Preparation(size, max_size, features.mean, features.std)

    @property
    def input_size(self) -> tuple[int, int]:
        """Pixels that the shorter side of an image is brought to, and the most that its longer side gets."""
        return self.detector.transform.min_size[0], self.detector.transform.max_size

    def resize_to(self, size: int) -> None:
        """Bring the shorter side of images to other than the model's size; the longer side's bound changes with it."""
        wanted, longest = self.architecture["size"], self.architecture["max_size"]
        self.detector.transform.min_size = (size,)
        self.detector.transform.max_size = max(size, round(longest * size / wanted))

    @property
    def backbone(self) -> Backbone:
        """The backbone, below the pyramid."""
        return self.detector.backbone.body

    def forward(self, images: list[Tensor], targets: list[Target] | None = None) -> Any:
        """Return the losses by name in training, and what is found in evaluation, best first.

        Args:
            images: Tensors ``[3, H, W]`` of any size, of bytes or of floats from 0 to 1. In training they are taken as
                they are, in evaluation they are resized, and boxes and masks refer to the images as given.
            targets: What is on them, for training.
        """
        if self.training:
            assert targets is not None, "training needs targets"
            return self.detector(images, [t | {"labels": t["labels"] + self._first_label} for t in targets])
        found = self.detector(images)
        for each in found:
            each["labels"] = each["labels"] - self._first_label
            if "masks" in each:
                each["masks"] = each["masks"][:, 0] > 0.5
        return found


def build(**architecture: Any) -> DetectionModel:
    """Build a detector from its description, without weights."""
    return DetectionModel(**architecture)


def fit(height: int, width: int, size: int, max_size: int) -> tuple[int, int]:
    """Return the height and width that bring the shorter side to ``size``, the longer one to ``max_size`` at most."""
    scale = min(size / min(height, width), max_size / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


class _Preparation(GeneralizedRCNNTransform):
    """Resizes (in evaluation, without aliasing), normalises and stacks images; maps boxes and masks back."""

    def __init__(self, size: int, max_size: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__(size, max_size, list(mean), list(std))

    def normalize(self, image: Tensor) -> Tensor:
        return super().normalize(image if image.is_floating_point() else image.float() / 255)

    def resize(self, image: Tensor, target: Target | None = None) -> tuple[Tensor, Target | None]:
        if self.training:
            return image, target
        size = fit(image.shape[-2], image.shape[-1], self.min_size[0], self.max_size)
        if size != tuple(image.shape[-2:]):
            image = F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]
        return image, target

    def batch_images(self, images: list[Tensor], size_divisible: int = 32) -> Tensor:
        # Channels-last is the fastest layout of these backbones on CPUs and GPUs alike.
        return super().batch_images(images, size_divisible).contiguous(memory_format=torch.channels_last)


class _Pyramid(nn.Module):
    """A feature pyramid over a backbone, as torchvision's detectors want it."""

    def __init__(self, body: Backbone, channels: int, extra: ExtraFPNBlock) -> None:
        super().__init__()
        self.body = body
        self.fpn = FeaturePyramidNetwork(body.channels, channels, extra)
        self.out_channels = channels

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return self.fpn(OrderedDict((str(i), each) for i, each in enumerate(self.body(image))))


_RATIOS = ((0.5, 1.0, 2.0),) * LEVELS


def _retinanet(name: str, body: Backbone, channels: int, anchor: float, num_classes: int, args: dict[str, Any]) -> Any:
    sizes = tuple(tuple(anchor * 2 ** (level + third / 3) for third in range(3)) for level in range(LEVELS))
    pyramid = _Pyramid(body, channels, LastLevelP6P7(channels, channels))
    _check_args(name, RetinaNet, args)
    return RetinaNet(pyramid, num_classes, anchor_generator=AnchorGenerator(sizes, _RATIOS), **args)


def _rcnn(name: str, body: Backbone, channels: int, anchor: float, num_classes: int, args: dict[str, Any]) -> Any:
    sizes = tuple((anchor * 2**level,) for level in range(LEVELS))
    pyramid = _Pyramid(body, channels, LastLevelMaxPool())
    kind = MaskRCNN if name == "mask_rcnn" else FasterRCNN
    _check_args(name, kind, args)
    return kind(pyramid, num_classes + 1, rpn_anchor_generator=AnchorGenerator(sizes, _RATIOS), **args)


def _check_args(name: str, kind: type[nn.Module], args: dict[str, Any]) -> None:
    """Refuse what the detector does not know: it takes any keyword, and passes over those."""
    known = list(signature(kind).parameters)
    for given in args:
        if given not in known:
            nearest = did_you_mean(given, known, "torchvision's documentation names them")
            raise ValueError(f"detector_args has no {given} for {name}{nearest}")
    require_numbers(f"detector_args of {name}", args, kind)
    for given, value in args.items():
        default = signature(kind).parameters[given].default
        if type(default) is int and type(value) is not int:
            raise ValueError(f"detector_args: {given} must be a whole number such as {default}, not {value!r}")
