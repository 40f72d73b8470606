"""The kernels compile for processors that are not here, spill no registers, and fit into their shared memory."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

launch = pytest.importorskip("linvit.ops.launch", reason="Triton is for Linux alone")

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kernel_binaries.py"
RECORD = SCRIPT.with_suffix(".json")
ONE_BLOCK = {"sm_80": 163, "sm_86 and sm_89": 99, "sm_90": 227, "gfx942": 64}  # KiB of shared memory
TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def read(path: Path) -> list[dict]:
    return [cell["of"] | cell["raw"] for cell in json.loads(path.read_text())["cells"]]


def compile_kernels(out: Path, *options: str) -> list[dict]:
    environment = os.environ | {"TRITON_INTERPRET": "0"}  # in a process of its own: here they are interpreted
    command = [sys.executable, str(SCRIPT), "--out", str(out), *options]
    subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return read(out)


def check(records: list[dict]) -> None:
    for record in records:
        assert record["spilled_bytes"] == 0, record
        assert record["fits"], record
        assert 0 < record["registers"] <= 512
        assert record["occupancy"] > 0


def test_head_size_32_in_bfloat16(tmp_path):
    """What FLatten-Swin runs, on an A100."""
    records = compile_kernels(tmp_path / "records.json", "--quick", "--target", "sm_80")
    assert {record["operator"] for record in records} == {"linear", "focused", "key-only"}
    check(records)
    for record in records:  # eight channels in one load: the compiler knows that all strides are aligned
        assert record["load_bytes"] == 16 or record["kernel"] == "unite", record


def test_the_record_holds_every_configuration(monkeypatch):
    """Of a head's size only the next power of two counts, so that these are all that a call can choose."""
    spec = importlib.util.spec_from_file_location("kernel_binaries", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # the script turns it off; this brings back what was
    spec.loader.exec_module(script)
    names = ("channels last", "channels first")
    expected = {
        (operator, kernel.__name__, script.TYPES[dtype], size, names[layout])
        for operator, kernel, dtype, size, layout in script.configurations()
    }
    records = read(RECORD)
    check(records)
    for target in ("sm_80", "sm_90", "gfx942"):
        keys = ("operator", "kernel", "type", "head_size", "layout")
        assert {tuple(r[key] for key in keys) for r in records if r["target"] == target} == expected, target


@pytest.mark.parametrize("target", ONE_BLOCK)
def test_every_binary_fits_into_a_block(target):
    """The shared memory of sm_80's binaries is that of sm_86's and sm_89's, which have less of it."""
    needed = [r["shared_bytes"] for r in read(RECORD) if r["target"] == target.replace("sm_86 and sm_89", "sm_80")]
    assert max(needed) <= ONE_BLOCK[target] * 1024


@pytest.mark.parametrize("hip", [False, True])
@pytest.mark.parametrize("dtype", TYPES.values(), ids=TYPES)
def test_heads_between_powers_of_two_choose_what_was_compiled(dtype, hip):
    for kernel in ("summarise", "look_up", "query_backward", "key_backward", "query_gradient", "key_gradient"):
        for focus in (False, True):
            for size in (8, 12, 20, 48, 72, 100, 127):
                chosen, compiled = (
                    launch.tile(d, d, kernel, dtype, focus, hip) for d in (size, max(16, launch.power_of_two(size)))
                )
                assert chosen | {"SLICES": 0} == compiled | {"SLICES": 0}


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "gfx942"])
def test_every_configuration(tmp_path, target):
    """Compiled anew, from the kernels as they are now."""
    check(compile_kernels(tmp_path / "records.json", "--target", target))
