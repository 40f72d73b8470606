"""What each step of exporting CARE gains over the published graph, in one run and runtime: one image at 224x224.

    python benchmarks/care_export_speed.py --threads 2 --out benchmarks/care_export_speed.json

Steps, each on top of the one before:

    converted   the published graph, as the runtime's converter makes it (OpenVINO: no size of the images is fixed)
    published   the published graph for images of one size
    fused       after ``linvit.deploy.fuse``
    separate    the channel groups separate tensors: OpenVINO's export, and slower in ONNX Runtime, hence not its

and, as a bound that computes something else and can never be reached, ``no GELU``: the fused graph without its
activations. All take turns; medians. The outputs of all but the last are compared first.
"""

import argparse
import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openvino
import timm
import torch
from torch import nn

from linvit.bench import median, take_turns
from linvit.bench.records import Record
from linvit.deploy.export import BOUNDS, compare
from linvit.deploy.formats import find_format
from linvit.deploy.job import make_job, quiet

RUNTIMES = {
    "onnxruntime": ("onnx", "float32"),
    "openvino": ("openvino", "float32"),
    "openvino bf16": ("openvino", "bfloat16"),
}


class NoGelu(nn.Module):
    """A model whose GELUs do nothing."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        gelu, nn.functional.gelu = nn.functional.gelu, lambda x, approximate="none": x
        try:
            return self.model(images)
        finally:
            nn.functional.gelu = gelu


def converted(model: nn.Module, images: torch.Tensor, threads: int, precision: str) -> Callable[[torch.Tensor], Any]:
    """Convert and compile a model with OpenVINO's own calls and nothing else."""
    with quiet():
        graph = openvino.convert_model(torch.export.export(model, (images,)))
    config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    config["INFERENCE_PRECISION_HINT"] = "bf16" if precision == "bfloat16" else "f32"
    request = openvino.Core().compile_model(graph, "CPU", config).create_infer_request()
    return lambda images: [torch.from_numpy(y.copy()) for y in request.infer([images.numpy()]).values()]


def forms(model: nn.Module, name: str, images: torch.Tensor, threads: int) -> Iterator[tuple[str, Callable]]:
    """Yield the steps and their loaded files."""
    format, precision = RUNTIMES[name]
    record = find_format(format)
    with tempfile.TemporaryDirectory() as folder:
        if format == "openvino":
            yield "converted", converted(model, images, threads, precision)
        for step in ("published", "fused", "separate", "no GELU"):
            job = make_job(model, tuple(images.shape[2:]), fused=step != "published", separate=step == "separate")
            if step == "no GELU":
                job = dataclasses.replace(job, model=NoGelu(job.model).eval())
            path = Path(folder, step + record.suffix)
            record.write(job, path)
            yield step, record.load(path, threads, precision)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["care_s0", "care_s1", "care_s2"])
    parser.add_argument("--runtimes", nargs="+", choices=list(RUNTIMES), default=list(RUNTIMES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--out", type=Path, help="write the raw times here, as JSON")
    args = parser.parse_args()
    settings = {"threads": args.threads, "rounds": args.rounds}
    record = Record.resume(args.out, "Each step of exporting CARE, one image at 224x224", settings)
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    print(f"{'':10}{'':15}{'':11}{'ms':>8}{'published /':>13}{'converted /':>13}{'error':>10}")
    for name in args.models:
        torch.manual_seed(0)
        model = timm.create_model(name, layer_scale_init_value=0.3).eval()
        for where in args.runtimes:
            if record.get(model=name, runtime=where, step="published"):
                continue
            runs = dict(forms(model, where, images, args.threads))
            errors = {step: compare(model, run, images).max_error for step, run in runs.items()}
            bound = BOUNDS[RUNTIMES[where][1]]
            wrong = [step for step, error in errors.items() if step != "no GELU" and not error <= bound]
            if wrong:
                raise SystemExit(f"{name}, {where}: {', '.join(wrong)} differs from the model by more than {bound}")
            calls = {step: (lambda run=run: run(images)) for step, run in runs.items()}
            seconds = take_turns(calls, args.rounds, warmup=5)
            medians = median(seconds)
            for step, middle in medians.items():
                gain = medians["published"] / middle
                over = f"{medians['converted'] / middle:13.3f}" if "converted" in medians else f"{'':13}"
                error = "" if step == "no GELU" else f"{errors[step]:10.1e}"
                print(f"{name:10}{where:15}{step:11}{middle * 1e3:8.2f}{gain:13.3f}{over}{error}", flush=True)
            for step in runs:
                of = {"model": name, "runtime": where, "step": step}
                record.add(of, {"seconds": seconds[step], "error": errors[step]})


if __name__ == "__main__":
    main()
