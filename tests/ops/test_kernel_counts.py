"""What the kernels move, counted as it happens, against eager PyTorch and the least there can be."""

import importlib.util
from pathlib import Path

import pytest
import torch

launch = pytest.importorskip("linvit.ops.launch", reason="Triton is for Linux alone")

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kernel_counts.py"


@pytest.fixture(scope="module")
def counts():
    if not launch.INTERPRETED:
        pytest.skip("bytes are counted in Triton's interpreter, which a machine with a GPU does not use by itself")
    spec = importlib.util.spec_from_file_location("kernel_counts", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.B, module.H, module.D, module.GRID, module.TOKENS = 1, 2, 16, (10, 16), 160
    return module


@pytest.mark.parametrize("name", ["linear, elu + 1", "focused", "global context", "local context 3x3"])
def test_kernels_move_a_fraction_of_what_eager_pytorch_moves(counts, name):
    forward, backward = counts.measure(name, torch.bfloat16).values()
    for record, least in ((forward, 2.5), (backward, 2.0)):
        assert record["eager"]["bytes"] >= least * record["fused"]["bytes"]
        assert record["fused"]["requested"] >= record["fused"]["bytes"]
        assert record["fused"]["operations"] > 0
    # The values of a call are read, and its results written, at least once.
    assert forward["fused"]["bytes"] >= forward["floor"]["bytes"]
    assert backward["fused"]["bytes"] >= 0.99 * backward["floor"]["bytes"]


def test_linear_attention_is_near_the_floor(counts):
    """Queries, keys, values and results once each; what is added is the summary of the keys."""
    forward, backward = counts.measure("linear, relu", torch.bfloat16).values()
    states = 16 * 17 * 2 * 4  # d (e + 1) of two heads in float32
    assert forward["fused"]["bytes"] <= forward["floor"]["bytes"] + 5 * states
    assert backward["fused"]["bytes"] <= backward["floor"]["bytes"] + 6 * states


def test_counts_by_hand(counts):
    """A reversal of 100 float32 moves 400 bytes in and out each, an addition 800 in and 400 out, a view nothing."""
    x = torch.ones(100)
    count = counts.eager(lambda: x + x.flip(0).view(100))
    assert (count.bytes, count.operations, count.launches) == (800 + 1200, 200, 2)
