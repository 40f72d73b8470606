"""What data modules share: loaders that go on where a run was stopped, and that share the images over devices."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader

from linvit.checks import require
from linvit.data.sampling import Drawn, EvalBatches, TrainBatches

try:
    from lightning import LightningDataModule
    from lightning.fabric.utilities.rank_zero import rank_zero_only
except ModuleNotFoundError as error:
    raise ModuleNotFoundError('data modules need Lightning: pip install "linvit[train]"') from error

__all__ = ["Indexed", "VisionData", "rank_zero_only"]


LEAST_UPDATES = 8
"""Updates that an epoch should have, where the batch size is not given."""


class Indexed(Protocol):
    """A data set whose items are found by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class VisionData(LightningDataModule):
    """Loads batches of a training set and of a held-out set, which a data module for a task provides.

    Attributes:
        default_batch_size: Most images per batch and device where settings give no number.
        val_batch_size: The same for held-out images; None for as many.
        workers: Processes that load images, 0 for the main one.
        seed: Decides the order of the training images and their augmentation.
        repeats: How often an image is drawn in a row.
        collate: Makes a batch of samples.
    """

    default_batch_size: int
    val_batch_size: int | None = None
    workers: int
    seed: int = 0
    repeats: int = 1
    collate: Callable[[list[Any]], Any]
    _batch_size: int | None = None
    _resumed: dict[str, int] | None = None

    @property
    def train_set(self) -> Indexed:
        """The training images, by index."""
        raise NotImplementedError

    @property
    def val_set(self) -> Indexed:
        """The held-out images, by index."""
        raise NotImplementedError

    @property
    def batch_size(self) -> int:
        """Images per batch and device: as given, or fewer than usual where an epoch would have less than 8 updates.

        It is two at least, as batch norm cannot learn from one value, unless there is but one image.
        """
        count = len(self.train_set)
        return self._batch_size or min(self.default_batch_size, count, max(2, count // LEAST_UPDATES))

    def _check_batch_size(self, count: int) -> None:
        allowed = f"at most {count}, the number of training images"
        require((self._batch_size or 1) <= count, "batch_size", self._batch_size, allowed)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return shuffled full batches; the images left over at the end of an epoch are dropped."""
        rank, world_size = self._place()
        batches = self._train_batches(rank, world_size)
        allowed = f"at most {len(self.train_set) // world_size}, the number of training images per device"
        require(len(batches) > 0, "batch_size", self.batch_size, allowed)
        if self._resumed:
            self._resume(batches, **self._resumed)
        return self._loader(self.train_set, batches)

    def _train_batches(self, rank: int, world_size: int) -> TrainBatches:
        return TrainBatches(len(self.train_set), self.batch_size, self.seed, rank, world_size, self.repeats)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the held-out images in order, every one once, over however many devices."""
        size = self.val_batch_size or self.batch_size
        return self._loader(self.val_set, EvalBatches(len(self.val_set), size, *self._place()))

    def test_dataloader(self) -> DataLoader[Any]:
        """Return the held-out images in order, every one once."""
        return self.val_dataloader()

    def state_dict(self) -> dict[str, int]:
        """Return how far training has come in which epoch: with the seed, that is all the randomness there is."""
        assert self.trainer is not None
        loop: Any = self.trainer.fit_loop
        epoch, batches = loop.epoch_progress.current, loop.epoch_loop.batch_progress.current.processed
        if epoch.processed == epoch.started:  # between two epochs
            batches = 0
        total = self.batch_size * self.trainer.world_size
        if batches >= self.trainer.num_training_batches:  # in its validation: what is loaded next is the next epoch
            return {"epoch": epoch.processed + 1, "batches": 0, "total": total}
        return {"epoch": epoch.processed, "batches": batches, "total": total}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Have the training loader go on from there: the next one, or that of a strategy that restores after it."""
        self._resumed = state_dict
        loader: Any = self.trainer.train_dataloader if self.trainer else None
        if loader is not None:
            self._resume(loader.sampler, **state_dict)

    def _resume(self, batches_of_epoch: TrainBatches, epoch: int, batches: int, total: int) -> None:
        if batches and total != batches_of_epoch.total:
            raise ValueError(
                f"the run stopped within an epoch of batches of {total} images, not {batches_of_epoch.total}: resume "
                "it with such a --data.batch_size times devices"
            )
        batches_of_epoch.resume(epoch, batches)
        self._resumed = None

    def _place(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _loader(self, dataset: Any, batches: TrainBatches | EvalBatches) -> DataLoader[Any]:
        return DataLoader(
            Drawn(dataset),
            batch_size=None,  # the sampler gives whole batches
            sampler=batches,
            num_workers=self.workers,
            collate_fn=self.collate,
            persistent_workers=self.workers > 0,
            pin_memory=torch.cuda.is_available(),
        )
