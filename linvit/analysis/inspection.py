"""All that there is to see of a model on one image, gathered: numbers for programs, maps for pictures."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import resolve_input_data_config
from torch import Tensor, nn

from linvit.analysis.contributions import care_contributions, has_groups
from linvit.analysis.gradients import effective_receptive_field, grad_cam
from linvit.analysis.layer import Layer, strides_of
from linvit.analysis.maps import fine_maps
from linvit.analysis.measures import (
    attention_distance,
    attention_entropy,
    attention_of,
    attention_rank,
    attention_received,
    key_saliency_map,
    mixing_of,
)
from linvit.checkpoints import class_names
from linvit.data.preprocessing import transform_for
from linvit.heads import DenseModel

__all__ = ["Eye", "Inspection", "LayerRecord"]

LONGEST_SIDE = 512
MOST_QUERIES = 512


@dataclass
class LayerRecord:
    """What was seen of one layer: numbers, and maps as ``[height, width]`` arrays over the image.

    Attributes:
        name: Where it stands in the model.
        mechanism: What it is called.
        grid: Height and width of its queries' grid.
        heads: How many heads attend.
        keys: How many tokens are attended to.
        entropy: In nats, mean over heads; at most ``log(keys)``.
        distance: Mean attention distance in pixels.
        rank: Of the attention: numerical, effective, and the highest that there could be.
        rank_mixed: Of attention and local part together; None where the mechanism has no local part.
        received: How much attention each position receives.
        attention: Of the pixel, ``[heads, height, width]``.
        mixing: What is mixed into the pixel, local part included.
        saliency: Of key-only attention, mean over heads.
        extent: Height and width in pixels that the maps cover; beyond the image where it was padded.
    """

    name: str
    mechanism: str
    grid: tuple[int, int]
    heads: int
    keys: int
    entropy: float
    distance: float
    rank: dict[str, float]
    rank_mixed: dict[str, float] | None
    received: np.ndarray
    attention: np.ndarray
    mixing: np.ndarray
    saliency: np.ndarray | None
    extent: tuple[float, float]

    def numbers(self) -> dict[str, Any]:
        """Return what a program wants."""
        return {
            "name": self.name,
            "mechanism": self.mechanism,
            "grid": list(self.grid),
            "heads": self.heads,
            "keys": self.keys,
            "entropy": self.entropy,
            "entropy_highest": math.log(self.keys),
            "distance": self.distance,
            "rank": self.rank,
            "rank_mixed": self.rank_mixed,
        }


@dataclass
class Inspection:
    """What was seen of a model on one image."""

    image: Image.Image  # as the model saw it
    at: tuple[int, int]  # the pixel of that image, column and row
    layers: list[LayerRecord]
    receptive_field: np.ndarray  # [H, W], the effective receptive field of the pixel's position of the last map
    classes: list[dict[str, Any]] = field(default_factory=list)  # the most likely first
    cam: np.ndarray | None = None
    cam_class: str = ""
    cam_extent: tuple[float, float] = (0, 0)
    groups: list[dict[str, Any]] = field(default_factory=list)

    def numbers(self) -> dict[str, Any]:
        """Return what a program wants."""
        return {
            "size": [self.image.height, self.image.width],
            "at": list(self.at),
            "classes": self.classes,
            "layers": [layer.numbers() for layer in self.layers],
            "groups": self.groups,
        }


class Eye:
    """A model with its preprocessing, ready to be looked into.

    Args:
        model: A classifier with attention that is known, or a network for detection or segmentation over such a
            backbone, which alone is looked into.
        device: Where to compute.
        img_size: Side of the square that a classifier sees, in pixels; the longest side for others. The model's own by
            default (512 for detection and segmentation).
    """

    def __init__(self, model: nn.Module, device: torch.device | str = "cpu", img_size: int | None = None):
        self.is_classifier = not isinstance(model, DenseModel) and getattr(model, "num_classes", 0) > 0
        self.labels = class_names(model, readable=True) if self.is_classifier else []
        subject: Any = model
        if isinstance(model, DenseModel):
            subject = model.get_submodule(f"{model.backbone_name}.body").model
        self.model: nn.Module = subject.eval().to(device)
        self.device = torch.device(device)
        config: dict[str, Any] = resolve_input_data_config(subject)
        if img_size is not None and img_size < 1:
            raise ValueError(f"img_size must be at least 1 pixel, got {img_size}")
        if not isinstance(model, DenseModel):
            if img_size is not None:
                config["input_size"] = (config["input_size"][0], img_size, img_size)
            steps: list[Any] = transform_for(config).transforms
            cut = next(i for i, step in enumerate(steps) if "Tensor" in type(step).__name__)
            self._spatial = steps[:cut]
        else:
            self._spatial = [lambda image: _shrink(image, img_size or LONGEST_SIDE)]
        self.channels: int = config["input_size"][0]
        self.mean, self.std = (torch.tensor(config[key]).view(-1, 1, 1) for key in ("mean", "std"))

    def see(self, image: Image.Image) -> tuple[Image.Image, Tensor]:
        """Return an image as the model sees it, and as its input ``[1, C, H, W]``."""
        for step in self._spatial:
            image = step(image)
        colours = np.array(image.convert("RGB" if self.channels == 3 else "L"))
        pixels = torch.from_numpy(colours).view(image.height, image.width, self.channels).permute(2, 0, 1).float() / 255
        return image, ((pixels - self.mean) / self.std)[None].to(self.device)

    def find(self, image: Image.Image, at: tuple[float, float]) -> tuple[int, int]:
        """Return where the model sees a pixel of the original image: column and row in what :meth:`see` returns.

        Raises:
            ValueError: The pixel lies outside the image, or was cropped away.
        """
        width, height = image.size
        if not (0 <= at[0] < width and 0 <= at[1] < height):
            raise ValueError(f"pixel {at[0]:g},{at[1]:g} lies outside the image, which has {width}x{height} pixels")
        columns, rows = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
        found, shown = [], []
        for axis, (numbers, wanted) in enumerate(((columns, at[0]), (rows, at[1]))):
            seen = Image.fromarray(numbers)
            for step in self._spatial:
                seen = step(seen)
            line = np.asarray(seen).mean(axis=axis)
            nearest = int(np.abs(line - wanted).argmin())
            step_size = np.abs(np.diff(line)).max() if len(line) > 1 else numbers.size
            shown.append(f"{max(line.min(), 0):.0f} to {line.max():.0f}")
            found.append((nearest, abs(line[nearest] - wanted) <= max(step_size, 1) * 2))
        if not all(inside for _, inside in found):
            raise ValueError(
                f"pixel {at[0]:g},{at[1]:g} is not in what the model sees of the image: "
                f"columns {shown[0]}, rows {shown[1]}"
            )
        return found[0][0], found[1][0]

    def inspect(
        self,
        image: Image.Image,
        at: tuple[float, float] | None = None,
        target: int | None = None,
        least: int = 7,
        ranks: bool = True,
    ) -> Inspection:
        """Look into the model on one image.

        Args:
            image: An RGB image of any size.
            at: The pixel to look from, column and row of the original image; the centre by default.
            target: The class whose map is drawn; the most likely by default.
            least: Positions a side that maps should have, as for :func:`linvit.analysis.fine_maps`.
            ranks: Measure ranks, which takes most of the time; False leaves them 0.
        """
        seen, pixels = self.see(image)
        place = (seen.width // 2, seen.height // 2) if at is None else self.find(image, at)
        layers = self.layers(pixels, place, least, ranks)
        result = Inspection(seen, place, layers, self._field(pixels, place))
        if self.is_classifier:
            with torch.inference_mode():
                logits = self.model(pixels)
            if logits.ndim == 2:
                self._classify(result, logits.float().softmax(dim=1)[0], pixels, target)
        if any(map(has_groups, self.model.modules())):
            result.groups = care_contributions(self.model, pixels)
        return result

    def layers(self, pixels: Tensor, place: tuple[int, int], least: int = 7, ranks: bool = True) -> list[LayerRecord]:
        """Return what is seen of each layer; ``place`` is column and row in the image as the model sees it."""
        height, width = pixels.shape[-2:]
        measured: dict[str, dict[str, Any]] = {}

        def look(layer: Layer, x: int, y: int) -> Tensor:
            if layer.name not in measured:  # the first look is the image itself
                measured[layer.name] = _measure(layer, ranks)
            column = min(max(place[0] - x, 0), width - 1)
            row = min(max(place[1] - y, 0), height - 1)
            saliency = key_saliency_map(layer)
            maps = [attention_of(layer, column, row), mixing_of(layer, column, row)[None]]
            maps += [attention_received(layer).mean(dim=0)[None]]
            maps += [] if saliency is None else [saliency.mean(dim=0)[None]]
            return torch.cat(maps)

        records = []
        for layer, maps in fine_maps(self.model, pixels, look, least):
            heads, each = layer.num_heads, maps.cpu().numpy()
            records.append(
                LayerRecord(
                    **measured[layer.name],
                    attention=each[:heads],
                    mixing=each[heads],
                    received=each[heads + 1],
                    saliency=each[heads + 2] if len(each) > heads + 2 else None,
                    extent=_extent(layer),
                )
            )
        return records

    def _field(self, pixels: Tensor, place: tuple[int, int]) -> np.ndarray:
        return effective_receptive_field(self.model, pixels, at=place).cpu().numpy()

    def _classify(self, result: Inspection, probabilities: Tensor, pixels: Tensor, target: int | None) -> None:
        top = probabilities.topk(min(5, len(probabilities)))
        result.classes = [
            {"class": self.labels[index], "index": index, "probability": value}
            for index, value in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        ]
        chosen = result.classes[0]["index"] if target is None else target
        cam = grad_cam(self.model, pixels, chosen)
        result.cam, result.cam_class = cam.cpu().numpy(), self.labels[chosen]
        reductions = [entry["reduction"] for entry in self.model.feature_info]  # type: ignore[union-attr]
        down, right = strides_of((pixels.shape[-2], pixels.shape[-1]), (cam.shape[0], cam.shape[1]), reductions)
        result.cam_extent = (cam.shape[0] * down, cam.shape[1] * right)


def _measure(layer: Layer, ranks: bool) -> dict[str, Any]:
    def rank(mixed: bool) -> dict[str, float]:
        found = attention_rank(layer, mixed)
        return {"numerical": found.numerical, "effective": found.effective, "full": found.full}

    nothing = {"numerical": 0.0, "effective": 0.0, "full": 0}
    return {
        "name": layer.name,
        "mechanism": layer.mechanism,
        "grid": layer.grid,
        "heads": layer.num_heads,
        "keys": layer.num_keys,
        "entropy": attention_entropy(layer, MOST_QUERIES).mean().item(),
        "distance": attention_distance(layer, MOST_QUERIES).mean().item(),
        "rank": rank(False) if ranks else nothing,
        "rank_mixed": (rank(True) if ranks else nothing) if layer.has_local else None,
    }


def _extent(layer: Layer) -> tuple[float, float]:
    return layer.key_grid[0] * layer.key_strides[0], layer.key_grid[1] * layer.key_strides[1]


def _shrink(image: Image.Image, longest: int) -> Image.Image:
    factor = longest / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Image.Resampling.BICUBIC)
