"""The Lightning data module for learning without classes: images of any folder, augmented, in fixed views if wanted."""

import copy
import math
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from timm.data import create_transform
from torch.utils.data import DataLoader, Subset

from linvit.checks import require
from linvit.data.classification import ClassificationData
from linvit.data.datasets import ImageSet, collate
from linvit.data.sampling import Draw, TrainBatches
from linvit.data.sources import Source
from linvit.data.unlabelled import open_unlabelled

__all__ = ["FixedViews", "PretrainData"]


class FixedViews(TrainBatches):
    """Training batches whose images come in few views: epoch ``n`` shows view ``n % views`` of each image.

    A view is one draw of the augmentation. That what a teacher says of it can be kept is the idea of TinyViT (Wu et
    al., ECCV 2022, section 3.1).

    Args:
        *args: As for TrainBatches.
        views: How many views an image has.
        **kwargs: As for TrainBatches.
    """

    def __init__(self, *args: Any, views: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.views = views

    def __iter__(self) -> Iterator[list[Draw]]:
        view = self.epoch % self.views
        for batch in super().__iter__():
            yield [Draw(draw.number, (self.seed, view, draw.number)) for draw in batch]


class PretrainData(ClassificationData):
    """Images without classes, augmented for training and centre-cropped for validation.

    Folders are searched to any depth, and no folder's name is looked at, but for a root that holds nothing but
    ``train`` and ``val``. Shards need no classes beside their images, Hugging Face sets no column of them.

    Args:
        root: Folder with images at any depth, or with tar files (shards), or what names these; null: the embedded
            MNIST-5k.
        val_share: Share of the images to hold out where root is not split; copies stay together.
        scale: Least and greatest share of an image's area that a random training crop takes.
        views: How many different crops of an image there are: epoch n shows number n modulo views, so that the
            teacher's features can be kept (--model.cache). null: a new one in each epoch.
        **kwargs: As for classification.

    Attributes:
        crop: Height and width of the images in batches.

    Raises:
        ValueError: A setting outside its range; later, a folder without images.
    """

    def __init__(
        self,
        root: str | None = None,
        val_share: float = 0.05,
        scale: tuple[float, float] = (0.25, 1.0),
        views: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, val_share=val_share, scale=scale, **kwargs)
        require(views is None or views >= 1, "views", views, "1 or more, or null")
        self.views = views
        self.crop = self._input["input_size"][1]

    def see_at(self, size: int) -> None:
        """Have images cropped at this height and width, where it is greater than ``img_size``.

        So a teacher with a larger input sees the same crop sharply; the student's view is made of it.
        """
        if size <= self.crop:
            return
        self._least_side = math.ceil(self._least_side * size / self.crop)
        self.crop = size
        self.train_transform = self._augment(size)
        self.eval_transform = create_transform(**self._input | {"input_size": (3, size, size)})

    def setup(self, stage: str | None = None) -> None:
        """Find the images now, so that a wrong folder is reported before anything starts."""
        count = len(self._source.train(None, self.strict))
        require(
            (self._batch_size or 1) <= count,
            "batch_size",
            self._batch_size,
            f"at most {count}, the images to learn from",
        )

    @cached_property
    def train_set(self) -> Any:
        """The training images, augmented; a sample's target is its number."""
        dataset = super().train_set
        if self.views is not None and isinstance(dataset, ImageSet):
            dataset.replace_unreadable = False  # or two images would have one number
        return dataset

    def sample(self, count: int) -> Iterator[dict[str, Any]]:
        """Yield batches of at most ``count`` images from all over the training set, cropped as for validation."""
        images = copy.copy(self.train_set)
        images.transform = self.eval_transform
        if isinstance(images, ImageSet):
            images.replace_unreadable = False
        some = Subset(images, list(range(0, len(images), math.ceil(len(images) / count))))
        yield from DataLoader(some, min(self.batch_size, 32), num_workers=self.workers, collate_fn=collate)

    def _train_batches(self, rank: int, world_size: int) -> TrainBatches:
        if self.views is None:
            return super()._train_batches(rank, world_size)
        size = len(self.train_set)
        return FixedViews(size, self.batch_size, self.seed, rank, world_size, self.repeats, views=self.views)

    @cached_property
    def _source(self) -> Source:
        return open_unlabelled(self.source, self.root, self.val_share, self.val_root)
