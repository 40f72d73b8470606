"""One HTML file for a browser: the model, ONNX Runtime's build for the web and a page, which has no connection."""

import base64
import contextlib
import gzip
import hashlib
import html
import io
import json
import math
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from linvit.checkpoints import readable_names
from linvit.deploy.formats import onnx
from linvit.deploy.formats._record import Format
from linvit.deploy.fusion.looks import WithLooks
from linvit.deploy.job import Job, Run
from linvit.files import atomic_write

__all__ = ["FORMAT", "PACKAGE", "runtime_package", "sample_image"]

PACKAGE = "onnxruntime-web-1.30.0.tgz"
"""As ``npm pack onnxruntime-web@1.30.0`` names it."""

SHA512 = (
    "ab4cbe26baedba45d2cec05610c71c55fa97db92d19a8b171c5f8269126683ca"
    "590a5cdc57bb2f35ce2b298de32f4d956fb42644c0ecd528a0a91e025c07ca61"
)
RUNTIME = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
RUNTIME_WITH_WEBGPU = ("ort.webgpu.bundle.min.mjs", "ort-wasm-simd-threaded.asyncify.wasm")
"""Script and WebAssembly in the package."""

INTERPOLATIONS = ("bilinear", "bicubic", "lanczos", "box")


def write(job: Job, path: Path) -> None:
    """Write a page for images of one size.

    Raises:
        ValueError: The page has no use for what the job returns, or cannot prepare images for it.
    """
    if job.outputs not in (("logits",), ("boxes", "scores")):
        raise ValueError(
            "a page prepares images itself and shows classes, boxes or masks: "
            "leave out --with-preprocessing and --features"
        )
    if job.webgpu and job.precision != "float32":
        raise ValueError("WebGPU computes float32 alone: leave out --webgpu, or --precision")
    settings = _settings(job)
    if job.outputs == ("logits",) and _is_classifier(job):
        with contextlib.suppress(ValueError):  # not every model attends
            job = replace(job, model=WithLooks(job.model, job.example).eval(), outputs=("logits", "looks"))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.onnx")
        onnx.write(job, file)
        model = file.read_bytes()
    script, wasm = _runtime(job.webgpu)
    page = resources.files("linvit.deploy.formats") / "page"
    parts = {
        "title": html.escape(_title(settings["classes"])),
        "settings": json.dumps(settings).replace("<", "\\u003c"),  # no name of a class ends the element
        "runtime": _packed(script),
        "wasm": _packed(wasm),
        "model": _packed(model),
        "script": (page / "page.js").read_text(encoding="utf-8"),
    }
    text = (page / "page.html").read_text(encoding="utf-8")
    text = re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], text)
    path.write_text(text, encoding="utf-8")


def load(path: Path, threads: int | None = None, precision: str = "float32") -> Run:
    """Open the model inside a page in ONNX Runtime on the CPU; where it looks is left out."""
    found = re.search(r'<script id="model" type="text/plain">([^<]*)</script>', path.read_text(encoding="utf-8"))
    if found is None:
        raise ValueError(f"{path.name} is no page with a model")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.onnx")
        file.write_bytes(gzip.decompress(base64.b64decode(found[1])))
        loaded = onnx.load(file, threads)
        names = onnx.output_names(file)
    shown = [index for index, name in enumerate(names) if name != "looks"]

    def run(images: Tensor) -> list[Tensor]:
        outputs = loaded(images)
        return [outputs[index] for index in shown]

    return run


def sample_image() -> Image.Image:
    """Draw the picture that the page tests itself with: colours that change smoothly, and edges."""
    image = Image.linear_gradient("L").resize((160, 120))
    turned = Image.radial_gradient("L").resize((160, 120))
    picture = Image.merge("RGB", (image, turned, image.transpose(Image.Transpose.ROTATE_180)))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((30, 20, 90, 80), fill=(230, 60, 40))
    draw.rectangle((95, 55, 140, 105), fill=(30, 90, 200))
    return picture


