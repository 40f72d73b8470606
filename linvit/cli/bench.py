"""``linvit bench MODEL... [--against PEER...]``: latency, throughput and memory of models, in turns in one run."""

import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from linvit.bench.contenders import RUNTIMES, Contender
from linvit.bench.on_device import DEVICES, read_results, write_kit
from linvit.bench.run import Measurement, machine, measure, speed_up
from linvit.catalogue import PUBLISHED_TOP1
from linvit.cli.common import Parser, image_size, print_json, print_rows, progress
from linvit.deploy.export import BOUNDS
from linvit.files import atomic_write, check_output
from linvit.inference.base import find_device

FUSED = {"yes": (True,), "no": (False,), "both": (False, True)}


def run(argv: Sequence[str]) -> int:
    """Run the command; see ``linvit bench --help``."""
    args = _parse(argv)
    if args.on_device:
        return _write_kit(args)
    if args.add:
        return _show_devices(args)
    contenders = [
        Contender(model, runtime, fused, size, precision, args.channels_last, args.device, args.threads)
        for size, model, runtime, precision, fused in itertools.product(
            args.img_size, args.models + args.against, args.runtime, args.precision, FUSED[args.fused]
        )
    ]
    measurements = measure(
        list(dict.fromkeys(contenders)),
        args.rounds,
        args.warmup,
        args.batch_size,
        not args.no_memory,
        args.clock,
        args.files,
        progress,
    )
    record = {
        **machine(),
        "clock": args.clock,
        "rounds": args.rounds,
        "threads": args.threads,
        "contenders": [_record(m) for m in measurements],
    }
    if args.out:
        _write(record, measurements, args.out, _accuracies(args.top1), args.against)
    if args.json:
        print_json(record)
        return 0
    print_rows(map(_row, _with_first_form(measurements)), title=_title(args))
    ratios = _against(measurements, args.models, args.against)
    if ratios:
        print_rows(ratios, title="time over the peer's; below 1 is faster")
    if args.out:
        print(f"results and charts in {args.out}")
    return 0


def _parse(argv: Sequence[str]) -> Any:
    parser = Parser(
        "bench",
        "Measure the speed of models against each other. All take turns in one run; medians are quoted.",
        "linvit bench care_s0 --against efficientvit_b1 --runtime onnxruntime openvino --threads 1",
    )
    help = "as in every command; but registered names have random weights, which do not change the speed"
    parser.add_argument("models", metavar="MODEL", nargs="*", help=help)
    parser.add_argument("--against", metavar="PEER", nargs="+", default=[], help="models to compare with")
    parser.add_argument("--runtime", nargs="+", default=["eager"], help=f"{', '.join(RUNTIMES)} (eager)")
    parser.add_argument("--fused", choices=FUSED, default="yes", help="after the exact savings, before, or both (yes)")
    help = "PIXELS or HEIGHTxWIDTH, one or several (224)"
    parser.add_argument("--img-size", nargs="+", type=image_size, default=[(224, 224)], metavar="SIZE", help=help)
    help = f"{', '.join(BOUNDS)}; one or several (float32)"
    parser.add_argument("--precision", nargs="+", default=["float32"], help=help)
    parser.add_argument("--channels-last", action="store_true", help="layout of eager and compiled models")
    parser.add_argument("--device", default="cpu", help="where eager and compiled models run (cpu)")
    parser.add_argument("--threads", type=int, metavar="N", help="threads to compute with (the runtime's choice)")
    parser.add_argument("--batch-size", type=int, default=0, help="also measure the throughput of such batches (0: no)")
    parser.add_argument("--rounds", type=int, default=30, help="timed calls of each contender (30)")
    parser.add_argument("--warmup", type=int, default=3, help="calls before them (3)")
    help = "wall, or cpu: processor time, which others on the same cores hardly change (wall)"
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help=help)
    parser.add_argument("--no-memory", action="store_true", help="leave out peak memory, a process for each contender")
    help = "published accuracy of a peer in per cent, for the chart"
    parser.add_argument("--top1", nargs="+", default=[], metavar="NAME=PERCENT", help=help)
    parser.add_argument("--out", type=Path, metavar="DIR", help="write results.json and charts here")
    help = "keep exported files here, and take those that are here, which may come from another environment"
    parser.add_argument("--files", type=Path, metavar="DIR", help=help)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    help = f"write a folder (--out) that measures exported files, given as MODEL, on a device: {', '.join(DEVICES)}"
    parser.add_argument("--on-device", choices=DEVICES, help=help)
    help = "show what devices measured, the result.json of such folders; with --out as a chart, too"
    parser.add_argument("--add", type=Path, nargs="+", default=[], metavar="FILE", help=help)
    args = parser.parse_args(argv)
    if args.on_device and (args.add or not args.models):
        raise ValueError("--on-device measures exported files: give them as MODEL")
    if bool(args.models) == bool(args.add):
        raise ValueError("give models to measure, or --add FILE... with what devices measured")
    if args.on_device and args.out is None:
        raise ValueError("--on-device writes a folder: give --out DIR")
    for name in args.runtime:
        if name not in RUNTIMES:
            raise ValueError(f"--runtime must be of {', '.join(RUNTIMES)}, got {name!r}")
    for name in args.precision:
        if name not in BOUNDS:
            raise ValueError(f"--precision must be of {', '.join(BOUNDS)}, got {name!r}")
    for name in ("rounds", "batch_size", "warmup", "threads"):
        least = 0 if name in ("batch_size", "warmup") else 1
        if getattr(args, name) is not None and getattr(args, name) < least:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(args, name)}")
    for name in args.runtime:
        format = RUNTIMES[name]
        if args.batch_size and format is not None and not format.any_batch:
            raise ValueError(f"--batch-size: a file for {format.title} takes one image; leave it out, or {name}")
        if args.threads is not None and format is not None and not format.any_threads:
            print(f"{format.title} takes the threads of its process, not --threads: see taskset", file=sys.stderr)
    check_output(args.out, folder=True)
    check_output(args.files, folder=True)
    _accuracies(args.top1)
    args.device = str(find_device(args.device))
    return args


