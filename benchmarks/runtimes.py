"""Models in every runtime, all in turns in one run: processor time of one thread.

    .venv-litert/bin/python benchmarks/runtimes.py --runtimes litert --files runs/files
    pip install ai-edge-litert
    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/runtimes.py --files runs/files --out benchmarks/runtimes.json

These are CARE-S0 and LinGlo-B0 beside peers for small devices. LiteRT's converter has an environment of its own: the
first line writes its files, the last one times all. ExecuTorch takes as many threads as its process has processors, so
it is given one. With ``--models care_s0 flatten_pvt_tiny flatten_swin_tiny linglo_b0 --precisions float32 int8`` in
both lines, and the runtimes that have int8 in the last, it makes benchmarks/int8_speed.json.
"""

import argparse
from pathlib import Path

from linvit.bench.contenders import RUNTIMES, Contender
from linvit.bench.records import Record
from linvit.bench.run import measure
from linvit.cli.common import progress
from linvit.deploy.export import BOUNDS

MODELS = [
    "care_s0",
    "linglo_b0",
    "cpubone_nano",
    "cpubone_b0_bfrobust",
    "cpubone_b1_bfrobust",
    "cpubone_b2_bfrobust",
    "efficientvit_b1",
    "mobilenetv4_conv_medium",
]


def main() -> None:
    """Write files, and with ``--out`` the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=Path, required=True, help="where the exported files are, or go")
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--runtimes", nargs="+", default=list(RUNTIMES), choices=list(RUNTIMES))
    parser.add_argument("--precisions", nargs="+", default=["float32"], choices=list(BOUNDS))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, help="JSON of the record; left out, files are written and nothing is timed")
    args = parser.parse_args()
    contenders = [
        Contender(model, runtime, precision=precision, threads=1)
        for model in args.models
        for runtime in args.runtimes
        for precision in args.precisions
    ]
    if args.out is None:
        args.files.mkdir(parents=True, exist_ok=True)
        for contender in progress(contenders, len(contenders), "files"):
            contender.open(args.files)
        return
    measured = measure(contenders, args.rounds, memory=False, clock="cpu", files=args.files, progress=progress)
    settings = {"clock": "cpu", "threads": 1, "size": contenders[0].size, "rounds": args.rounds}
    record = Record((__doc__ or "").splitlines()[0], settings, path=args.out)
    for one in measured:
        raw = {"seconds": one.seconds, "error": one.error, "macs": one.macs, "params": one.params}
        of = {"model": one.contender.model, "runtime": one.contender.runtime, "precision": one.contender.precision}
        record.add(of, raw)


if __name__ == "__main__":
    main()
