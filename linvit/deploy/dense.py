"""What of a detector or a segmentation network goes into a file: tensors of fixed meaning and no selection."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image

from linvit.heads.detection import LEVELS, DetectionModel

__all__ = ["BoxesAndScores", "DetectionView", "ExportView", "Maps", "SegmentationView"]


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


class ExportView(ABC):
    """What of a network goes into a file, and what it sees.

    Args:
        model: The network.
    """

    def __init__(self, model: Any) -> None:
        self.model = model

    @abstractmethod
    def body(self, features: bool) -> tuple[nn.Module, tuple[str, ...]]:
        """Return what is exported, and the names of its outputs; with ``features``, the maps below the head.

        Raises:
            ValueError: The network has no such form.
        """

    @abstractmethod
    def _seen(self) -> tuple[Any, int | None]:
        """Return mean and std, and the side of the images in pixels; None where they are taken as they are."""

    def input_config(self) -> dict[str, Any]:
        """Return the network's input under timm's names; ``input_size`` is None where it takes images as they are."""
        source, side = self._seen()
        return {
            "input_size": None if side is None else (3, *[-(-side // 32) * 32] * 2),
            "mean": tuple(source["mean"]),
            "std": tuple(source["std"]),
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "squash",
        }


class DetectionView(ExportView):
    """RetinaNet's boxes and scores before the selection; of any detector, its pyramid."""

    def body(self, features: bool) -> tuple[nn.Module, tuple[str, ...]]:
        """Return boxes and scores, or the pyramid's maps.

        Raises:
            ValueError: The detector selects regions inside.
        """
        name = self.model.architecture["name"]
        if features:
            maps = Maps(self.model.detector.backbone, LEVELS)
            return maps, maps.names
        if name != "retinanet":
            raise ValueError(
                f"{name} selects regions inside, as many as there are on the image: "
                "export its pyramid with --features, or train a retinanet"
            )
        return BoxesAndScores(self.model), ("boxes", "scores")

    def _seen(self) -> tuple[Any, int | None]:
        backbone = self.model.backbone
        return {"mean": backbone.mean, "std": backbone.std}, self.model.input_size[0]


class SegmentationView(ExportView):
    """The logits of every pixel, or the backbone's maps."""

    def body(self, features: bool) -> tuple[nn.Module, tuple[str, ...]]:
        """Return the network, or its backbone."""
        if not features:
            return self.model, ("logits",)
        maps = Maps(self.model.backbone, len(self.model.backbone.strides))
        return maps, maps.names

    def _seen(self) -> tuple[Any, int | None]:
        source = self.model.pretrained_cfg
        return source, self.model.window or source.get("short_side")
