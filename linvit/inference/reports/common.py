"""What the reports of all tasks say alike."""

import math
from typing import Any

from linvit.inference.base import Evaluation, Predictor

__all__ = ["percent", "speed", "where"]


def where(model: str, data: str, predictor: Predictor[Any, Any], evaluation: Evaluation) -> dict[str, Any]:
    """Return the part of a record that says what was measured on what, and how fast it was."""
    return {
        "model": model,
        "data": data,
        "images": evaluation.images,
        "precision": predictor.precision,
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
