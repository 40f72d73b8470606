"""What the authors' published code computes, on weights that anyone can regenerate from their names.

``NAME.json`` holds, for one model, the names and shapes of a published checkpoint's tensors (``shapes``) and the
float64 logits for ``synthetic_images(*input)`` under ``synthetic_state_dict(shapes)``, in evaluation mode.
"""

import json
from pathlib import Path
from typing import Any

import torch

from tests.golden.synthetic_weights import synthetic_images, synthetic_state_dict

FOLDER = Path(__file__).parent
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))


def load_golden(name: str) -> dict[str, Any]:
    """Return the record of one model, with ``weights`` and ``images`` as float64 tensors."""
    golden = json.loads((FOLDER / f"{name}.json").read_text())
    weights = synthetic_state_dict(golden["shapes"])
    batch, _, height, width = golden["input"]
    return golden | {
        "weights": {key: torch.as_tensor(value) for key, value in weights.items()},
        "images": torch.from_numpy(synthetic_images(batch, height, width)),
    }


def relative_error(actual: torch.Tensor, expected: torch.Tensor | list[float]) -> float:
    """Return ``max|a - b| / max|b|``."""
    expected = torch.as_tensor(expected, dtype=torch.float64)
    return ((actual.double() - expected).abs().max() / expected.abs().max()).item()
