"""CARE-S0 and LinGlo-B0 in every runtime, beside peers for small devices: processor time of one thread, from one run.

    .venv-litert/bin/python benchmarks/runtimes.py --runtimes litert --files runs/files
    pip install ai-edge-litert
    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/runtimes.py --files runs/files --out benchmarks/runtimes.json

LiteRT's converter has an environment of its own: the first line writes its files, the last one times all. ExecuTorch
takes as many threads as its process has processors, so it is given one.
"""

import argparse
from pathlib import Path

from linvit.bench.contenders import RUNTIMES, Contender
from linvit.bench.records import Record
from linvit.bench.run import measure
from linvit.cli.common import progress

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
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, help="JSON of the record; left out, files are written and nothing is timed")
    args = parser.parse_args()
    contenders = [Contender(model, runtime, threads=1) for model in args.models for runtime in args.runtimes]
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
        record.add({"model": one.contender.model, "runtime": one.contender.runtime}, raw)


if __name__ == "__main__":
    main()
