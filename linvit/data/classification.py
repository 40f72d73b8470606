"""The Lightning data module for classification: every setting of a training run that is about images."""

import math
from collections.abc import Iterator
from functools import cached_property
from typing import Any, Literal, get_args

from PIL import Image
from timm.data import auto_augment as timm_policies
from timm.data import create_transform
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torchvision.transforms import Compose

from linvit.checks import require
from linvit.data.datasets import ImageSet, Transform, collate
from linvit.data.loading import cores
from linvit.data.module import VisionData, rank_zero_only
from linvit.data.sources import Kind, Source, open_source, warn_about

__all__ = ["ClassificationData"]

Interpolation = Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]


class ClassificationData(VisionData):
    """Images and their classes, augmented for training and centre-cropped for evaluation as timm does it.

    Unreadable images are replaced in training, left out of evaluation, and listed in each batch, unless ``strict``.

    Args:
        root: Folder with train/CLASS/IMAGE and val/CLASS/IMAGE (or validation, or test), or with CLASS/IMAGE alone,
            which is then split; or what source says; null: the embedded MNIST-5k.
        source: What is at root: such folders; WebDataset's tar files (shards) train*.tar and val*.tar, or what names
            them, https://HOST/train-{0000..0127}.tar; or a data set of Hugging Face, saved to a folder or by its name
            on the hub. auto tells folders and shards apart.
        val_root: The held-out shards where root names those to learn from, such as https://HOST/val-{00..15}.tar.
        val_share: Share of each class to hold out where a folder has no held-out part; copies stay together.
        cache: Decode all images once and keep them in memory: three bytes a pixel.
        img_size: Height and width in pixels that images are brought to, for training and evaluation.
        batch_size: Images per batch and device; null: 128, or fewer where an epoch would have less than 8 updates.
        workers: Processes that load images, 0 for the main one; null: one per core, 16 at most.
        strict: Stop at the first unreadable image.
        scale: Least and greatest share of an image's area that a random training crop takes.
        ratio: Least and greatest width over height of a random training crop.
        hflip: Probability of mirroring a training image left to right; null: 0.5 for folders, 0 for MNIST-5k.
        color_jitter: Strength of random brightness, contrast and saturation changes; auto_augment switches it off.
        auto_augment: timm's policy for random changes to training images, such as rand-m9-mstd0.5-inc1; null: off.
        reprob: Probability of erasing a random rectangle of a training image (filled with noise).
        interpolation: How images are resized.
        crop_pct: Share of the resized image's shorter side that the evaluation crop keeps.
        mean: Mean of red, green and blue that is subtracted, on a scale of 0 to 1; ImageNet's by default.
        std: Standard deviation of red, green and blue that is divided by, on the same scale; ImageNet's by default.
        repeats: How often an image is drawn in a row, each time augmented anew (repeated augmentation); an epoch stays
            as long, and has that share of the images.
        seed: Decides the order of the training images and their augmentation; ``linvit train`` gives it its own.

    Raises:
        ValueError: A setting outside its range; later, a folder that does not have the layout.
    """

    collate = staticmethod(collate)
    default_batch_size = 128

    def __init__(
        self,
        root: str | None = None,
        source: Kind = "auto",
        val_root: str | None = None,
        val_share: float = 0.2,
        cache: bool = False,
        img_size: int = 224,
        batch_size: int | None = None,
        workers: int | None = None,
        strict: bool = False,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        hflip: float | None = None,
        color_jitter: float = 0.4,
        auto_augment: str | None = None,
        reprob: float = 0.0,
        interpolation: Interpolation = "bicubic",
        crop_pct: float = 0.875,
        mean: tuple[float, float, float] = IMAGENET_DEFAULT_MEAN,
        std: tuple[float, float, float] = IMAGENET_DEFAULT_STD,
        repeats: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if hflip is None:
            hflip = 0.0 if root is None else 0.5
        require(img_size >= 1, "img_size", img_size, "at least 1")
        require(batch_size is None or batch_size >= 1, "batch_size", batch_size, "at least 1, or null")
        require(0 < val_share < 1, "val_share", val_share, "between 0 and 1")
        require(workers is None or workers >= 0, "workers", workers, "0 or more")
        require(0 < scale[0] <= scale[1] <= 1, "scale", scale, "two rising shares above 0, up to 1")
        require(0 < ratio[0] <= ratio[1], "ratio", ratio, "two rising numbers above 0")
        require(0 <= hflip <= 1, "hflip", hflip, "between 0 and 1")
        require(color_jitter >= 0, "color_jitter", color_jitter, "0 or more")
        require(0 <= reprob <= 1, "reprob", reprob, "between 0 and 1")
        names = get_args(Interpolation)
        require(interpolation in names, "interpolation", interpolation, f"one of {', '.join(names)}")
        require(0 < crop_pct <= 1, "crop_pct", crop_pct, "above 0, up to 1")
        require(min(std) > 0, "std", std, "three numbers above 0")
        require(repeats >= 1, "repeats", repeats, "1 or more")
        require(seed >= 0, "seed", seed, "0 or more")
        self.root = root
        self.source = source
        self.val_root = val_root
        self.val_share = val_share
        self.cache = cache
        self._batch_size = batch_size
        self.workers = min(16, cores()) if workers is None else workers
        self.strict = strict
        self.repeats = repeats
        self.seed = seed
        # What keeps the smallest random crop as large as it is to become.
        self.img_size = img_size
        self._least_side = math.ceil(img_size / math.sqrt(scale[0] * min(ratio[0], 1 / ratio[1])))
        self._input: dict[str, Any] = {
            "input_size": (3, img_size, img_size),
            "mean": mean,
            "std": std,
            "interpolation": interpolation,
            "crop_pct": crop_pct,
        }
        self.eval_transform: Transform = create_transform(**self._input)
        self._augmentation = {
            "scale": scale,
            "ratio": ratio,
            "hflip": hflip,
            "color_jitter": color_jitter,
            "auto_augment": auto_augment,
            "re_prob": reprob,
            "re_mode": "pixel",
        }
        self.train_transform: Transform = self._augment(img_size)

    def _augment(self, size: int) -> Transform:
        """Return the random changes of training, to images of this height and width."""
        settings = self._input | self._augmentation | {"input_size": (3, size, size)}
        try:
            augment = create_transform(**settings, is_training=True)
        except (AssertionError, ValueError) as error:
            policy = self._augmentation["auto_augment"]
            raise ValueError(f"auto_augment {policy!r} is no policy of timm's: {error}") from error
        for operation in _operations(augment.transforms):
            if operation.aug_fn is timm_policies.posterize:
                operation.aug_fn = _posterize
        return Compose([_enlarge_tiny, augment])

    def input_config(self) -> dict[str, Any]:
        """Return what a model must know to prepare its input, under timm's names."""
        return dict(self._input)

    @property
    def classes(self) -> list[str]:
        """Class names in the order of the targets; of folders, reads their names only."""
        return self._source.classes

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)

    @cached_property
    def train_set(self) -> Any:
        """The training images, augmented; ValueError where they do not fill one batch."""
        dataset = self._source.train(self.train_transform, self.strict)
        self._check_batch_size(len(dataset))
        dataset.least_side = self._least_side
        return self._kept(dataset)

    @cached_property
    def val_set(self) -> Any:
        """The held-out images, centre-cropped."""
        return self._kept(self._source.held_out(self.eval_transform, self.strict))

    def setup(self, stage: str | None = None) -> None:
        """Find the images now, so that a wrong folder is reported before anything starts."""
        _ = self.val_set
        if stage in (None, "fit") and "train_set" not in vars(self) and isinstance(self.train_set, ImageSet):
            rank_zero_only(warn_about)(self.train_set, self.val_set)

    def _kept(self, dataset: Any) -> Any:
        if self.cache and isinstance(dataset, ImageSet):
            dataset.keep_in_memory()
        return dataset

    @cached_property
    def _source(self) -> Source:
        return open_source(self.source, self.root, self.val_share, self.val_root)


def _posterize(image: Image.Image, bits_to_keep: int, **_: Any) -> Image.Image:
    """Keep the highest bits of each colour, or none: timm's policies ask for 0 bits, which Pillow 13 refuses."""
    return timm_policies.posterize(image, bits_to_keep) if bits_to_keep else Image.new(image.mode, image.size)


def _operations(policy: Any) -> Iterator[timm_policies.AugmentOp]:
    """Yield the operations of timm's policies among transforms."""
    if isinstance(policy, timm_policies.AugmentOp):
        yield policy
    elif isinstance(policy, list | tuple):
        for part in policy:
            yield from _operations(part)
    else:
        yield from _operations(getattr(policy, "ops", getattr(policy, "policy", [])))


def _enlarge_tiny(image: Image.Image) -> Image.Image:
    """Bring both sides to 16 pixels or more: of fewer, timm's random crop may take none and be black."""
    width, height = image.size
    return image if min(image.size) >= 16 else image.resize((max(width, 16), max(height, 16)))
