"""Changes to an image and its mask together, and what brings both to tensors (torchvision's v2 transforms)."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from linvit.data.masks import IGNORED

__all__ = ["JointTransform", "RandomWindow", "eval_transform", "image_transform", "train_transform"]

JointTransform = Callable[[Image.Image, np.ndarray], tuple[Tensor, Tensor]]
"""Turns an RGB image and its targets ``[H, W]`` into a float tensor ``[3, h, w]`` and an int64 tensor."""

_TRIES = 10


class RandomWindow(v2.Transform):
    """Cuts out a window at a random place and scale; an image smaller than the window is taken whole.

    Args:
        size: Height and width of the window in pixels, after scaling.
        scale: Least and greatest factor on the image's size.
        short_side: Length in pixels that the shorter side is brought to before; None leaves images as they are.
        max_share: Windows in which one class takes more than this share of the pixels are drawn again, ten times at
            most.
    """

    def __init__(
        self, size: Sequence[int], scale: tuple[float, float], short_side: int | None = None, max_share: float = 1.0
    ) -> None:
        super().__init__()
        self.size = size
        self.scale = scale
        self.short_side = short_side
        self.max_share = max_share

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the window, in pixels of the image, and the size that it is brought to."""
        mask = next(inpt for inpt in flat_inputs if isinstance(inpt, tv_tensors.Mask))
        whole = mask.shape[-2:]
        zoom = _zoom(whole, self.short_side) * torch.empty(1).uniform_(*self.scale).item()
        (height, out_height), (width, out_width) = (
            _cut(side, out, zoom) for side, out in zip(whole, self.size, strict=True)
        )
        for _ in range(_TRIES):
            top = int(torch.randint(whole[0] - height + 1, (1,)))
            left = int(torch.randint(whole[1] - width + 1, (1,)))
            if _largest_share(mask[top : top + height, left : left + width]) <= self.max_share:
                break
        return {"top": top, "left": left, "height": height, "width": width, "size": [out_height, out_width]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Cut and scale an image (bilinear) or a mask (nearest)."""
        return F.resized_crop(inpt, **params, antialias=True)


def train_transform(
    window: Sequence[int],
    scale: tuple[float, float],
    max_share: float,
    hflip: float,
    photometric: float,
    short_side: int | None,
    mean: Sequence[float],
    std: Sequence[float],
) -> JointTransform:
    """Return the random changes for training: window, mirroring, colours; smaller images are padded to the window."""
    change = v2.Compose(
        [
            RandomWindow(window, scale, short_side, max_share),
            v2.RandomHorizontalFlip(hflip),
            v2.RandomApply([v2.RandomPhotometricDistort(p=1.0)], photometric),
            v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
            v2.Normalize(mean, std),
            v2.RandomCrop(window, pad_if_needed=True, fill={tv_tensors.Image: 0, tv_tensors.Mask: IGNORED}),
        ]
    )

    def transform(image: Image.Image, targets: np.ndarray) -> tuple[Tensor, Tensor]:
        pixels, mask = change(tv_tensors.Image(F.pil_to_tensor(image)), tv_tensors.Mask(torch.from_numpy(targets)))
        return pixels.as_subclass(Tensor), mask.as_subclass(Tensor).long()

    return transform


def eval_transform(short_side: int | None, mean: Sequence[float], std: Sequence[float]) -> JointTransform:
    """Return what brings an image to the size and the numbers that a model sees, and its targets to a tensor."""
    prepare = image_transform(short_side, mean, std)

    def transform(image: Image.Image, targets: np.ndarray) -> tuple[Tensor, Tensor]:
        return prepare(image), torch.from_numpy(targets).long()

    return transform


def image_transform(
    short_side: int | None, mean: Sequence[float], std: Sequence[float]
) -> Callable[[Image.Image], Tensor]:
    """Return what brings an RGB image to a float tensor ``[3, h, w]`` of the size and the numbers that a model sees."""

    def transform(image: Image.Image) -> Tensor:
        pixels = F.pil_to_tensor(image)
        zoom = _zoom(pixels.shape[1:], short_side)
        if zoom != 1:
            pixels = F.resize(pixels, [max(1, round(side * zoom)) for side in pixels.shape[1:]], antialias=True)
        return F.normalize(F.to_dtype(pixels, torch.float32, scale=True), list(mean), list(std))

    return transform


def _zoom(size: Sequence[int], short_side: int | None) -> float:
    return 1.0 if short_side is None else short_side / min(size)


def _cut(side: int, out: int, zoom: float) -> tuple[int, int]:
    """Return how much of a side is cut out, and the length that it is brought to: ``out`` where the side suffices."""
    wanted = max(1, round(out / zoom))
    return (wanted, out) if wanted <= side else (side, min(out, max(1, round(side * zoom))))


def _largest_share(mask: Tensor) -> float:
    counts = torch.bincount(mask.flatten(), minlength=IGNORED + 1)[:IGNORED]
    return float(counts.max() / counts.sum().clamp(min=1))
