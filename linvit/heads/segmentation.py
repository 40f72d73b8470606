"""Semantic segmentation networks: Semantic FPN and UPerNet on any backbone, for images of any size.

Semantic FPN: Kirillov et al., "Panoptic Feature Pyramid Networks", CVPR 2019. UPerNet: Xiao et al., "Unified
Perceptual Parsing for Scene Understanding", ECCV 2018. The decoders are those of segmentation-models-pytorch.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from linvit.checks import require, said_as
from linvit.heads import DenseModel
from linvit.heads.backbone import Backbone
from linvit.linearization import Described

try:
    from segmentation_models_pytorch.base import SegmentationHead
    from segmentation_models_pytorch.base.initialization import initialize_decoder, initialize_head
    from segmentation_models_pytorch.decoders.fpn.decoder import FPNDecoder
    from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        'segmentation needs segmentation-models-pytorch: pip install "linvit[segment]"'
    ) from error

__all__ = ["DECODERS", "DecoderName", "Segmenter", "build", "slide"]

DecoderName = Literal["fpn", "upernet"]

STRIDES = (4, 8, 16, 32)

DECODERS: dict[str, type[nn.Module]] = {"fpn": FPNDecoder, "upernet": UPerNetDecoder}


class Segmenter(DenseModel):
    """A backbone, a decoder, and a 1x1 convolution to one logit per class, at the image's resolution.

    Args:
        num_classes: Number of classes.
        name: Decoder: "fpn" or "upernet".
        backbone: Model by timm's name, or the run folder of a classifier.
        backbone_args: More arguments of the backbone, such as ``drop_path_rate``.
        decoder_args: More arguments of the decoder: for fpn pyramid_channels (256), segmentation_channels (128),
            dropout (0.2), merge_policy (add) and interpolation_mode (nearest); for upernet decoder_channels (256) and
            use_norm (batchnorm).
        window: Side in pixels of the windows that an image is predicted in; None predicts it as a whole.
        stride: Distance in pixels between windows; None: two thirds of the window.
        replaced: Attention replaced in the backbone, as :func:`linvit.linearization.describe` says it.
        pretrained: Weights that the backbone starts from, as for :class:`linvit.heads.backbone.Backbone`.

    Raises:
        ValueError: An argument is outside its range, or does not suit the backbone or the decoder.
    """

    task = "segment"
    backbone_name = "backbone"

    def __init__(
        self,
        num_classes: int,
        name: DecoderName = "fpn",
        backbone: str = "care_s0",
        backbone_args: dict[str, Any] | None = None,
        decoder_args: dict[str, Any] | None = None,
        window: int | None = None,
        stride: int | None = None,
        replaced: Sequence[Described] = (),
        pretrained: bool | str = False,
    ) -> None:
        require(num_classes >= 2, "num_classes", num_classes, "at least 2")
        require(name in DECODERS, "name", name, f"one of {', '.join(DECODERS)}")
        features = Backbone(backbone, STRIDES, pretrained, backbone_args, replaced)
        settings = {"decoder_args": decoder_args or {}, "window": window, "stride": stride}
        super().__init__(num_classes=num_classes, name=name, **features.architecture, **settings)
        self.set_window(window, stride)
        self.backbone = features
        channels = [3, 0, *features.channels]  # as if there were maps at strides 1 and 2, which none uses
        with said_as(f"decoder_args {decoder_args} do not suit {name}"):
            decoder: Any = DECODERS[name](channels, **(decoder_args or {}))
        width = decoder.out_channels if name == "fpn" else decoder.fusion_block[0].out_channels
        self.decoder = decoder
        self.head = SegmentationHead(width, num_classes, kernel_size=1, upsampling=STRIDES[0])
        initialize_decoder(self.decoder)
        initialize_head(self.head)

    def set_window(self, window: int | None, stride: int | None = None) -> None:
        """Choose how :meth:`predict` goes over an image: in windows, or (None) as a whole.

        Raises:
            ValueError: One of them is below 1, or windows would leave gaps.
        """
        require(window is None or window >= 1, "window", window, "at least 1")
        if window is None:
            require(stride is None, "stride", stride, "left out without a window")
        else:
            stride = math.ceil(window * 2 / 3) if stride is None else stride
            require(1 <= stride <= window, "stride", stride, f"from 1 to the window of {window}")
        self.window, self.stride = window, stride

    def forward(self, image: Tensor) -> Tensor:
        """Map images ``[B, 3, H, W]`` of any size to logits ``[B, num_classes, H, W]``."""
        H, W = image.shape[2:]
        image = F.pad(image, (0, _padded(W) - W, 0, _padded(H) - H))
        unused = image.new_empty(0)
        logits = self.head(self.decoder([unused, unused, *self.backbone(image)]))
        return logits[..., :H, :W]

    def predict(self, image: Tensor, size: Sequence[int]) -> Tensor:
        """Map images ``[B, 3, h, w]`` to logits ``[B, num_classes, H, W]`` of another size, in windows if there are."""
        logits = self(image) if self.window is None else slide(self, image, self.window, self.stride or self.window)
        if logits.shape[2:] != tuple(size):
            logits = F.interpolate(logits.float(), tuple(size), mode="bilinear", align_corners=False)
        return logits


def slide(network: nn.Module, image: Tensor, window: int, stride: int) -> Tensor:
    """Predict images in windows and average the logits where windows overlap.

    Windows start every ``stride`` pixels; the last of a row or column is moved back to end with the image.

    Args:
        network: Maps ``[B, 3, h, w]`` to ``[B, num_classes, h, w]``.
        image: ``[B, 3, H, W]``.
        window: Side of a window in pixels; an image that is shorter in a direction has one window there.
        stride: Distance between windows in pixels, up to ``window``.

    Returns:
        Logits ``[B, num_classes, H, W]``, float32.
    """
    H, W = image.shape[2:]
    total = torch.zeros(())
    count = image.new_zeros(1, 1, H, W, dtype=torch.float32)
    for top in _starts(H, window, stride):
        for left in _starts(W, window, stride):
            place = (..., slice(top, top + window), slice(left, left + window))
            logits = network(image[place]).float()
            if not total.ndim:
                total = logits.new_zeros(*logits.shape[:2], H, W)
            total[place] += logits
            count[place] += 1
    return total / count


def _padded(length: int) -> int:
    """Return the next whole multiple of the coarsest stride, two at least: a map of one pixel cannot be normalised."""
    coarsest = STRIDES[-1]
    return max(2, -(-length // coarsest)) * coarsest


def _starts(length: int, window: int, stride: int) -> list[int]:
    last = max(length - window, 0)
    return [min(index * stride, last) for index in range(math.ceil(last / stride) + 1)]


def build(**architecture: Any) -> Segmenter:
    """Build a network from its architecture, without weights."""
    return Segmenter(**architecture)
