"""``linvit export MODEL --to FORMAT``: write a model for deployment, and prove that the file computes the same."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from linvit.checkpoints import class_names, load_model
from linvit.cli.common import Parser, print_json, print_rows
from linvit.data.images import find_images, load_image
from linvit.files import atomic_write
from linvit.tasks.inference import Classifier

FORMATS = ("onnx",)
BOUND = 1e-4  # largest error relative to the largest logit; float32 in another order of summation stays far below


def run(argv: Sequence[str]) -> int:
    """Run the command; see ``linvit export --help``."""
    parser = Parser("export", "Write a model for deployment and check the file.", "linvit export runs/demo --to onnx")
    parser.add_model()
    parser.add_argument("--to", required=True, metavar="FORMAT", help=", ".join(FORMATS))
    parser.add_argument("--out", type=Path, metavar="FILE", help="the file to write (model.onnx in the run folder)")
    parser.add_argument("--img-size", type=int, metavar="PIXELS", help="height and width (the model's)")
    parser.add_argument("--images", nargs="+", metavar="IMAGE", help="images to compare on (random ones by default)")
    args = parser.parse_args(argv)
    if args.to not in FORMATS:
        raise ValueError(f"--to must be one of {', '.join(FORMATS)}, got {args.to!r}")
    from linvit.deploy import check_onnx, export_onnx

    classifier = Classifier(load_model(args.model), device="cpu", img_size=args.img_size)
    model, size = classifier.model, classifier.input_config["input_size"]
    folder = Path(args.model) if Path(args.model).is_dir() else Path()
    out = args.out or folder / "model.onnx"
    out.parent.mkdir(parents=True, exist_ok=True)
    if args.images:
        images = torch.stack([classifier.transform(load_image(path)) for path in find_images(args.images)])
    else:
        images = torch.randn(8, *size, generator=torch.Generator().manual_seed(0))

    with atomic_write(out) as temporary:  # a file that is no good does not replace an earlier one
        export_onnx(model, temporary, size[1:], class_names(model))
        check = check_onnx(model, temporary, images)
        if not check.max_error <= BOUND:  # a NaN is no pass
            raise ValueError(
                f"the export differs from the model by {check.max_error:.1e} (bound {BOUND:.0e}): {out} was not written"
            )
    record = {"file": str(out), "megabytes": out.stat().st_size / 1e6, "bound": BOUND, **asdict(check)}
    if args.json:
        print_json(record)
    else:
        print_rows(
            [
                {
                    "file": out,
                    "size": f"{record['megabytes']:.1f} MB",
                    "largest error": f"{check.max_error:.1e}",
                    "mean error": f"{check.mean_error:.1e}",
                    "same top-1": f"{check.top1_agreement:.0%} of {check.images} images",
                }
            ],
            title="compared with the model, relative to its largest logit",
        )
    return 0
