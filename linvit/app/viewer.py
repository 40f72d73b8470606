"""What the page asks of models: load one, say what it makes of an image, show where it looks from a pixel."""

import base64
import hashlib
import io
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image, ImageDraw
from torch import nn

from linvit.analysis.inspection import Eye, LayerRecord
from linvit.analysis.views import has_attention
from linvit.checkpoints import load_model, task_of
from linvit.inference.base import check_finite

__all__ = ["KINDS", "Models", "Viewer"]

KINDS = ("mixing", "attention", "received")
"""Maps of a layer: what it mixes into the pixel, where the pixel's heads look, what all pixels attend to."""

LEAST_SIDE = 320
OPACITY = 0.65
MOST_LOADED = 6
MOST_LOOKS = 32


class Viewer:
    """A model that the page shows.

    Args:
        name: What it is called.
        model: A trained network.
        task: Its task.
        device: Where to compute.
    """

    def __init__(self, name: str, model: nn.Module, task: str, device: str = "auto"):
        from linvit.inference.base import find_device

        self.name, self.task = name, task
        self.device = find_device(device)
        self.predictor: Any = _predictor(task, model, device)
        self.eye = Eye(model, self.device)
        if not has_attention(self.eye.model):
            raise ValueError(f"{name} ({type(self.eye.model).__name__}) has no attention that linvit can look into")
        self._looks: OrderedDict[tuple, tuple[Image.Image, tuple[int, int], list[LayerRecord]]] = OrderedDict()

    def predict(self, image: Image.Image) -> dict[str, Any]:
        """Return the five most likely classes of an image, or a picture of what was found on it."""
        if self.eye.is_classifier:
            _, pixels = self.eye.see(image)
            with torch.inference_mode():
                probabilities = self.eye.model(pixels)[0].float().softmax(dim=0)
            top = probabilities.topk(min(5, len(probabilities)))
            found = zip(top.indices.tolist(), top.values.tolist(), strict=True)
            if not top.values.isfinite().all():
                raise ValueError("the model's outputs are not finite (NaN or infinite)")
            return {"classes": [{"class": self.eye.labels[i], "probability": value} for i, value in found]}
        (prediction,) = self.predictor.predict([image])
        legend = prediction.legend() if hasattr(prediction, "legend") else []
        return {"picture": _data(prediction.picture(image)), "found": prediction.row(), "legend": legend}

    def look(self, key: str, image: Image.Image, at: tuple[float, float], kind: str) -> list[dict[str, Any]]:
        """Return for each layer its numbers and its map over the image, from a pixel of the original image.

        Args:
            key: Name of the image.
            image: The image.
            at: Column and row.
            kind: One of :data:`KINDS`.

        Raises:
            ValueError: The pixel is not in what the model sees.
        """
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
        if (key, at) not in self._looks:
            place = self.eye.find(image, at)
            seen, pixels = self.eye.see(image)
            self._looks[key, at] = (seen, place, self.eye.layers(pixels, place, ranks=False))
            while len(self._looks) > MOST_LOOKS:
                self._looks.popitem(last=False)
        seen, place, layers = self._looks[key, at]
        shown = []
        for layer in layers:
            values = {"mixing": layer.mixing, "attention": layer.attention.mean(axis=0), "received": layer.received}[
                kind
            ]
            mark = None if kind == "received" else place
            shown.append(
                {
                    "name": layer.name,
                    "mechanism": layer.mechanism,
                    "grid": list(layer.grid),
                    "entropy": layer.entropy,
                    "distance": layer.distance,
                    "picture": _data(paint(seen, values, layer.extent, mark)),
                }
            )
        return shown


def _predictor(task: str, model: nn.Module, device: str) -> Any:
    if task in ("classify", "linearize"):
        return None
    from linvit.registry import TASKS

    return TASKS[task].load_predictor()(model, device)


class Models:
    """The models of the page, by name; those that were named at its start stay, the last that were added, too.

    Args:
        specs: What :func:`linvit.load_model` takes.
        device: Where to compute.
    """

    def __init__(self, specs: list[str], device: str = "auto"):
        self.device = device
        self.lock = threading.Lock()
        self.shown: dict[str, Viewer] = {spec: self._load(spec) for spec in specs}
        self._added: OrderedDict[str, Viewer] = OrderedDict()

    def _load(self, spec: str) -> Viewer:
        model = load_model(spec)
        check_finite(model)
        return Viewer(Path(spec).name or spec, model, task_of(spec), self.device)

    def add(self, spec: str) -> tuple[str, Viewer]:
        """Load a run folder or checkpoint file of this machine, and return its name for :meth:`get`.

        Raises:
            ValueError: There is none, or it is not one; the message says so to a person.
        """
        path = Path(spec).expanduser()
        if not spec.strip() or not path.exists():
            raise ValueError(f"there is no run folder or checkpoint file at {spec!r}")
        name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
        if name not in self._added:
            self._added[name] = self._load(str(path))
            while len(self._added) > MOST_LOADED:
                self._added.popitem(last=False)
        return name, self._added[name]

    def get(self, name: str) -> Viewer:
        """Return a model.

        Raises:
            ValueError: There is none of this name, or it was dropped for newer ones.
        """
        if name in self.shown:
            return self.shown[name]
        if name in self._added:
            return self._added[name]
        raise ValueError("this model is not loaded any more: open it again")


def paint(
    image: Image.Image, values: np.ndarray, extent: tuple[float, float], mark: tuple[int, int] | None = None
) -> Image.Image:
    """Lay a map over an image in grey, from its least value to its largest, and mark a pixel."""
    scale = max(1.0, LEAST_SIDE / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    low, high = float(values.min()), float(values.max())
    flat = Image.fromarray(((values - low) / max(high - low, 1e-30)).astype(np.float32))
    whole = (max(1, round(extent[1] * scale)), max(1, round(extent[0] * scale)))
    level = np.asarray(flat.resize(whole, Image.Resampling.BILINEAR))[: size[1], : size[0]]
    colors = colormaps["inferno"](level)[..., :3] * 255
    grey = np.asarray(image.convert("L").resize(size, Image.Resampling.BILINEAR))[..., None]
    mixed = Image.fromarray((grey * (1 - OPACITY) + colors * OPACITY).round().astype(np.uint8))
    if mark is not None:
        x, y = ((place + 0.5) * scale for place in mark)
        draw = ImageDraw.Draw(mixed)
        draw.ellipse((x - 7, y - 7, x + 7, y + 7), outline="black", width=4)
        draw.ellipse((x - 6, y - 6, x + 6, y + 6), outline="#22d3ee", width=2)
    return mixed


def _data(image: Image.Image) -> str:
    file = io.BytesIO()
    image.convert("RGB").save(file, format="PNG", compress_level=3)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
