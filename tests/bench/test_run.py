"""A measurement compares outputs before it compares times."""

import dataclasses
from functools import partial

import pytest
import torch

from linvit.bench import quartiles
from linvit.bench.contenders import Contender
from linvit.bench.process import contender_memory
from linvit.bench.run import Measurement, measure, speed_up

SIZE = (32, 32)


def measurement(model: str, seconds: float, error: float, fused: bool = False) -> Measurement:
    contender = Contender(model, "eager", fused, SIZE)
    return Measurement(contender, 1, 1, [seconds], 0, [], None, error)


def test_forms_of_one_model_have_a_speed_up_only_if_their_outputs_agree():
    slow, fast = measurement("a", 2.0, 0.0), measurement("a", 1.0, 1e-6, fused=True)
    assert speed_up(slow, fast) == 2.0
    wrong = dataclasses.replace(fast, error=1e-3)
    assert speed_up(slow, wrong) is None
    assert speed_up(wrong, slow) is None
    assert speed_up(slow, dataclasses.replace(fast, error=float("nan"))) is None
    assert speed_up(slow, measurement("b", 4.0, 1e-3)) == 0.5


@pytest.fixture(scope="module")
def measured(run_folder):
    contenders = [
        Contender(str(run_folder), runtime, fused, SIZE) for runtime, fused in [("eager", False), ("onnxruntime", True)]
    ]
    return measure(contenders, rounds=3, warmup=1, batch=2, memory=False, clock="cpu")


def test_contenders_are_timed_in_their_runtimes_and_checked(measured):
    trained, fused = measured
    assert trained.error == 0.0
    assert 0.0 < fused.error < 1e-5
    assert fused.agrees
    assert len(fused.seconds) == 3
    assert fused.throughput > 0
    assert trained.params == fused.params
    assert trained.macs == fused.macs > 1e5
    low, middle, high = trained.latency
    assert 0 < low <= middle <= high


@pytest.fixture
def compiled(monkeypatch):
    """The graphs that the compiler was given; they are run as they are."""
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=keep))
    return graphs


def test_outputs_are_compared_with_the_graph_that_is_timed(run_folder, compiled):
    """A graph takes minutes to compile, and holds for one batch size."""
    measure([Contender(str(run_folder), "compiled", size=SIZE)], rounds=1, memory=False)
    assert len(compiled) == 1


def test_each_size_has_a_graph_of_its_own(run_folder, tmp_path, compiled):
    sides = range(32, 320, 32)  # more than PyTorch's limit of graphs for one code
    for side in sides:
        contender = Contender(str(run_folder), "compiled", size=(side, side))
        contender.open(tmp_path)(torch.randn(1, 3, side, side))
    assert len(compiled) == len(sides)
    inputs = [node.meta["example_value"] for graph in compiled for node in graph.graph.find_nodes(op="placeholder")]
    assert all(isinstance(size, int) for each in inputs for size in each.shape)


def test_exported_files_stay_and_are_taken_the_next_time(run_folder, tmp_path):
    contenders = [Contender(str(run_folder), "onnxruntime", size=SIZE)]
    measure(contenders, rounds=1, warmup=0, memory=False, files=tmp_path)
    (file,) = tmp_path.iterdir()
    written = file.stat()
    (again,) = measure(contenders, rounds=1, warmup=0, memory=False, files=tmp_path)
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (written.st_ino, written.st_mtime_ns)
    assert again.agrees


def test_peak_memory_grows_with_the_image_and_not_with_what_this_process_holds(run_folder, tmp_path):
    small, large = (Contender(str(run_folder), "eager", False, (side, side)) for side in (256, 768))
    ballast = torch.ones(2**26)  # 256 MiB
    least, most = contender_memory(small, tmp_path), contender_memory(large, tmp_path)
    assert least < ballast.nbytes
    assert most - least > 8 * 4 * (768**2 - 256**2) / 4  # more than the maps of the stem: 8 channels at half the size
    assert most < 60 * 4 * 768**2


def test_contenders_must_differ():
    with pytest.raises(ValueError, match="all different"):
        measure([Contender("care_s0"), Contender("care_s0")])


def test_quartiles():
    assert quartiles([4.0, 1.0, 2.0, 3.0, 5.0]) == (2.0, 3.0, 4.0)
    assert quartiles([7.0]) == (7.0, 7.0, 7.0)