def _write_kit(args: Any) -> int:
    """Write a folder to take to a device."""
    files = write_kit(args.on_device, [Path(file) for file in args.models], args.out)
    if args.json:
        print_json({"device": args.on_device, "files": [str(file) for file in files]})
    else:
        print(f"{len(files)} files in {args.out}: its README.md says what to do on the device")
    return 0


def _show_devices(args: Any) -> int:
    """Print, and draw, what devices measured."""
    times = read_results(args.add)
    if args.out:
        from linvit.bench.charts import plot_devices

        args.out.mkdir(parents=True, exist_ok=True)
        with atomic_write(args.out / "devices.json") as temporary:
            temporary.write_text(json.dumps([asdict(time) for time in times], indent=1))
        plot_devices(times, args.out / "devices.png")
    if args.json:
        print_json([asdict(time) for time in times])
        return 0
    rows = []
    for time in times:
        low, middle, high = (1e3 * seconds for seconds in time.latency)
        milliseconds = f"{middle:.2f} ({low:.2f}-{high:.2f})"
        threads = "-" if time.threads is None else str(time.threads)
        facts = {"device": time.device, "file": time.file, "runtime": time.runtime, "threads": threads}
        rows.append(facts | {"ms": milliseconds})
    print_rows(rows, title="medians (quartiles) for one image, as the devices measured them")
    return 0


def _accuracies(pairs: list[str]) -> dict[str, float]:
    known = dict(PUBLISHED_TOP1)
    for pair in pairs:
        name, _, value = pair.partition("=")
        try:
            known[name] = float(value)
        except ValueError:
            raise ValueError(f"--top1 must be NAME=PERCENT, got {pair!r}") from None
    return known


def _with_first_form(measurements: list[Measurement]) -> list[tuple[Measurement, Measurement]]:
    """Pair each measurement with the first form of its model at its size."""
    first: dict[Any, Measurement] = {}
    for m in measurements:
        first.setdefault((m.contender.model, m.contender.size), m)
    return [(m, first[m.contender.model, m.contender.size]) for m in measurements]


def _row(pair: tuple[Measurement, Measurement]) -> dict[str, str]:
    m, first = pair
    low, middle, high = (1e3 * seconds for seconds in m.latency)
    faster = speed_up(first, m)
    return {
        "model": m.contender.model,
        "runtime": m.contender.runtime,
        "form": f"{m.contender.form}, {m.contender.precision}",
        "size": "x".join(map(str, m.contender.size)),
        "params": f"{m.params / 1e6:.1f}M",
        "MACs": f"{m.macs / 1e9:.2f}G",
        "ms": f"{middle:.2f} ({low:.2f}-{high:.2f})",
        "GMAC/s": f"{m.macs / 1e6 / middle:.0f}",
        "images/s": "-" if m.throughput is None else f"{m.throughput:.1f}",
        "memory": "-" if m.memory is None else f"{m.memory / 1e6:.0f} MB",
        "error": f"{m.error:.0e}",
        "times faster": "-" if m is first else "outputs differ" if faster is None else f"{faster:.2f}",
    }


def _against(measurements: list[Measurement], models: list[str], peers: list[str]) -> list[dict[str, str]]:
    """Make a row for each model in each form, with a column for each peer in the same form."""
    by_contender = {m.contender: m for m in measurements}
    rows = []
    for m in measurements:
        if m.contender.model not in models or not peers:
            continue
        row = {"model": m.contender.model, "form": m.contender.name.partition(", ")[2]}
        for peer in peers:
            other = by_contender[Contender(**(m.contender.record | {"model": peer, "size": m.contender.size}))]
            row[peer] = f"{m.latency[1] / other.latency[1]:.2f}"
        rows.append(row)
    return rows


def _record(m: Measurement) -> dict[str, Any]:
    low, middle, high = m.latency
    return asdict(m) | {"latency": {"q1": low, "median": middle, "q3": high}, "throughput": m.throughput}


def _title(args: Any) -> str:
    threads = "default threads" if args.threads is None else f"{args.threads} thread(s)"
    clock = "processor time" if args.clock == "cpu" else "wall clock"
    return (
        f"medians (quartiles) of {args.rounds} rounds, {clock}, {threads}; error relative to eager float32 as trained"
    )


def _write(
    record: dict[str, Any], measurements: list[Measurement], folder: Path, top1: dict[str, float], peers: list[str]
) -> None:
    from linvit.bench.charts import plot_accuracy, plot_resolution

    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / "results.json") as temporary:
        temporary.write_text(json.dumps(record, indent=1))
    if any(m.contender.model in top1 for m in measurements):
        plot_accuracy(measurements, top1, folder / "accuracy.png", peers)
    if len({m.contender.size for m in measurements}) > 1:
        plot_resolution(measurements, folder / "resolution.png")
