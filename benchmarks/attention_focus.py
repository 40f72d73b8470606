"""Focus and rank of attention mechanisms on real images, layer by layer; ``tables.py`` makes the table.

    python benchmarks/attention_focus.py runs/vit runs/linear runs/focused runs/key_only --data imagenette128 \\
        --out benchmarks/attention_focus.json

The models are run folders. Images are every Kth of the validation photos, so that all classes are among them.
"""

import argparse
from pathlib import Path
from typing import Any

from linvit import load_model
from linvit.analysis.inspection import Eye
from linvit.bench.records import Record
from linvit.data.images import find_images, load_image


def measure(folder: Path, images: list[Path]) -> tuple[str, dict[str, Any]]:
    """Return what a model's attention is, and its measures: a list of layers for each image, shares but for pixels."""
    eye = Eye(load_model(folder))
    raw: dict[str, list[list[float]]] = {}
    mechanism = ""
    for path in images:
        seen, pixels = eye.see(load_image(path))
        layers = [layer.numbers() for layer in eye.layers(pixels, (seen.width // 2, seen.height // 2), least=1)]
        mechanism = layers[-1]["mechanism"]
        mixed = [layer["rank_mixed"] or layer["rank"] for layer in layers]
        each = {
            "entropy": [layer["entropy"] / layer["entropy_highest"] for layer in layers],
            "distance": [layer["distance"] for layer in layers],
            "rank": [layer["rank"]["numerical"] / layer["rank"]["full"] for layer in layers],
            "effective": [layer["rank"]["effective"] / layer["rank"]["full"] for layer in layers],
            "rank_mixed": [rank["numerical"] / rank["full"] for rank in mixed],
            "effective_mixed": [rank["effective"] / rank["full"] for rank in mixed],
        }
        for name, values in each.items():
            raw.setdefault(name, []).append([round(value, 5) for value in values])
    return mechanism, raw


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+", help="run folders")
    parser.add_argument("--data", type=Path, required=True, help="images in class folders, below val/")
    parser.add_argument("--images", type=int, default=40, help="how many (40)")
    parser.add_argument("--out", type=Path, help="write the record here, as JSON")
    args = parser.parse_args()
    found = find_images([str(args.data / "val")])
    images = [found[i * len(found) // args.images] for i in range(args.images)]
    what = "focus and rank of attention, for each image a list of layers; shares of the highest, distance in pixels"
    record = Record.resume(args.out, what, {"images": args.images, "data": args.data.name})
    for folder in args.models:
        mechanism, raw = measure(folder, images)
        record.add({"attention": mechanism}, raw)
        print(mechanism, {name: round(sum(map(sum, rows)) / sum(map(len, rows)), 4) for name, rows in raw.items()})


if __name__ == "__main__":
    main()
