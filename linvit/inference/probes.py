"""Judge a backbone without training it: nearest neighbours and a linear classifier on its frozen features."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.data import resolve_input_data_config
from torch import Tensor, nn
from torch.nn import functional as F

from linvit.data.preprocessing import transform_for
from linvit.heads.features import bare, features
from linvit.inference.base import PRECISIONS, check_finite, check_precision, find_device

__all__ = ["LEARNING_RATES", "Extracted", "Extractor", "LinearProbe", "fit_linear", "knn_votes", "linear_probe"]

LEARNING_RATES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""What the linear probe is tried with."""

CHUNK = 1 << 24
"""Similarities to hold at a time: 64 MiB."""


@dataclass
class Extracted:
    """Features of a data set."""

    features: Tensor  # [images, width], float32, on the CPU
    targets: Tensor  # [images]
    seconds: float
    unreadable: list[str] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """Memory that the features take."""
        return self.features.nbytes


class Extractor:
    """Takes the features of images from a model.

    Args:
        model: Any model of linvit or timm; of a detector or a segmentation network, its backbone is judged.
        stage: Which of its intermediate maps to take (counted from 0, or from the end: -1), averaged over all
            positions; None for its pooled features, which its classifier works on.
        device: "auto" takes the accelerator that torch finds, or else the CPU; or any of torch's device names.
        precision: "float32", or "bfloat16" / "float16" for autocast.
        img_size: Height and width of the images in pixels; None takes what the model was trained on.

    Attributes:
        transform: Turns an RGB image into what the model sees.
        input_config: Size, normalisation and crop of it, under timm's names.

    Raises:
        ValueError: There is no such stage, device or precision.
    """

    def __init__(
        self,
        model: nn.Module,
        stage: int | None = None,
        device: str = "auto",
        precision: str = "float32",
        img_size: int | None = None,
    ) -> None:
        check_precision(precision)
        check_finite(model)
        self.device = find_device(device)
        self.precision = precision
        self.model = bare(model).eval().to(self.device, memory_format=torch.channels_last)
        count = len(self.model.feature_info)
        if stage is not None and not -count <= stage < count:
            raise ValueError(f"stage must be from 0 to {count - 1}, or from -{count} to -1, not {stage}")
        self.stage = None if stage is None else stage % count
        self.input_config: dict[str, Any] = resolve_input_data_config(self.model)
        if img_size is not None:
            self.input_config["input_size"] = (self.input_config["input_size"][0], img_size, img_size)
        self.transform: Callable[[Any], Tensor] = transform_for(self.input_config)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Map preprocessed images ``[B, 3, H, W]`` to features ``[B, width]``, float32, on the CPU."""
        images = images.to(self.device, memory_format=torch.channels_last)
        dtype = PRECISIONS[self.precision]
        with torch.autocast(self.device.type, dtype, enabled=dtype is not torch.float32):
            pooled, maps = features(self.model, images, [] if self.stage is None else [self.stage])
        found = pooled if self.stage is None else maps[0].mean(dim=(2, 3))
        if not found.isfinite().all():
            raise ValueError("the model's features are not finite (NaN or infinite)")
        return found.flatten(1).float().cpu()

    def extract(self, batches: Iterable[dict[str, Any]]) -> Extracted:
        """Take the features of batches of :func:`linvit.data.collate`.

        Raises:
            ValueError: Not one image could be read.
        """
        found: list[Tensor] = []
        targets: list[Tensor] = []
        unreadable: list[str] = []
        start = time.perf_counter()
        for batch in batches:
            unreadable += batch["unreadable"]
            if batch["image"] is not None:
                found.append(self(batch["image"]))
                targets.append(batch["target"])
        if not found:
            raise ValueError(f"none of the {len(unreadable)} images could be read")
        return Extracted(torch.cat(found), torch.cat(targets), time.perf_counter() - start, unreadable)


def knn_votes(
    bank: Tensor, bank_targets: Tensor, queries: Tensor, num_classes: int, k: int = 20, temperature: float = 0.07
) -> Tensor:
    """Let the nearest neighbours of each query vote for its class.

    The ``k`` nearest by cosine similarity ``s`` vote with the weight ``exp(s / temperature)`` (Wu et al., 2018, section
    3.4; k = 20 and temperature 0.07 are what DINO reports).

    Args:
        bank: Features of known images ``[M, width]``.
        bank_targets: Their classes ``[M]``.
        queries: Features ``[N, width]``.
        num_classes: Number of classes.
        k: How many neighbours vote, all where there are fewer.
        temperature: The smaller, the more the nearest counts.

    Returns:
        Votes ``[N, num_classes]``.

    Raises:
        ValueError: k or the temperature is not above 0.
    """
    if k < 1 or temperature <= 0:
        raise ValueError(f"neighbours and temperature must be above 0, not {k} and {temperature}")
    bank, queries = F.normalize(bank, dim=1), F.normalize(queries, dim=1)
    votes = queries.new_zeros(len(queries), num_classes)
    rows = max(1, CHUNK // len(bank))
    for begin in range(0, len(queries), rows):
        similarity, nearest = (queries[begin : begin + rows] @ bank.T).topk(min(k, len(bank)), dim=1)
        # Cosines are at most 1, so nothing overflows; of equal weights only the ratio counts.
        weights = ((similarity - 1) / temperature).exp()
        votes[begin : begin + rows].scatter_add_(1, bank_targets[nearest], weights)
    return votes


@dataclass
class LinearProbe:
    """What a linear probe found."""

    logits: Tensor  # [queries, classes]
    lr: float  # the learning rate that was best on images held out of the known ones
    held_out_top1: dict[float, float]  # by learning rate


def linear_probe(
    bank: Tensor,
    bank_targets: Tensor,
    queries: Tensor,
    num_classes: int,
    learning_rates: Sequence[float] = LEARNING_RATES,
    epochs: int = 30,
    batch_size: int = 256,
    seed: int = 0,
) -> LinearProbe:
    """Train a linear classifier on frozen features, its learning rate chosen on a tenth of the known images.

    The features are standardised by the known ones' mean and deviation. Each learning rate is tried on nine tenths of
    the known images; the best on the remaining tenth then trains on all of them. The queries decide nothing.

    Args:
        bank: Features of known images ``[M, width]``.
        bank_targets: Their classes ``[M]``.
        queries: Features ``[N, width]``.
        num_classes: Number of classes.
        learning_rates: What to try.
        epochs: Passes over the known images.
        batch_size: Images per update.
        seed: Decides the tenth and the order.

    Raises:
        ValueError: There are fewer than two known images.
    """
    if len(bank) < 2:
        raise ValueError("a linear probe needs two images to learn from")
    mean, std = bank.mean(dim=0), bank.std(dim=0).clamp(min=1e-6)
    bank, queries = (bank - mean) / std, (queries - mean) / std
    order = torch.randperm(len(bank), generator=torch.Generator().manual_seed(seed))
    held_out, known = order[: max(1, len(bank) // 10)], order[max(1, len(bank) // 10) :]
    weights = fit_linear(bank[known], bank_targets[known], num_classes, learning_rates, epochs, batch_size, seed)
    right = (_logits(weights, bank[held_out]).argmax(dim=2) == bank_targets[held_out]).float().mean(dim=1)
    lr = learning_rates[int(right.argmax())]
    weights = fit_linear(bank, bank_targets, num_classes, [lr], epochs, batch_size, seed)
    return LinearProbe(_logits(weights, queries)[0], lr, dict(zip(learning_rates, right.tolist(), strict=True)))


def fit_linear(
    x: Tensor,
    targets: Tensor,
    num_classes: int,
    learning_rates: Sequence[float],
    epochs: int,
    batch_size: int,
    seed: int,
) -> Tensor:
    """Train linear classifiers side by side, one a learning rate: SGD with momentum 0.9, which falls as a cosine.

    Args:
        x: Features ``[M, width]``.
        targets: Classes ``[M]``.
        num_classes: Number of classes.
        learning_rates: Highest learning rate of each, divided by the root of the width.
        epochs: Passes over the images.
        batch_size: Images per update.
        seed: Decides the order.

    Returns:
        ``[len(learning_rates), width + 1, num_classes]``; the last row is the bias.
    """
    x = F.pad(x, (0, 1), value=1.0)
    generator = torch.Generator().manual_seed(seed)
    weights = x.new_zeros(len(learning_rates), x.shape[1], num_classes)
    momentum = torch.zeros_like(weights)
    rates = torch.tensor(learning_rates).view(-1, 1, 1) / math.sqrt(x.shape[1])
    one_hot = F.one_hot(targets, num_classes).to(x)
    updates = epochs * math.ceil(len(x) / batch_size)
    update = 0
    for _ in range(epochs):
        for chosen in torch.randperm(len(x), generator=generator).split(batch_size):
            # The gradient of the mean cross-entropy: x^T (softmax(x W) - y) / B.
            error = (x[chosen] @ weights).softmax(dim=2) - one_hot[chosen]
            momentum = 0.9 * momentum + x[chosen].T @ error / len(chosen)
            weights = weights - rates * 0.5 * (1 + math.cos(math.pi * update / updates)) * momentum
            update += 1
    return weights


def _logits(weights: Tensor, x: Tensor) -> Tensor:
    """Return ``[classifiers, images, classes]``."""
    return F.pad(x, (0, 1), value=1.0) @ weights
