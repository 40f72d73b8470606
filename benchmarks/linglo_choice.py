"""Which reading of LinGlo is the best, at equal parameters and equal budget: three interactions, two layouts, softmax.

    python benchmarks/linglo_choice.py imagenette128 --out benchmarks/linglo_choice.json

Arms, each a LinGlo-B0 of half the widths:

    modulate, gate, local_global   the interactions of key-only attention, in the alternate layout
    grafted                        convolution in stages 1 and 2, attention in 3 and 4 (--grafted-interaction)
    softmax                        query-key attention in the alternate layout, PVT v2-like, without spatial reduction

The MLP ratio of the last two stages is what makes the arms' parameters equal (within 1 %). All see the same images, as
many updates and one learning rate. Images are decoded once, to the training size, and stay in memory; a random resized
crop and a flip augment each batch. The output file is written after every run; runs that it holds are not repeated.
Seeds are the outer loop, so a run that is stopped leaves whole seeds. ``--list`` prints the arms and trains nothing,
``--rate N`` times N updates of each arm.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from _curves import Curve, draw_curves, mean_and_deviation, open_record, quiet_trainer, save_record
from lightning import seed_everything
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, PILToTensor, Resize

import linvit  # noqa: F401 -- registers the models
from linvit.catalogue import count_macs
from linvit.data import ImageFolder
from linvit.data.datasets import split_folders
from linvit.tasks import ClassificationTask

MODEL = "linglo_b0"
NARROW = {"embed_dims": (16, 32, 80, 128), "num_heads": (1, 2, 5, 8)}
ARMS: dict[str, dict[str, Any]] = {
    "modulate": {"interaction": "modulate"},
    "gate": {"interaction": "gate"},
    "local_global": {"interaction": "local_global"},
    "grafted": {"layout": "grafted"},
    "softmax": {"attention": "softmax"},
}
RATIOS = [4 + step / 8 for step in range(33)]
REFERENCE_RATIO = 6.0  # of the modulate arm, to which the others are fitted


class CachedImages:
    """Batches of a folder's images, decoded once: ``image [B, 3, S, S]``, ``target [B]``, as linvit's tasks take them.

    Args:
        folder: With one folder per class.
        classes: Their names.
        img_size: Side S, to which the shorter side is resized before the centre crop.
        batch_size: B.
        train: Shuffle, crop and flip at random, and leave out the last, smaller batch.
        scale: Least share of the area that a random crop takes.
        workers: Threads that decode.
    """

    def __init__(
        self,
        folder: Path,
        classes: list[str] | None,
        img_size: int,
        batch_size: int,
        train: bool,
        scale: float,
        workers: int,
    ):
        resize = Resize(img_size, InterpolationMode.BICUBIC)
        files = ImageFolder(folder, classes, Compose([resize, CenterCrop(img_size), PILToTensor()]), strict=True)
        self.classes, self.batch_size, self.train, self.scale = files.classes, batch_size, train, scale
        with ThreadPoolExecutor(workers) as pool:
            self.images = torch.stack([sample["image"] for sample in pool.map(files.__getitem__, range(len(files)))])
        self.targets = torch.tensor([target for _, target in files.samples])
        self.mean = torch.tensor(IMAGENET_DEFAULT_MEAN).reshape(3, 1, 1) * 255
        self.std = torch.tensor(IMAGENET_DEFAULT_STD).reshape(3, 1, 1) * 255

    def __len__(self) -> int:
        whole, rest = divmod(len(self.targets), self.batch_size)
        return whole if self.train or not rest else whole + 1

    def __iter__(self) -> Iterator[dict[str, Any]]:
        order = torch.randperm(len(self.targets)) if self.train else torch.arange(len(self.targets))
        for chosen in order.split(self.batch_size)[: len(self)]:
            image = (self.images[chosen].float() - self.mean) / self.std
            yield {
                "image": self.augment(image) if self.train else image,
                "target": self.targets[chosen],
                "unreadable": [],
            }

    def augment(self, image: torch.Tensor) -> torch.Tensor:
        """Crop at random (area from ``scale`` to 1, width over height from 3/4 to 4/3), resize, flip every second."""
        batch = len(image)
        area = torch.empty(batch).uniform_(self.scale, 1.0)
        stretch = torch.empty(batch).uniform_(-1.0, 1.0).mul(0.5 * torch.log(torch.tensor(4 / 3))).exp()
        size = torch.stack((area.sqrt() * stretch, area.sqrt() / stretch), dim=1).clamp(max=1.0)  # of the whole: w, h
        centre = (1 - size) * torch.empty(batch, 2).uniform_(-1.0, 1.0)
        flip = torch.randint(0, 2, (batch,)) * 2 - 1
        transform = torch.zeros(batch, 2, 3)
        transform[:, 0, 0], transform[:, 1, 1], transform[:, :, 2] = size[:, 0] * flip, size[:, 1], centre
        grid = F.affine_grid(transform, list(image.shape), align_corners=False)
        return F.grid_sample(image, grid, padding_mode="reflection", align_corners=False)


def model_args(arm: str, ratio: float, grafted_interaction: str) -> dict[str, Any]:
    args = NARROW | {"mlp_ratios": (8, 8, ratio, ratio)} | ARMS[arm]
    return args | {"interaction": grafted_interaction} if arm == "grafted" else args


def parameters(args: dict[str, Any], num_classes: int) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in timm.create_model(MODEL, num_classes=num_classes, **args).parameters())


def macs(args: dict[str, Any], img_size: int, num_classes: int) -> int:
    """Count the multiply-accumulates of one image, without computing anything."""
    with torch.device("meta"):
        model = timm.create_model(MODEL, num_classes=num_classes, **args).eval()
    return count_macs(model, (3, img_size, img_size))


def fitted_arms(grafted_interaction: str, img_size: int, num_classes: int) -> dict[str, dict[str, Any]]:
    """Return arguments, parameters and MACs of every arm, with the MLP ratio that makes the parameters equal.

    Raises:
        SystemExit: No ratio brings an arm to within 1 %.
    """
    target = parameters(model_args("modulate", REFERENCE_RATIO, grafted_interaction), num_classes)
    fitted = {}
    for arm in ARMS:
        options = {ratio: model_args(arm, ratio, grafted_interaction) for ratio in RATIOS}
        counts = {ratio: parameters(args, num_classes) for ratio, args in options.items()}
        best = min(counts, key=lambda ratio: abs(counts[ratio] - target))
        if abs(counts[best] - target) > target / 100:
            raise SystemExit(f"{arm} has {counts[best]} parameters at best, which is not within 1 % of {target}")
        args = options[best]
        fitted[arm] = {"args": args, "parameters": counts[best], "macs": macs(args, img_size, num_classes)}
    return fitted


def run(
    args: argparse.Namespace, model: dict[str, Any], seed: int, train: CachedImages, held_out: CachedImages
) -> dict[str, Any]:
    """Train one arm; return top-1 by update and the images per second of the training steps."""
    seed_everything(seed, verbose=False)
    task = ClassificationTask(
        len(train.classes),
        name=MODEL,
        model_args=model["args"],
        lr=args.lr,
        weight_decay=args.weight_decay,
        warmup_epochs=args.warmup_epochs,
        smoothing=args.smoothing,
    )
    curve = Curve()
    training = quiet_trainer(args, curve, check_val_every_n_epoch=args.check_every)
    seed_everything(seed, verbose=False)  # the same batches for all arms, whatever their weights drew
    training.fit(task, train, held_out)
    return {
        "steps": curve.steps,
        "top1": curve.top1,
        "images_per_second": task.stopwatch.images / task.stopwatch.seconds,
    }


def rate(args: argparse.Namespace, model: dict[str, Any], updates: int) -> float:
    """Return the images per second of ``updates`` training steps, after two that are not timed."""
    net = timm.create_model(MODEL, num_classes=10, **model["args"]).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    image = torch.randn(args.batch_size, 3, args.img_size, args.img_size).to(memory_format=torch.channels_last)
    target = torch.arange(args.batch_size) % 10
    for update in range(updates + 2):
        if update == 2:
            begin = time.perf_counter()
        F.cross_entropy(net(image), target).backward()
        optimizer.step()
        optimizer.zero_grad()
    return updates * args.batch_size / (time.perf_counter() - begin)


def table(record: dict[str, Any]) -> str:
    """Return a line per arm: what it costs, final top-1 over the seeds, and speed."""
    lines = [
        f"{'arm':14}{'MLP ratio':>10}{'parameters':>12}{'MACs (M)':>10}{'final top-1':>18}{'seeds':>7}{'images/s':>10}"
    ]
    for arm, model in record["models"].items():
        runs = list(record["runs"].get(arm, {}).values())
        speed = f"{statistics.mean(one['images_per_second'] for one in runs):.0f}" if runs else "-"
        top1 = mean_and_deviation([one["top1"][-1] for one in runs])
        lines.append(
            f"{arm:14}{model['args']['mlp_ratios'][-1]:>10}{model['parameters']:>12,}{model['macs'] / 1e6:>10.1f}"
            f"{top1:>18}{len(runs):>7}{speed:>10}"
        )
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with train/CLASS/IMAGE and val/CLASS/IMAGE")
    parser.add_argument("--img-size", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--grafted-interaction", choices=list(ARMS)[:3], default="modulate")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--warmup-epochs", type=float, default=1.0)
    parser.add_argument("--smoothing", type=float, default=0.1)
    parser.add_argument("--scale", type=float, default=0.25, help="least share of the area of a random crop")
    parser.add_argument("--check-every", type=int, default=4, help="validate every n epochs, of which the last is one")
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=1, help="threads that decode the images")
    parser.add_argument("--out", type=Path, help="write all figures here, as JSON")
    parser.add_argument("--chart", type=Path, help="draw them here, as PNG")
    parser.add_argument("--list", action="store_true", help="print the arms and train nothing")
    parser.add_argument("--rate", type=int, metavar="N", help="time N updates of each arm and train nothing")
    args = parser.parse_args()
    if args.epochs % args.check_every:
        parser.error(f"--check-every {args.check_every} does not divide --epochs {args.epochs}")
    return args


def main() -> None:
    args = parse()
    folders = split_folders(args.data)
    num_classes = len(ImageFolder(folders[0]).classes)
    args.data = args.data.name  # where it lies is nobody's concern
    record = open_record(args.out, args, {"seeds", "arms", "out", "chart", "workers", "list", "rate"})
    record["models"] = fitted_arms(args.grafted_interaction, args.img_size, num_classes)
    print(table(record), flush=True)
    if args.rate:
        for arm in args.arms:
            print(f"{arm}: {rate(args, record['models'][arm], args.rate):.0f} images/s", flush=True)
    if args.list or args.rate:
        return
    cache = {"img_size": args.img_size, "batch_size": args.batch_size, "scale": args.scale, "workers": args.workers}
    train = CachedImages(folders[0], None, train=True, **cache)
    held_out = CachedImages(folders[1], train.classes, train=False, **cache)
    for seed in args.seeds:
        for arm in args.arms:
            runs = record["runs"].setdefault(arm, {})
            if str(seed) in runs:
                continue
            runs[str(seed)] = result = run(args, record["models"][arm], seed, train, held_out)
            print(
                f"seed {seed}, {arm}: {result['top1'][-1]:.2%}, {result['images_per_second']:.0f} images/s", flush=True
            )
            save_record(args.out, record)
    print(table(record))
    if args.chart:
        draw_curves(record["runs"], args.chart)


if __name__ == "__main__":
    main()
