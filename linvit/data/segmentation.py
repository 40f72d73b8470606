"""The Lightning data module for semantic segmentation: every setting of a training run that is about images."""

from functools import cached_property
from pathlib import Path
from typing import Any

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from linvit.checks import require
from linvit.data.digit_scenes import SEMANTIC_CLASSES
from linvit.data.drawn_masks import DrawnMasks
from linvit.data.joint import JointTransform, eval_transform, train_transform
from linvit.data.legends import Legend
from linvit.data.loading import cores
from linvit.data.mask_classes import legend_of
from linvit.data.mask_datasets import DigitMasks, MaskFolder, collate_masks
from linvit.data.mask_layouts import MaskPart, masks_to_train
from linvit.data.masks import IGNORED, MaskCode
from linvit.data.module import VisionData

__all__ = ["SegmentationData"]


class SegmentationData(VisionData):
    """Images and masks: random windows of them for training, whole images for evaluation, one at a time.

    Unreadable files are replaced in training, left out of evaluation, and listed in each batch, unless ``strict``.

    Args:
        root: Folder with images/training, annotations/training and the same for validation (ADE20K's layout), with
            train/images, train/masks and the same for val, in the layout of Cityscapes, Pascal VOC, CamVid or COCO, or
            without parts, which is found out; null: the embedded digit scenes.
        classes: Names of the classes in the order of their values in the masks, or their number; null: the names in
            classes.txt (one per line), a palette, or objectInfo150.txt (ADE20K's) in root.
        values: Mask value of each class, in order; null: 0, 1, 2, ..., or 0 and 255 where two classes have these.
        ignore: Mask values that count for nothing, neither in training nor in metrics.
        reduce_zero_label: Mask value 0 counts for nothing and the classes start at 1, as in ADE20K.
        batch_size: Windows per batch and device; null: 16, or fewer where an epoch would have less than 8 updates.
        workers: Processes that load images, 0 for the main one; null: one per core, 16 at most.
        strict: Stop at the first unreadable file.
        crop_size: Height and width of the training windows in pixels, or one number for both; null: 512 for folders,
            the whole scenes of 96x96 for the digits.
        short_side: Length in pixels that the shorter side of an image is brought to first, in training and evaluation;
            null: images stay as they are. Figures are counted in the pixels of the mask either way.
        scale: Least and greatest random factor on the size of a training image.
        max_share: A training window that is for a larger share of one class is drawn again, ten times at most.
        hflip: Probability of mirroring a training image left to right; null: 0.5 for folders, 0 for the digits.
        photometric: Probability of random brightness, contrast, saturation and hue changes to a training image.
        mean: Mean of red, green and blue that is subtracted, on a scale of 0 to 1; ImageNet's by default.
        std: Standard deviation of red, green and blue that is divided by, on the same scale; ImageNet's by default.
        seed: Decides the order of the training images and their augmentation; ``linvit train`` gives it its own.
        palette: File of names and colours of the classes where masks are coloured pictures: lines of name,r,g,b; null:
            class_dict.csv, label_colors.txt or labelmap.txt in root.
        train_images: Another folder of the images to learn from, below root.
        train_masks: Another folder of their masks, or an annotation file in COCO's format.
        val_images: Another folder of the images to hold out.
        val_masks: Another folder of their masks, or an annotation file.
        val_share: Share of the images to hold out where there is no such part; copies stay together.

    Raises:
        ValueError: A setting outside its range; later, a folder that does not have the layout.
    """

    collate = staticmethod(collate_masks)
    default_batch_size = 16
    val_batch_size = 1  # sizes may differ

    def __init__(
        self,
        root: str | None = None,
        classes: list[str] | int | None = None,
        values: list[int] | None = None,
        ignore: tuple[int, ...] = (IGNORED,),
        reduce_zero_label: bool = False,
        batch_size: int | None = None,
        workers: int | None = None,
        strict: bool = False,
        crop_size: int | tuple[int, int] | None = None,
        short_side: int | None = None,
        scale: tuple[float, float] = (0.5, 2.0),
        max_share: float = 0.75,
        hflip: float | None = None,
        photometric: float = 1.0,
        mean: tuple[float, float, float] = IMAGENET_DEFAULT_MEAN,
        std: tuple[float, float, float] = IMAGENET_DEFAULT_STD,
        seed: int = 0,
        palette: str | None = None,
        train_images: str | None = None,
        train_masks: str | None = None,
        val_images: str | None = None,
        val_masks: str | None = None,
        val_share: float = 0.2,
    ) -> None:
        super().__init__()
        if hflip is None:
            hflip = 0.0 if root is None else 0.5
        crop_size = crop_size or (96 if root is None else 512)
        window = (crop_size, crop_size) if isinstance(crop_size, int) else crop_size
        require(batch_size is None or batch_size >= 1, "batch_size", batch_size, "at least 1, or null")
        require(workers is None or workers >= 0, "workers", workers, "0 or more")
        require(min(window) >= 1, "crop_size", crop_size, "at least 1")
        require(short_side is None or short_side >= 1, "short_side", short_side, "at least 1")
        require(0 < scale[0] <= scale[1], "scale", scale, "two rising factors above 0")
        for name, share in {"max_share": max_share, "hflip": hflip, "photometric": photometric}.items():
            require(0 <= share <= 1, name, share, "from 0 to 1")
        require(min(std) > 0, "std", std, "three numbers above 0")
        require(seed >= 0, "seed", seed, "0 or more")
        self.root = root
        self.seed = seed
        self._batch_size = batch_size
        self.workers = min(16, cores()) if workers is None else workers
        self.strict = strict
        self._given = classes
        self._palette = palette
        self._values = values
        self._ignore = ignore
        self._reduce_zero_label = reduce_zero_label
        self._train_folders = (train_images, train_masks)
        self._val_folders = (val_images, val_masks)
        self.val_share = val_share
        given = any((*self._train_folders, *self._val_folders, palette))
        require(root is not None or not given, "root", root, "a folder where a palette, images or masks are named")
        require(0 < val_share < 1, "val_share", val_share, "between 0 and 1")
        self._input: dict[str, Any] = {"short_side": short_side, "mean": list(mean), "std": list(std)}
        self.train_transform = train_transform(window, scale, max_share, hflip, photometric, **self._input)
        self.eval_transform = eval_transform(**self._input)

    def input_config(self) -> dict[str, Any]:
        """Return what a model must know to prepare its input and to read masks."""
        return self._input | self.code.config()

    @property
    def classes(self) -> list[str]:
        """Class names in the order of the targets."""
        return self._legend.names

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)

    @cached_property
    def code(self) -> MaskCode:
        """What the values of the masks mean."""
        values, legend = self._values, self._legend
        return MaskCode(
            self.num_classes,
            legend.values if values is None and not self._reduce_zero_label else values,
            (*self._ignore, *legend.ignore),
            self._reduce_zero_label,
            legend.colors,
            legend.void,
        )

    @cached_property
    def train_set(self) -> MaskFolder | DigitMasks:
        """The training images, windows of them; ValueError where they do not fill one batch."""
        dataset = self._open(True, self.train_transform)
        self._check_batch_size(len(dataset))
        return dataset

    @cached_property
    def val_set(self) -> MaskFolder | DigitMasks:
        """The held-out images, whole."""
        return self._open(False, self.eval_transform)

    def setup(self, stage: str | None = None) -> None:
        """Find the images and masks now, so that a wrong folder is reported before anything starts."""
        _ = self.val_set
        if stage in (None, "fit"):
            _ = self.train_set

    @cached_property
    def _legend(self) -> Legend:
        if self.root is None:
            return Legend(list(SEMANTIC_CLASSES))
        known = self._values is not None or self._reduce_zero_label
        return legend_of(Path(self.root), self._files[0], self._given, self._palette, known)

    @cached_property
    def _files(self) -> tuple[MaskPart, MaskPart]:
        assert self.root is not None
        return masks_to_train(self.root, self.val_share, self._train_folders, self._val_folders)

    def _open(self, train: bool, transform: JointTransform) -> MaskFolder | DigitMasks:
        if self.root is None:
            return DigitMasks(train, transform)
        files = self._files[0 if train else 1]
        if isinstance(files.masks, DrawnMasks):
            files.masks.call(self.classes, self.code.values)
        return MaskFolder(files, self.code, transform, self.strict, replace_unreadable=train)
