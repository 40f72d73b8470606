"""What a model sees in an image before it names a class: its pooled features, and its maps at each level."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from linvit.heads import DenseModel

__all__ = ["Level", "bare", "features", "levels", "width"]


@dataclass(frozen=True)
class Level:
    """A place in a model where its maps may be taken.

    Attributes:
        index: Which of the model's intermediates it is.
        stride: Pixels of the image per position of the map.
        channels: Channels of the map.
    """

    index: int
    stride: int
    channels: int


def bare(model: nn.Module) -> Any:
    """Return the timm model itself: of a detector or a segmentation network, its backbone.

    Raises:
        ValueError: The model gives no intermediate maps.
    """
    if isinstance(model, DenseModel):
        body: Any = model.get_submodule(f"{model.backbone_name}.body")
        model = body.model
    if not hasattr(model, "forward_intermediates"):
        raise ValueError(f"{type(model).__name__} gives no intermediate maps, so its features cannot be taken")
    return model


def levels(model: Any, count: int | None = None) -> list[Level]:
    """Return the last map at each stride, from fine to coarse.

    Args:
        model: A timm model.
        count: How many evenly spaced blocks to take of a model that has one stride alone (ViT); None: 4.
    """
    offered = [Level(i, info["reduction"], info["num_chs"]) for i, info in enumerate(model.feature_info)]
    strides = {level.stride: level for level in offered}
    if len(strides) > 1:
        return [strides[stride] for stride in sorted(strides)]
    count = min(count or 4, len(offered))
    return [offered[number * len(offered) // count - 1] for number in range(1, count + 1)]


def width(model: Any) -> int:
    """Return how many pooled features a model has."""
    return int(getattr(model, "head_hidden_size", None) or model.num_features)


def features(model: Any, image: Tensor, indices: Sequence[int], norm: bool = False) -> tuple[Tensor, list[Tensor]]:
    """Return the pooled features ``[B, width]``, and the maps ``[B, channels, h, w]`` of some intermediates.

    Args:
        model: A timm model.
        image: ``[B, 3, H, W]``.
        indices: Which intermediates to return, rising.
        norm: Apply the model's final normalisation to the maps, where timm does so (ViT).
    """
    if not indices:  # timm refuses an empty list
        return model.forward_head(model.forward_features(image), pre_logits=True), []
    last, maps = model.forward_intermediates(image, indices=list(indices), norm=norm)
    return model.forward_head(last, pre_logits=True), maps
