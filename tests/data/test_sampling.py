"""Which images make a batch: the same whatever the devices, the processes and where a run was stopped."""

import random
from itertools import chain

import numpy as np
import pytest
import torch

from linvit.data.sampling import Draw, Drawn, EvalBatches, TrainBatches, seeded


def indices(batches: list[list[Draw]]) -> list[int]:
    return [draw.number for draw in chain(*batches)]


def test_an_epoch_has_every_image_once_in_its_own_order() -> None:
    sampler = TrainBatches(20, 4, seed=1)
    orders = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler) == 5
        assert sorted(indices(batches)) == list(range(20))
        assert batches == list(sampler)
        orders.append(indices(batches))
    assert len({tuple(order) for order in orders}) == 3
    assert indices(list(TrainBatches(20, 4, seed=2))) != orders[0]


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_devices_share_the_batches_of_one(world_size: int) -> None:
    alone = list(TrainBatches(50, 12))
    shared = [list(TrainBatches(50, 12 // world_size, 0, rank, world_size)) for rank in range(world_size)]
    assert [list(chain(*parts)) for parts in zip(*shared, strict=True)] == alone


def test_resumed_it_goes_on_with_the_next_batch_and_then_as_ever() -> None:
    whole, stopped = TrainBatches(20, 4), TrainBatches(20, 4)
    whole.set_epoch(3)
    stopped.resume(3, 2)
    assert list(stopped) == list(whole)[2:]
    assert len(stopped) == 5
    assert list(stopped) == list(whole)


def test_repeated_images_have_their_own_randomness() -> None:
    draws = list(chain(*TrainBatches(12, 6, repeats=3)))
    counts = np.bincount([draw.number for draw in draws], minlength=12)
    assert sorted(counts.tolist()) == [0] * 8 + [3] * 4
    assert len({draw.seed for draw in draws}) == len(draws) == 12


@pytest.mark.parametrize("size", [1, 2, 5, 16, 17, 31])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_evaluation_has_every_image_exactly_once(size: int, world_size: int) -> None:
    parts = [EvalBatches(size, 4, rank, world_size) for rank in range(world_size)]
    batches = [list(part) for part in parts]
    assert indices(list(chain(*batches))) == list(range(size))
    assert len({len(part) for part in parts} | {len(each) for each in batches}) == 1, "all are called equally often"
    assert all(len(batch) <= 4 for each in batches for batch in each)
    if size >= 4 * world_size:
        assert all(batch for each in batches for batch in each)


def test_randomness_follows_from_the_draw_and_disturbs_nothing() -> None:
    class Noise:
        def __getitem__(self, index: int) -> tuple[int, float, float, float]:
            return index, random.random(), np.random.random(), float(torch.rand(()))

    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)
    before = random.random(), np.random.random(), float(torch.rand(()))
    first, other, *rest = Drawn(Noise())[[Draw(7, (0, 1, 2)), Draw(7, (0, 1, 3)), Draw(7, (0, 1, 2))]]
    assert rest == [first]
    assert all(mine != yours for mine, yours in zip(first[1:], other[1:], strict=True))
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)
    assert (random.random(), np.random.random(), float(torch.rand(()))) == before
    with seeded((5,)):
        random.random(), np.random.random(), torch.rand(3)
    after = random.random(), np.random.random(), float(torch.rand(()))
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)
    random.random(), np.random.random(), torch.rand(())
    assert (random.random(), np.random.random(), float(torch.rand(()))) == after
