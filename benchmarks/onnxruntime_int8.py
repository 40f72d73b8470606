"""Where ONNX Runtime's time goes, in float32 and in int8, by kind of operator: one image at 224x224, one thread.

    python benchmarks/onnxruntime_int8.py --out benchmarks/onnxruntime_int8.json

Files are those of ``linvit export --to onnx``, of models with random weights: values do not change the time. Sessions
take turns, one image each, with the runtime's own profiler on. The times of all operators of a kind in one image are
added; a record holds each image's sum.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import onnxruntime
import timm
import torch

import linvit  # noqa: F401 -- registers the models
from linvit.bench import take_turns
from linvit.bench.records import Record
from linvit.deploy.formats import find_format
from linvit.deploy.job import make_job

KINDS = {
    "dense": ("Conv", "QLinearConv", "Gemm", "QGemm", "QLinearMatMul"),
    "layout": ("Transpose", "ReorderInput", "ReorderOutput"),
    "rounding": ("QuantizeLinear", "DequantizeLinear"),
    "gelu": ("Gelu",),
    "rest": (),
}
"""The runtime's operators by kind."""
OF = {operator: kind for kind, operators in KINDS.items() for operator in operators}
WARMUP = 5


def kind_of(event: dict) -> str:
    """Tell the kind of an operator; a product with a constant, which counts as no input, is a linear layer."""
    operator, inputs = event["args"]["op_name"], event["args"]["input_type_shape"]
    return "dense" if operator == "MatMul" and len(inputs) == 1 else OF.get(operator, "rest")


def session(path: Path, folder: str) -> onnxruntime.InferenceSession:
    """Open a file as linvit does, on one thread, with the profiler on."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.enable_profiling = True
    options.profile_file_prefix = str(Path(folder, path.stem))
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def milliseconds(profile: str) -> dict[str, list[float]]:
    """Read the milliseconds of each kind of operator in each timed image from a profile."""
    events = json.loads(Path(profile).read_text())
    images = [dict.fromkeys(KINDS, 0.0) for event in events if event["name"] == "model_run"]
    events = [event for event in events if event["name"].endswith("_kernel_time")]
    each, left = divmod(len(events), len(images))
    if left:
        raise SystemExit(f"{profile} has {len(events)} operators in {len(images)} images")
    for number, event in enumerate(events):  # the profile is in the order of the calls
        images[number // each][kind_of(event)] += event["dur"] / 1e3
    return {kind: [image[kind] for image in images[WARMUP:]] for kind in KINDS}


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["care_s0", "flatten_pvt_tiny", "linglo_b0"])
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--out", type=Path, help="write the times here, as JSON")
    args = parser.parse_args()
    record = Record.resume(args.out, (__doc__ or "").splitlines()[0], {"rounds": args.rounds, "size": 224})
    format = find_format("onnx")
    images = torch.randn(8, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    for name in args.models:
        if record.get(model=name, precision="int8"):
            continue
        with tempfile.TemporaryDirectory() as folder:
            sessions = {}
            for precision in ("float32", "int8"):
                torch.manual_seed(0)
                model = timm.create_model(name).eval()
                path = Path(folder, f"{precision}.onnx")
                calibration = images if precision == "int8" else None
                format.write(make_job(model, (224, 224), precision=precision, calibration=calibration), path)
                sessions[precision] = session(path, folder)
            feed = {"images": images[:1].numpy()}
            calls = {precision: (lambda one=one, feed=feed: one.run(None, feed)) for precision, one in sessions.items()}
            take_turns(calls, args.rounds, warmup=WARMUP)
            for precision, one in sessions.items():
                raw = {"milliseconds": milliseconds(one.end_profiling())}
                record.add({"model": name, "precision": precision}, raw)
                medians = {kind: statistics.median(times) for kind, times in raw["milliseconds"].items()}
                print(name, precision, {kind: round(time, 2) for kind, time in medians.items()}, flush=True)


if __name__ == "__main__":
    main()