def runtime_package() -> Path:
    """Return ONNX Runtime's package for the web, which npm fetches once.

    Raises:
        ValueError: The file is not the one that this version of linvit knows.
        FileNotFoundError: It is not there, and npm cannot fetch it; the message says where to put it by hand.
    """
    by_hand = os.environ.get("LINVIT_ONNXRUNTIME_WEB")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "linvit")
    path = Path(by_hand) if by_hand else cache / PACKAGE
    if not path.is_file():
        if by_hand:
            raise FileNotFoundError(f"LINVIT_ONNXRUNTIME_WEB: there is no file {path}")
        _fetch(path)
    if hashlib.sha512(path.read_bytes()).hexdigest() != SHA512:
        raise ValueError(f"{path} is not npm's {PACKAGE}, or is damaged: remove it")
    return path


def _fetch(path: Path) -> None:
    name, version = PACKAGE.removesuffix(".tgz").rsplit("-", 1)
    hand = f"fetch it with `npm pack {name}@{version}` on a machine that can and put {PACKAGE} at {path}"
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError(f"a page needs {name}, which npm fetches, and npm is not installed: {hand}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", f"{name}@{version}", "--silent", "--pack-destination", folder]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        file = Path(folder, PACKAGE)
        if done.returncode or not file.is_file():
            raise FileNotFoundError(f"npm could not fetch {name}: {hand}")
        with atomic_write(path) as temporary:
            shutil.copyfile(file, temporary)


def _runtime(webgpu: bool) -> tuple[bytes, bytes]:
    """Read the script and the WebAssembly out of the package."""
    with tarfile.open(runtime_package()) as package:
        names = RUNTIME_WITH_WEBGPU if webgpu else RUNTIME
        files = [package.extractfile(f"package/dist/{name}") for name in names]
        script, wasm = (file.read() for file in files if file is not None)
    return script, wasm


def _settings(job: Job) -> dict[str, Any]:
    """Return what the page must know, under the names that its script reads."""
    known = {key: json.loads(job.metadata[key]) for key in ("input_size", "mean", "std", "crop_pct")}
    _, height, width = known["input_size"]
    interpolation, mode = job.metadata["interpolation"], job.metadata["crop_mode"]
    if interpolation not in INTERPOLATIONS:
        raise ValueError(f"a page resizes by {', '.join(INTERPOLATIONS)}, and the model wants {interpolation!r}")
    if mode not in ("center", "squash") or (mode == "center" and height != width):
        raise ValueError(f"a page squashes images or crops squares from their centre, not {mode} to {height}x{width}")
    if known["input_size"][0] != 3:
        raise ValueError(f"a page shows images in colour, and the model takes {known['input_size'][0]} channels")
    sample = io.BytesIO()
    sample_image().save(sample, "PNG")
    return {
        "height": height,
        "width": width,
        "shorter": math.floor(height / known["crop_pct"]) if mode == "center" else None,
        "interpolation": interpolation,
        "mean": known["mean"],
        "std": known["std"],
        "classes": readable_names(json.loads(job.metadata.get("classes", "[]"))),
        "min_score": 0.5,
        "webgpu": job.webgpu,
        "sample": base64.b64encode(sample.getvalue()).decode(),
    }


def _title(classes: list[str]) -> str:
    if not classes:
        return "linvit"
    return f"linvit: {', '.join(classes[:4])}{' ...' if len(classes) > 4 else ''}"


@torch.no_grad()
def _is_classifier(job: Job) -> bool:
    return job.model(job.example[:1]).ndim == 2


def _packed(content: bytes) -> str:
    return base64.b64encode(gzip.compress(content, 9, mtime=0)).decode()


FORMAT = Format(
    name="web",
    title="a web page",
    purpose="one file for any browser, offline",
    suffix=".html",
    precisions=("float32", "int8"),
    any_batch=True,
    any_size=False,
    libraries=("onnx", "onnxruntime", "onnxscript"),
    writer=write,
    loader=load,
    webgpu=True,
    runtime=None,
)
