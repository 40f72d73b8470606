"""An exported file as a model: for what evaluates and predicts, computed by the runtime that the file is for."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from linvit.deploy.formats import FORMATS

__all__ = ["ExportedModel", "open_exported"]

TAKEN = {record.suffix: record for record in FORMATS.values() if record.metadata}
"""Formats whose files are taken for models, by suffix."""
SEEN = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")
PLAIN = ("interpolation", "crop_mode", "precision")
"""Metadata that are words; all others are JSON."""


class ExportedModel(nn.Module):
    """A classifier in a file that ``linvit export`` wrote, run on the CPU, in the precision that the file has.

    Args:
        path: The file.

    Attributes:
        exported_as: Format and precision; there is no device or precision to choose.
        num_classes: Number of classes.
        in_chans: Channels of its images.
        pretrained_cfg: What it sees and the names of its classes, under timm's names.

    Raises:
        ModuleNotFoundError: The runtime is missing.
        ValueError: The file cannot be read, or holds no classifier that takes normalised images.
    """

    def __init__(self, path: Path):
        super().__init__()
        record = TAKEN[path.suffix]
        assert record.metadata is not None
        self._run = record.load(path)
        try:
            texts = record.metadata(path)
            known = {key: text if key in PLAIN else json.loads(text) for key, text in texts.items()}
            self.pretrained_cfg: dict[str, Any] = {key: known[key] for key in SEEN}
            outputs, precision = known["outputs"], known["precision"]
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"{path} has no description of its model, as linvit export writes it: {error}") from error
        if outputs != ["logits"]:
            returned = ", ".join(outputs)
            raise ValueError(f"{path} returns {returned}: export a classifier that takes images as they are normalised")
        if "classes" in known:
            self.pretrained_cfg["label_names"] = known["classes"]
        self.exported_as = f"{precision} ({record.title})"
        size = self.pretrained_cfg["input_size"]
        self.in_chans = size[0]
        self.num_classes = self(torch.zeros(1, *size)).shape[1]

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images ``[B, C, H, W]`` to logits ``[B, num_classes]``."""
        return self._run(images.contiguous())[0]


def open_exported(path: Path, allowed: bool) -> ExportedModel | None:
    """Open an exported file as a model; return None for a file that has no format's suffix.

    Raises:
        ModuleNotFoundError: The runtime is missing.
        ValueError: It has one, but exported files are not ``allowed`` or not taken in this format, or it is broken.
    """
    record = next((each for each in FORMATS.values() if each.suffix == path.suffix), None)
    if record is None:
        return None
    if not allowed or record.metadata is None:
        takes = f"files ({', '.join(TAKEN)}) of classifiers are for linvit eval and predict"
        raise ValueError(f"{path} was exported to {record.title}; {takes}, all else takes what they were made of")
    return ExportedModel(path)
