"""Peak memory of a call: what it allocates for a moment counts, what was there before does not."""

import sys

import pytest
import torch

from linvit.bench import peak_memory

MIB = 2**20

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def allocate(mebibytes: int) -> None:
    torch.ones(mebibytes * MIB // 4)


def test_counts_what_is_freed_again():
    assert 95 * MIB < peak_memory(lambda: allocate(100)) < 120 * MIB


def test_starts_anew_at_each_call():
    peak_memory(lambda: allocate(200))
    kept = torch.ones(50 * MIB // 4)
    assert 15 * MIB < peak_memory(lambda: allocate(20)) < 40 * MIB
    assert kept.sum() > 0
