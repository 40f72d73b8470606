"""benchmarks/kernels.py can be run in earnest on a GPU alone: what it plans, draws and prints is tried here."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from linvit.bench.records import Record

launch = pytest.importorskip("linvit.ops.launch", reason="Triton is for Linux alone")
if not launch.INTERPRETED:
    pytest.skip("on a GPU the script itself is run", allow_module_level=True)

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kernels.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("benchmark_of_kernels", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_plan_has_every_shape_once(script):
    lines = [tuple(of.values()) for of, *_ in script.plan(rehearse=False)]
    assert len(lines) == len(set(lines)) == 2 * len(script.LENGTHS) + len(script.SHAPES) * len(script.SIZES)
    models = [tuple(of.values()) for of, _ in script.model_plan(rehearse=False)]
    assert len(models) == len(set(models)) == 18
    for _, kind, shape in script.plan(rehearse=False):
        assert kind in ("linear", "focused", "maps")
        assert len(shape) == 4


@pytest.mark.parametrize("kind", ["linear", "focused", "maps"])
def test_contenders_compute_from_the_same_tensors(script, kind):
    inputs = script.attention_inputs(kind, 1, 2, 8, 6, "cpu")
    layouts = {launch.layout(x)[0] for x in inputs[:3]}
    assert layouts == ({1} if kind == "maps" else {0})
    assert script.difference(kind, inputs) <= script.TOLERANCES[torch.bfloat16]
    calls = script.contenders(kind, inputs)
    assert tuple(calls) == script.CONTENDERS
    for name in ("PyTorch", "softmax"):
        call, wanted = calls[name]
        assert call().shape == (1, 2, 6, 8)
        assert all(g is not None for g in torch.autograd.grad(call().sum(), wanted))


def test_what_fails_is_left_out(script, capsys):
    def fail():
        raise torch.OutOfMemoryError("out of memory\nmore")

    found = script.timed({"kernels": lambda: None, "softmax": fail}, "cpu", 2)
    assert list(found) == ["kernels"]
    assert len(found["kernels"]) == 2
    assert "softmax left out: OutOfMemoryError: ['out of memory']" in capsys.readouterr().out


def test_table_and_chart_of_a_made_up_record(script, tmp_path):
    record = Record("made up", {})
    record.add({"what": "copy"}, {"bytes_per_second": [1e12, 2e12, 3e12]})
    for of, _, shape in script.plan(rehearse=False):
        seconds = {name: [shape[3] * 1e-8, shape[3] * 3e-8, shape[3] * 2e-8] for name in script.CONTENDERS}
        if shape[3] > 10_000:
            del seconds["softmax"]
        for direction in ("forward", "backward"):
            raw = {"seconds": seconds, "least_bytes": shape[3] * 20_000, "error": 0.001}
            record.add(of | {"direction": direction}, raw)
    for of, _ in script.model_plan(rehearse=False):
        record.add(of, {"seconds": {"kernels": [0.25]}})
    lines = script.table(record).splitlines()
    assert len(lines) == 2 + 2 * 38 + 18
    assert "| linear, B8 H16 D64, 256 tokens, forward | 0.005 | 0.005 | 0.005 | 0.005 | 50% |" in lines
    assert "| focused, B8 H16 D64, 65536 tokens, backward | 1.311 | 1.311 | 1.311 | - | 50% |" in lines
    assert "| flatten_swin_tiny, 224 pixels, batch 64, inference | 250.000 | - | - | - |  |" in lines
    script.chart(record, tmp_path / "chart.png")
    assert Image.open(tmp_path / "chart.png").size[0] > 1000


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_rehearsal(tmp_path):
    """Every step on a CPU, with inductor and the interpreter; a second call measures nothing again."""
    out, chart = tmp_path / "record.json", tmp_path / "chart.png"
    command = [sys.executable, str(SCRIPT), "--rehearse", "--rounds", "1", "--out", str(out), "--chart", str(chart)]
    # A cache of its own: what another process left half-compiled is not taken up.
    env = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor")}
    for _ in range(2):
        result = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        assert "left out" not in result.stdout
    cells = json.loads(out.read_text())["cells"]
    assert len(cells) == 1 + 3 * 2 + 2
    for cell in cells[1:]:
        assert {"kernels", "compiled", "softmax"} <= set(cell["raw"]["seconds"])
    assert chart.is_file()
    table = out.with_suffix(".md").read_text().split("\n\n")[1]
    assert table in result.stdout
    assert table.count("\n") == 2 + 3 * 2 + 2
    assert result.stdout.count("tokens': 20") == 0
