"""What compiling is worth for evaluation on a CPU: processor time of a batch, eager and compiled in turns.

    python benchmarks/compiled_evaluation.py --out benchmarks/compiled_evaluation.json

The compiler's processes count, too; what is left over is how many images it takes to earn that back.
"""

import argparse
import json
import resource
import statistics
from pathlib import Path

import timm
import torch

import linvit  # noqa: F401 -- registers the models
from linvit.allocator import keep_freed_memory
from linvit.bench.records import Record
from linvit.bench.timing import take_turns


def processor_time() -> float:
    """Return the processor time of this process and of the finished ones that it started, in seconds."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


@torch.inference_mode()
def measure(name: str, batch: int, size: int, rounds: int) -> dict[str, object]:
    """Return seconds of compiling, and of each eager and compiled batch."""
    model = timm.create_model(name).eval().to(memory_format=torch.channels_last)
    images = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
    model(images)
    begin = processor_time()
    compiled = torch.compile(model)
    found = compiled(images)
    compiling = processor_time() - begin
    torch.testing.assert_close(found, model(images), rtol=1e-3, atol=1e-4)
    seconds = take_turns(
        {"eager": lambda: model(images), "compiled": lambda: compiled(images)}, rounds, 1, processor_time
    )
    return {"compiling": compiling, **seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["care_s0", "flatten_swin_tiny"])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    settings = {"batch": args.batch, "size": args.size, "rounds": args.rounds, "threads": 1, "clock": "processor time"}
    record = Record("evaluation, eager and compiled, one thread", settings, path=args.out)
    for name in args.models:
        raw = measure(name, args.batch, args.size, args.rounds)
        record.add({"model": name}, raw)
        eager, compiled = (statistics.median(raw[form]) / args.batch for form in ("eager", "compiled"))
        least = raw["compiling"] / (eager - compiled) if eager > compiled else None
        said = {"model": name, "compiling_s": raw["compiling"], "eager_ms": 1e3 * eager, "compiled_ms": 1e3 * compiled}
        print(json.dumps(said | {"ratio": eager / compiled, "images_to_earn_it_back": least}), flush=True)


if __name__ == "__main__":
    main()
