"""What of a detector or a segmentation network goes into a file: tensors of fixed meaning and no selection."""

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image

from linvit.heads import DenseModel
from linvit.heads.detection import LEVELS, DetectionModel

__all__ = ["BoxesAndScores", "Maps", "dense_body", "dense_config"]


class BoxesAndScores(nn.Module):
    """RetinaNet's box and scores at every anchor, before the best are selected.

    How many remain after that depends on the image, which formats with planned memory have no way to say; all runtimes
    have a non-maximum suppression of their own.
    """

    def __init__(self, model: DetectionModel):
        super().__init__()
        detector = model.detector
        self.backbone, self.head = detector.backbone, detector.head
        self.anchors, self.coder = detector.anchor_generator, detector.box_coder

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map normalised images ``[B, 3, H, W]``, sides multiples of 32, to boxes and scores, both float32.

        Returns:
            ``[B, anchors, 4]``: left, top, right, bottom in pixels of the input; ``[B, anchors, classes]``: 0 to 1.
        """
        B, _, H, W = images.shape
        maps = list(self.backbone(images).values())
        found = self.head(maps)
        sizes = [(each.shape[2], each.shape[3]) for each in maps]
        strides: Any = [(H // rows, W // columns) for rows, columns in sizes]
        # In half precision, pixels beyond 2,048 would be rounded to even numbers.
        anchors = torch.cat(self.anchors.grid_anchors(sizes, strides)).repeat(B, 1)
        boxes = self.coder.decode_single(found["bbox_regression"].flatten(0, 1).float(), anchors)
        boxes = clip_boxes_to_image(boxes, (H, W)).unflatten(0, (B, -1))
        return boxes, found["cls_logits"].float().sigmoid()


class Maps(nn.Module):
    """The maps below a head: a detector's pyramid, or a segmentation network's backbone."""

    def __init__(self, body: nn.Module, count: int):
        super().__init__()
        self.body = body
        self.names = tuple(f"map{i}" for i in range(count))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Map images to maps ``[B, C, H, W]``, finest first."""
        maps: Any = self.body(images)
        return tuple(maps.values() if isinstance(maps, dict) else maps)


def dense_body(model: DenseModel, features: bool) -> tuple[nn.Module, tuple[str, ...]]:
    """Return what is exported, and the names of its outputs.

    Raises:
        ValueError: The detector selects regions inside.
    """
    if isinstance(model, DetectionModel):
        if features:
            maps = Maps(model.detector.backbone, LEVELS)
            return maps, maps.names
        if model.architecture["name"] != "retinanet":
            raise ValueError(
                f"{model.architecture['name']} selects regions inside, as many as there are on the image: "
                "export its pyramid with --features, or train a retinanet"
            )
        return BoxesAndScores(model), ("boxes", "scores")
    if features:
        body: Any = model.backbone
        return Maps(body, len(body.strides)), tuple(f"map{i}" for i in range(len(body.strides)))
    return model, ("logits",)


def dense_config(model: Any) -> dict[str, Any]:
    """Return a network's input under timm's names; ``input_size`` is None where it takes images as they are."""
    if isinstance(model, DetectionModel):
        side: int | None = model.input_size[0]
        source: Any = {"mean": model.backbone.mean, "std": model.backbone.std}
    else:
        source = model.pretrained_cfg
        side = model.window or source.get("short_side")
    size = None if side is None else (3, *[-(-side // 32) * 32] * 2)
    return {
        "input_size": size,
        "mean": tuple(source["mean"]),
        "std": tuple(source["std"]),
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "crop_mode": "squash",
    }
