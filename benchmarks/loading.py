"""How fast training images are read, decoded and augmented, against a plain torchvision loader, in one run.

    python benchmarks/loading.py --data imagenette128/train --out benchmarks/loading.json

Two questions. Which decoder is the fastest, for the files as they are and for the same photos at a camera's size
(JPEG, quality 90)? And how many augmented images a second does a loader give in one process: torchvision's ImageFolder
with the same transform, linvit's folders, the same images as tar shards, and folders kept in memory? The sides take
turns; figures are medians of images per second.
"""

import argparse
import io
import json
import random
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
from PIL import Image
from torchvision.datasets import ImageFolder as TorchvisionFolder

from linvit.data import ClassificationData, ImageFolder, load_image
from linvit.data.shards import Shards
from linvit.files import atomic_write


def enlarged(content: bytes, side: int) -> bytes:
    """Return a photo as a camera would have saved it."""
    image = Image.open(io.BytesIO(content)).convert("RGB")
    buffer = io.BytesIO()
    image.resize((side * 4 // 3, side), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def by_pillow(content: bytes) -> Any:
    return Image.open(io.BytesIO(content)).convert("RGB")


def by_pillow_drafted(content: bytes) -> Any:
    """Let the JPEG decoder leave out what a 224 pixel crop would not show."""
    image: Any = Image.open(io.BytesIO(content))
    image.draft("RGB", (448, 448))
    return image.convert("RGB")


def by_torchvision(content: bytes) -> Any:
    data = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    return torchvision.io.decode_image(data, torchvision.io.ImageReadMode.RGB)


def rates(sides: dict[str, Callable[[], int]], rounds: int) -> dict[str, float]:
    """Return the median images per second of each side."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for work in sides.values():
        work()
    for _ in range(rounds):
        for name, work in sides.items():
            begin = time.perf_counter()
            count = work()
            found[name].append(count / (time.perf_counter() - begin))
    return {name: round(statistics.median(each), 1) for name, each in found.items()}


def decoders(contents: list[bytes], rounds: int) -> dict[str, float]:
    def side(decode: Callable[[bytes], Any]) -> Callable[[], int]:
        return lambda: len([decode(content) for content in contents])

    names = {
        "Pillow": by_pillow,
        "Pillow, drafted": by_pillow_drafted,
        "torchvision": by_torchvision,
        "linvit": lambda content: load_image("photo", content),
        "linvit, least side 448": lambda content: load_image("photo", content, 448),
    }
    return rates({name: side(decode) for name, decode in names.items()}, rounds)


def loaders(paths: list[Path], img_size: int, rounds: int) -> dict[str, float]:
    transform = ClassificationData(img_size=img_size, hflip=0.5).train_transform
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        for path in paths:
            (root / "folder" / path.parent.name).mkdir(parents=True, exist_ok=True)
            (root / "folder" / path.parent.name / path.name).write_bytes(path.read_bytes())
        with tarfile.open(root / "train-0.tar", "w") as archive:
            for number, path in enumerate(sorted((root / "folder").rglob("*.*"))):
                for name, content in ((".jpg", path.read_bytes()), (".cls", path.parent.name.encode())):
                    info = tarfile.TarInfo(f"{number:06d}{name}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
        kept = ImageFolder(root / "folder", transform=transform)
        kept.keep_in_memory()
        sets: dict[str, Any] = {
            "torchvision ImageFolder": TorchvisionFolder(str(root / "folder"), transform),
            "linvit folders": ImageFolder(root / "folder", transform=transform),
            "linvit shards": Shards([root / "train-0.tar"], transform=transform),
            "linvit folders, kept": kept,
        }
        order = random.Random(0).sample(range(len(paths)), len(paths))

        def side(images: Any) -> Callable[[], int]:
            return lambda: len([images[index] for index in order])

        return rates({name: side(images) for name, images in sets.items()}, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of class folders")
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--side", type=int, default=960, help="height of a camera's photo, in pixels")
    parser.add_argument("--img-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write all figures here, as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    paths = random.Random(0).sample(sorted(args.data.rglob("*.JPEG")), args.images)
    contents = [path.read_bytes() for path in paths]
    large = [enlarged(content, args.side) for content in contents[: max(1, args.images // 10)]]
    record = {
        "settings": {name: str(value) for name, value in vars(args).items() if name != "out"},
        "decode as they are": decoders(contents, args.rounds),
        f"decode at {args.side * 4 // 3}x{args.side}": decoders(large, args.rounds),
        f"load and augment to {args.img_size}": loaders(paths, args.img_size, args.rounds),
    }
    for title, found in record.items():
        if title != "settings":
            print(f"{title} (images/s)")
            for name, rate in found.items():
                print(f"  {name:26}{rate:>10.1f}")
    if args.out:
        with atomic_write(args.out) as temporary:
            temporary.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
