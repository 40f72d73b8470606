"""Which images make a batch, and their randomness, as functions of (seed, epoch, position): nothing to lose in a crash.

A training run that is stopped anywhere and resumed draws what it would have drawn, whatever number of processes loads
the images, and however many devices share a batch.
"""

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, DistributedSampler

__all__ = ["Draw", "Drawn", "EvalBatches", "TrainBatches", "seeded"]


class Draw(NamedTuple):
    """One image to load: its number in the data set, and what its randomness follows from (None: it has none)."""

    number: int
    seed: tuple[int, ...] | None = None


class TrainBatches(DistributedSampler[Any]):
    """Full training batches in a new random order every epoch; what does not fill a batch is left out.

    All devices draw from one order, so that they see in a step what one device with their total batch would see. (The
    base class is how Lightning knows that there is nothing left to distribute.)

    Args:
        size: Number of images.
        batch_size: Images per batch and device.
        seed: Decides the order and the augmentation.
        rank: Which of the devices this is.
        world_size: How many devices there are.
        repeats: How often an image is drawn in a row, each time augmented anew; an epoch then has that share of the
            images.

    Attributes:
        total: Images of a step over all devices.
    """

    def __init__(
        self, size: int, batch_size: int, seed: int = 0, rank: int = 0, world_size: int = 1, repeats: int = 1
    ) -> None:
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.total = batch_size * world_size
        self.repeats = repeats
        self.epoch = 0
        self._skip = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch, counted from 0."""
        self.epoch = epoch

    def resume(self, epoch: int, batches: int) -> None:
        """Leave out the batches of an epoch that were trained on before, once."""
        self.epoch, self._skip = epoch, batches

    def __len__(self) -> int:
        return self.size // self.total

    def __iter__(self) -> Iterator[list[Draw]]:
        first, self._skip = self._skip, 0
        # RandomState's numbers are the same in every version of NumPy; a Generator's need not be.
        order = np.random.RandomState([self.seed, self.epoch]).permutation(self.size)
        for batch in range(first, len(self)):
            begin = batch * self.total + self.rank * self.batch_size
            yield [
                Draw(int(order[position // self.repeats]), (self.seed, self.epoch, position))
                for position in range(begin, begin + self.batch_size)
            ]


class EvalBatches(DistributedSampler[Any]):
    """Every image exactly once, in order, over any number of devices.

    All devices get the same number of batches, as distributed models must be called equally often; the batches are
    therefore of nearly, not exactly, equal size (empty where there are fewer images than devices).

    Args:
        size: Number of images.
        batch_size: Most images per batch and device.
        rank: Which of the devices this is.
        world_size: How many devices there are.
    """

    def __init__(self, size: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self._batches = math.ceil(math.ceil(size / world_size) / batch_size)
        self._range = range(size * rank // world_size, size * (rank + 1) // world_size)

    def set_epoch(self, epoch: int) -> None:
        """Nothing changes from epoch to epoch."""

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[list[Draw]]:
        for indices in np.array_split(self._range, self._batches):
            yield [Draw(int(index)) for index in indices]


class Drawn(Dataset[Any]):
    """Gives out whole batches of a data set, each image with the randomness that its draw says.

    Args:
        dataset: Anything indexed by numbers.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, draws: Sequence[Draw]) -> list[Any]:
        samples = []
        for draw in draws:
            with seeded(draw.seed):
                samples.append(self.dataset[draw.number])
        return samples


@contextmanager
def seeded(seed: Sequence[int] | None) -> Iterator[None]:
    """Let the random numbers of Python, NumPy and torch's CPU follow from ``seed`` within this block.

    Afterwards they go on as if the block had drawn none. None changes nothing.
    """
    if seed is None:
        yield
        return
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    ours, theirs, torchs = map(int, np.random.SeedSequence(seed).generate_state(3))
    random.seed(ours)
    np.random.seed(theirs)
    torch.default_generator.manual_seed(torchs)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
