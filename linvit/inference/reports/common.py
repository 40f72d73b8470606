"""What the reports of all tasks say alike."""

import math
from pathlib import Path
from typing import Any

import yaml

from linvit.data.parts import HELD_OUT
from linvit.inference.base import Evaluation, Predictor

__all__ = ["held_out_share", "percent", "speed", "where"]

SETTINGS = "config.yaml"
"""All settings of a run, in its folder."""


def held_out_share(model: str) -> float:
    """Return the share that a run held out of data without a held-out part: as its settings say, or else the usual.

    Raises:
        ValueError: Its settings are damaged.
    """
    path = Path(model)
    settings = (path if path.is_dir() else path.parent) / SETTINGS
    if not path.exists() or not settings.is_file():
        return HELD_OUT
    try:
        found = yaml.safe_load(settings.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{settings} is no YAML: {' '.join(str(error).split())}") from error
    data = found.get("data") if isinstance(found, dict) else None
    share = data.get("val_share", HELD_OUT) if isinstance(data, dict) else HELD_OUT
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
        raise ValueError(f"{settings}: data.val_share is {share!r}, and must be a number between 0 and 1")
    return float(share)


def where(model: str, data: str, predictor: Predictor[Any, Any], evaluation: Evaluation) -> dict[str, Any]:
    """Return the part of a record that says what was measured on what, and how fast it was."""
    return {
        "model": model,
        "data": data,
        "images": evaluation.images,
        "precision": getattr(predictor.model, "exported_as", predictor.precision),
        "device": str(predictor.device),
        "images_per_second": evaluation.images_per_second,
    }


def speed(record: dict[str, Any]) -> dict[str, str]:
    """Return precision, device and speed in words."""
    return {
        "precision": f"{record['precision']} on {record['device']}",
        "speed": f"{record['images_per_second']:.1f} images/s",
    }


def percent(value: float | None) -> str:
    """Return a share in per cent; a dash where there is none."""
    return "-" if value is None or math.isnan(value) else f"{value:.2%}"
