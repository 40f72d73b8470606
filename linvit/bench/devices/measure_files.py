"""Time .onnx and .tflite files on the machine that this script runs on; linvit is not needed.

    python measure_files.py --name "Raspberry Pi 5"

needs numpy, and for the files that are here: pip install onnxruntime / ai-edge-litert. Files take turns, one image a
call. Writes result.json, which `linvit bench --add result.json` reads.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
KINDS = {"float32": np.float32, "tensor(float)": np.float32, "uint8": np.uint8, "tensor(uint8)": np.uint8}


def random_images(shape, kind):
    """Return one random image of a shape; sides that are free are 224."""
    sides = [size if isinstance(size, int) and size > 0 else 224 for size in shape[1:]]
    values = np.random.default_rng(0).standard_normal([1, *sides])
    return (values * 64 + 128).clip(0, 255).astype(np.uint8) if kind is np.uint8 else values.astype(kind)


def open_onnx(path, threads):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    images = session.get_inputs()[0]
    values = random_images(images.shape, KINDS[images.type])
    return f"onnxruntime {onnxruntime.__version__}", lambda: session.run(None, {images.name: values})


def open_tflite(path, threads):
    import ai_edge_litert
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=threads)
    interpreter.allocate_tensors()
    images = interpreter.get_input_details()[0]
    interpreter.set_tensor(images["index"], random_images(images["shape"].tolist(), images["dtype"]))
    return f"litert {getattr(ai_edge_litert, '__version__', '')}".strip(), interpreter.invoke


OPENERS = {".onnx": (open_onnx, "onnxruntime"), ".tflite": (open_tflite, "ai-edge-litert")}


def open_file(path, threads):
    opener, package = OPENERS[path.suffix]
    try:
        return opener(path, threads)
    except ModuleNotFoundError as error:
        raise SystemExit(f"{path.name} needs {error.name}: pip install {package}") from None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default=f"{platform.node()} ({platform.machine()})", help="name of the device")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=HERE / "result.json")
    args = parser.parse_args()
    files = sorted(path for path in HERE.iterdir() if path.suffix in OPENERS)
    if not files:
        raise SystemExit(f"there is no {' or '.join(OPENERS)} file beside this script")
    opened = {path.name: open_file(path, args.threads) for path in files}
    seconds: dict = {name: [] for name in opened}
    for turn in range(args.warmup + args.rounds):
        for name, (_, call) in opened.items():
            begin = time.perf_counter()
            call()
            if turn >= args.warmup:
                seconds[name].append(time.perf_counter() - begin)
    cells = [{"file": name, "runtime": opened[name][0], "seconds": seconds[name]} for name in opened]
    args.out.write_text(json.dumps({"device": args.name, "threads": args.threads, "files": cells}, indent=1))
    for cell in cells:
        print(f"{cell['file']}: {sorted(cell['seconds'])[args.rounds // 2] * 1e3:.2f} ms")
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
