"""How fast training images are read, decoded and augmented, against a plain torchvision loader, in one run.

    python benchmarks/loading.py --data imagenette128/train --out benchmarks/loading.json

Two questions. Which decoder is the fastest, for the files as they are and for the same photos at a camera's size
(JPEG, quality 90)? And how many augmented images a second does a loader give in one process: torchvision's ImageFolder
with the same transform, linvit's folders, the same images as tar shards, and folders kept in memory? They take turns;
the table has medians of images per second.
"""

import argparse
import io
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

from linvit.bench.records import Record
from linvit.data import ClassificationData, ImageFolder, load_image
from linvit.data.shards import Shards


def enlarged(content: bytes, height: int) -> bytes:
    """Return a photo as a camera would have saved it."""
    image = Image.open(io.BytesIO(content)).convert("RGB")
    buffer = io.BytesIO()
    image.resize((height * 4 // 3, height), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
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


def rates(contenders: dict[str, Callable[[], int]], rounds: int) -> dict[str, list[float]]:
    """Return the images per second of each contender, by round."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for work in contenders.values():
        work()
    for _ in range(rounds):
        for name, work in contenders.items():
            begin = time.perf_counter()
            count = work()
            found[name].append(count / (time.perf_counter() - begin))
    return found


def decoders(contents: list[bytes], rounds: int) -> dict[str, list[float]]:
    def work(decode: Callable[[bytes], Any]) -> Callable[[], int]:
        return lambda: len([decode(content) for content in contents])

    names = {
        "Pillow": by_pillow,
        "Pillow, drafted": by_pillow_drafted,
        "torchvision": by_torchvision,
        "linvit": lambda content: load_image("photo", content),
        "linvit, least side 448": lambda content: load_image("photo", content, 448),
    }
    return rates({name: work(decode) for name, decode in names.items()}, rounds)


def loaders(paths: list[Path], img_size: int, rounds: int) -> dict[str, list[float]]:
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

        def work(images: Any) -> Callable[[], int]:
            return lambda: len([images[index] for index in order])

        return rates({name: work(images) for name, images in sets.items()}, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of class folders")
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--height", type=int, default=960, help="height of a camera's photo, in pixels")
    parser.add_argument("--img-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="keep the raw values here, as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    paths = random.Random(0).sample(sorted(args.data.rglob("*.JPEG")), args.images)
    contents = [path.read_bytes() for path in paths]
    large = [enlarged(content, args.height) for content in contents[: max(1, args.images // 10)]]
    settings = {name: value for name, value in vars(args).items() if name not in ("out", "data")}
    record = Record.resume(args.out, "Decoding and loading training images in one process", settings)
    works: dict[str, Callable[[], dict[str, list[float]]]] = {
        "decode as they are": lambda: decoders(contents, args.rounds),
        f"decode at {args.height * 4 // 3}x{args.height}": lambda: decoders(large, args.rounds),
        f"load and augment to {args.img_size}": lambda: loaders(paths, args.img_size, args.rounds),
    }
    for title, work in works.items():
        if not any(record.select(work=title)):
            for name, found in work().items():
                record.add({"work": title, "contender": name}, {"images_per_second": found})
        print(f"{title} (images/s)")
        for cell in record.select(work=title):
            print(f"  {cell.of['contender']:26}{statistics.median(cell.raw['images_per_second']):>10.1f}")


if __name__ == "__main__":
    main()
