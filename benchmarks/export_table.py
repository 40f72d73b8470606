"""Every format and precision of a model of each family: does it go through, and how far is the file from the model?

    python benchmarks/export_table.py --photos imagenette128 --trained runs/imagenette --out export_table.json

Registered names have random weights from a fixed seed, CARE with a layer scale of 0.5 so that its blocks take part;
errors of float32 and half precision are as telling as with trained weights, top-1 agreement and int8 are not. For
these there is ``--trained``. A cell that is in the file already is not run again. A format that has an environment of
its own is measured there, into the same file: ``.venv-litert/bin/python benchmarks/export_table.py --formats litert``.
Each cell names the versions that it ran with.
"""

import argparse
import contextlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import timm
import torch

import linvit
from linvit.bench.records import Record
from linvit.bench.run import machine
from linvit.data.images import images_below, load_image
from linvit.deploy import FORMATS, export_model, find_format
from linvit.deploy.export import BOUNDS
from linvit.deploy.job import INTEGER
from linvit.inference.classification import ClassificationPredictor

MODELS: dict[str, dict[str, Any]] = {
    "care_s0": {"layer_scale_init_value": 0.5},
    "flatten_pvt_tiny": {},
    "flatten_swin_tiny": {},
    "flatten_cswin_tiny": {},
    "flatten_deit_tiny": {},
    "linglo_b0": {},
}

CALIBRATION = 200


def build(name: str) -> torch.nn.Module:
    if name not in MODELS:
        return linvit.load_model(name)
    torch.manual_seed(0)
    return timm.create_model(name, **MODELS[name]).eval()


def photos(classifier: ClassificationPredictor, folder: Path, count: int) -> torch.Tensor:
    """Preprocess a draw spread over a folder: its files are sorted by class, so all are among them."""
    paths = images_below(folder)
    return torch.stack([classifier.transform(load_image(paths[i * len(paths) // count])) for i in range(count)])


def cell(name: str, format: str, precision: str, data: Path, count: int) -> dict[str, Any]:
    """Export once, and say what came of it."""
    classifier = ClassificationPredictor(build(name), device="cpu")
    size = classifier.input_config["input_size"][1:]
    calibration = photos(classifier, data / "train", CALIBRATION) if precision in INTEGER else None
    needed = ("torch", "timm", *FORMATS[format].packages)
    versions = {name: version for name, version in machine().items() if name in needed}
    record: dict[str, Any] = {"img_size": list(size), "versions": versions}
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        try:
            export = export_model(
                classifier.model,
                Path(folder, "model"),
                format,
                photos(classifier, data / "val", count),
                precision=precision,
                img_size=size,
                calibration=calibration,
            )
        except Exception as error:
            return record | {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        if format == "litert":
            record["axes"] = axes(Path(folder, "model.tflite"))
    check = asdict(export.check) if export.check else {"structure": export.structure}
    return record | check | {"megabytes": export.bytes / 1e6, "seconds": time.perf_counter() - begin}


def axes(path: Path) -> int:
    """Return the most axes that a tensor of a LiteRT file has: phones' GPUs and NPUs take four."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    return max(len(detail["shape"]) for detail in interpreter.get_tensor_details())


def words(record: dict[str, Any]) -> str:
    if "error" in record:
        return record["error"]
    if "structure" in record:
        return f"converted, {record['megabytes']:.1f} MB"
    errors = f"{record['max_error']:.0e}, {record['mean_error']:.0e}"
    return f"{errors}, {record['top1_agreement']:.0%}, {record['megabytes']:.1f} MB"


def installed() -> Iterator[str]:
    """Yield the formats whose libraries this environment has."""
    for name, format in FORMATS.items():
        with contextlib.suppress(ModuleNotFoundError):
            format.require()
            yield name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder with train and val")
    parser.add_argument("--trained", nargs="+", default=[], metavar="MODEL", help="run folders, besides random weights")
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--formats", nargs="+", choices=list(FORMATS), help="those installed")
    parser.add_argument("--precisions", nargs="+", default=list(BOUNDS), choices=list(BOUNDS))
    parser.add_argument("--images", type=int, default=24, help="photos to compare models with random weights on")
    parser.add_argument("--trained-images", type=int, default=500, help="photos to compare trained models on")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    what = "Every format and precision of a model of each family: how far the file is from the model"
    record = Record.resume(args.out, what, {"images": args.images, "calibration": CALIBRATION})
    for name in [*args.models, *args.trained]:
        for format in args.formats or installed():
            for precision in [one for one in find_format(format).precisions if one in args.precisions]:
                done = record.get(model=name, format=format, precision=precision)
                if done is None or "error" in done:
                    count = args.images if name in MODELS else args.trained_images
                    done = cell(name, format, precision, args.photos, count)
                    record.add({"model": name, "format": format, "precision": precision}, done)
                print(f"{name}, {format}, {precision}: {words(done)}", flush=True)


if __name__ == "__main__":
    main()
