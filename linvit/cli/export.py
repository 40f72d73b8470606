"""``linvit export MODEL --to FORMAT``: write a model for deployment, and prove that the file computes the same."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from linvit.checkpoints import class_names, load_model, task_of
from linvit.cli.common import Parser, image_size, positive, print_facts, print_json, print_rows, progress
from linvit.data.datasets import Mnist5k
from linvit.data.digit_scenes import DigitScenes
from linvit.data.images import find_images, load_image
from linvit.data.preprocessing import transform_for
from linvit.deploy import FORMATS, export_model, find_format, fuse, is_fused
from linvit.deploy.export import BOUNDS
from linvit.deploy.formats import Format
from linvit.deploy.job import INTEGER, input_config
from linvit.deploy.quantization import Loss, QuantizedModel, sensitivity
from linvit.files import check_output
from linvit.heads import DenseModel
from linvit.inference.base import check_finite

DIGITS = "mnist5k"
COMPARED, CALIBRATION, SENSITIVE = 100, 300, 32
"""Most images of each kind; more say little more."""

WORST = 15
"""Layers that a person is told of."""


def run(argv: Sequence[str]) -> int:
    """Run the command; see ``linvit export --help``."""
    parser = Parser("export", "Write a model for deployment and check the file.", "linvit export runs/demo --to onnx")
    parser.add_model()
    parser.add_argument("--to", required=True, metavar="FORMAT", help=_formats())
    parser.add_argument("--out", type=Path, metavar="FILE", help="what to write (model.* in the run folder)")
    parser.add_argument("--precision", default="float32", help=f"{', '.join(BOUNDS)} (float32)")
    help = "PIXELS or HEIGHTxWIDTH (the model's)"
    parser.add_argument("--img-size", type=image_size, metavar="SIZE", help=help)
    parser.add_argument("--dynamic-size", action="store_true", help="take any height and width in multiples of 32")
    parser.add_argument("--features", action="store_true", help="return the stages' maps instead of logits")
    help = "take uint8 images [B, H, W, 3], return probabilities"
    parser.add_argument("--with-preprocessing", action="store_true", help=help)
    help = "let a page compute on the GPU where the browser can (4 MB more)"
    parser.add_argument("--webgpu", action="store_true", help=help)
    parser.add_argument("--no-fuse", action="store_true", help="export the trained graph as it is")
    help = f"images to compare on; {DIGITS} for embedded digits ({DIGITS})"
    parser.add_argument("--images", nargs="+", default=[DIGITS], metavar="IMAGE", help=help)
    help = f"images that set the ranges in 8 bits, some hundreds of your own; or {DIGITS}"
    parser.add_argument("--calibration", nargs="+", metavar="IMAGE", help=help)
    help = "tell which layers lose the agreement in 8 bits, each measured alone (the worst 15; all with --json)"
    parser.add_argument("--sensitivity", action="store_true", help=help)
    parser.add_argument("--bound", type=positive, help="largest error allowed, relative to the largest output")
    args = parser.parse_args(argv)
    if args.to not in FORMATS:
        raise ValueError(f"--to must be one of {', '.join(FORMATS)}, got {args.to!r}")
    if args.precision not in BOUNDS:
        raise ValueError(f"--precision must be one of {', '.join(BOUNDS)}, got {args.precision!r}")
    format = find_format(args.to)
    check_output(args.out.parent if args.out else None, folder=True)
    model = load_model(args.model, args.untrained)
    _check_integer(args, model)
    check_finite(model)
    config = input_config(model, args.img_size, args.dynamic_size)
    folder = Path(args.model) if Path(args.model).is_dir() else Path()
    bound = BOUNDS[args.precision] if args.bound is None else args.bound

    # No file has such channels, and noise shows as well whether two graphs compute the same.
    noise = config["input_size"][0] not in (1, 3) and args.images == [DIGITS]

    def pixels(names: list[str], most: int, raw: bool = args.with_preprocessing) -> torch.Tensor:
        if noise and names is args.images:
            return _noise(most, config, raw)
        return _pixels(_images(names, most, scenes=task_of(args.model) in ("detect", "segment")), config, raw)

    export = export_model(
        model,
        args.out or folder / f"model{format.suffix}",
        args.to,
        pixels(args.images, most=12 if args.images == [DIGITS] else COMPARED),
        precision=args.precision,
        bound=bound,
        img_size=config["input_size"][1:],
        fused=not args.no_fuse,
        features=args.features,
        preprocessing=args.with_preprocessing,
        dynamic_size=args.dynamic_size,
        webgpu=args.webgpu,
        calibration=pixels(args.calibration, most=CALIBRATION) if args.calibration else None,
        classes=class_names(model),
    )
    record = {
        "file": str(export.files[-1]),
        "files": [str(file) for file in export.files],
        "format": args.to,
        "precision": args.precision,
        "megabytes": export.bytes / 1e6,
        "bound": bound,
        "structure": export.structure,
        **(asdict(export.check) if export.check else {"images": 0}),
        "noise": noise,
    }
    losses = []
    if args.sensitivity:
        losses = _sensitivity(
            model, pixels(args.images, SENSITIVE, False), pixels(args.calibration, CALIBRATION, False)
        )
        record["sensitivity"] = [asdict(loss) for loss in losses]
    if args.json:
        print_json(record)
        return 0
    print_facts(_words(record, format))
    if losses:
        worst = sorted(losses, key=lambda loss: (loss.top1_agreement, -loss.error))[:WORST]
        rows = [
            {"layer": x.layer, "largest error": f"{x.error:.1e}", "same top-1": f"{x.top1_agreement:.0%}"}
            for x in worst
        ]
        print_rows(rows, f"the worst of {len(losses)} layers, each alone in 8 bits")
    return 0


def _check_integer(args: argparse.Namespace, model: torch.nn.Module) -> None:
    """Raise a ValueError where 8 bits are asked for and something for them is missing."""
    is_trained = isinstance(model, QuantizedModel)
    needs = args.precision in INTEGER and not is_trained
    if (needs or args.sensitivity) and not args.calibration:
        what = "--sensitivity" if args.sensitivity else f"--precision {args.precision}"
        raise ValueError(f"{what} needs --calibration IMAGE..., images like those that the model will see")
    if args.sensitivity and (is_trained or isinstance(model, DenseModel) or args.features or args.dynamic_size):
        raise ValueError("--sensitivity is for classifiers of one size that were not trained in 8 bits")


def _sensitivity(model: torch.nn.Module, images: torch.Tensor, calibration: torch.Tensor) -> list[Loss]:
    fused = model if is_fused(model) else fuse(model)
    layers, found = sensitivity(fused, images, calibration)
    return list(progress(found, layers, "layers in 8 bits"))


def _formats() -> str:
    return "; ".join(f"{format.name} ({format.purpose})" for format in FORMATS.values())


def _images(names: list[str], most: int, scenes: bool) -> list[Image.Image]:
    """Open images, at most so many, spread over what is named: folders are often sorted by class."""
    if names == [DIGITS]:
        digits: Any = DigitScenes(train=False) if scenes else Mnist5k(train=False)
        return [found.image if scenes else found["image"] for found in (digits[i] for i in _spread(len(digits), most))]
    paths = find_images(names)
    return [load_image(paths[i]) for i in _spread(len(paths), most)]


def _spread(count: int, most: int) -> list[int]:
    return [i * count // most for i in range(most)] if count > most else list(range(count))


def _pixels(images: list[Image.Image], config: dict[str, Any], raw: bool) -> torch.Tensor:
    """Preprocess images for the exported model: normalised, or ``uint8`` of the model's size ``[B, H, W, 3]``."""
    transform = transform_for(config)
    pixels = torch.stack([transform(image) for image in images])
    if not raw:
        return pixels
    mean, std = (pixels.new_tensor(config[key]).view(-1, 1, 1) for key in ("mean", "std"))
    return ((pixels * std + mean).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).contiguous()


def _noise(count: int, config: dict[str, Any], raw: bool) -> torch.Tensor:
    """Return random images as the exported model takes them."""
    generator = torch.Generator().manual_seed(0)
    channels, *size = config["input_size"]
    if raw:
        return torch.randint(256, (count, *size, channels), dtype=torch.uint8, generator=generator)
    return torch.randn(count, channels, *size, generator=generator)


def _words(record: dict[str, Any], format: Format) -> dict[str, str]:
    words = {
        "file": " and ".join(record["files"]),
        "size": f"{record['megabytes']:.1f} MB, {record['precision']}",
    }
    if record["structure"]:
        words["structure"] = record["structure"]
        words["compared"] = f"not run: {format.title} runs on {format.runs_on} alone; compare there before you ship"
        return words
    images = "images of noise" if record["noise"] else "images"
    words["compared on"] = f"{record['images']} {images}, relative to the model's largest output"
    words["largest error"] = f"{record['max_error']:.1e} (bound {record['bound']:.2g})"
    words["mean error"] = f"{record['mean_error']:.1e}"
    if record["top1_agreement"] is not None:
        words["same top-1"] = f"{record['top1_agreement']:.0%}"
    return words
