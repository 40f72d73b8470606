"""Time .tflite files on an Android phone that is connected by USB, with LiteRT's own benchmark_model.

    python measure_android.py --benchmark-model android_aarch64_benchmark_model

needs adb, USB debugging switched on, and the benchmark_model that LiteRT publishes for Android. Files take turns.
Writes result.json, which `linvit bench --add result.json` reads.
"""

import argparse
import json
import re
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
FOLDER = "/data/local/tmp/linvit"


def adb(*command):
    """Run adb and return what it says; what fails ends the script with adb's own words."""
    try:
        done = subprocess.run(["adb", *command], capture_output=True, text=True)
    except FileNotFoundError:
        raise SystemExit("adb is not installed: it is in Android's platform tools") from None
    if done.returncode:
        raise SystemExit(f"adb {' '.join(command)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout + done.stderr


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--benchmark-model", type=Path, required=True, metavar="FILE")
    parser.add_argument("--rounds", type=int, default=10, help="turns of each file")
    parser.add_argument("--runs", type=int, default=10, help="images in a turn, whose mean is one value")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--gpu", action="store_true", help="use the GPU delegate")
    parser.add_argument("--out", type=Path, default=HERE / "result.json")
    args = parser.parse_args()
    files = sorted(path for path in HERE.iterdir() if path.suffix == ".tflite")
    if not files:
        raise SystemExit("there is no .tflite file beside this script")
    name = f"{adb('shell', 'getprop', 'ro.product.manufacturer').strip()} "
    name += f"{adb('shell', 'getprop', 'ro.product.model').strip()}{', GPU' if args.gpu else ''}"
    adb("shell", "mkdir", "-p", FOLDER)
    adb("push", str(args.benchmark_model), f"{FOLDER}/benchmark_model")
    adb("shell", "chmod", "+x", f"{FOLDER}/benchmark_model")
    places = {path.name: f"{FOLDER}/{number}.tflite" for number, path in enumerate(files)}  # no name breaks the shell
    for path in files:
        adb("push", str(path), places[path.name])
    seconds: dict = {path.name: [] for path in files}
    for _ in range(args.rounds):
        for path in files:
            said = adb(
                "shell",
                f"{FOLDER}/benchmark_model",
                f"--graph={places[path.name]}",
                f"--num_threads={args.threads}",
                f"--num_runs={args.runs}",
                f"--use_gpu={str(args.gpu).lower()}",
            )
            found = re.search(r"Inference \(avg\): ([\d.e+]+)", said)
            if found is None:
                raise SystemExit(f"{path.name}: benchmark_model says no time:\n{said}")
            seconds[path.name].append(float(found[1]) / 1e6)
    runtime = "litert, GPU" if args.gpu else "litert"
    cells = [{"file": name, "runtime": runtime, "seconds": values} for name, values in seconds.items()]
    args.out.write_text(json.dumps({"device": name, "threads": args.threads, "files": cells}, indent=1))
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
