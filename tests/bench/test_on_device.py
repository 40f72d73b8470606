"""A folder measures on a device without linvit, and its result comes back into table and chart."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from linvit.bench.on_device import DEVICES, read_results, write_kit

ADB = """#!{python}
import sys
args = sys.argv[1:]
if args[0] == "shell" and args[1] == "getprop":
    print({{"ro.product.manufacturer": "Maker", "ro.product.model": "Phone 1"}}[args[2]])
elif args[0] == "shell" and any(" " in arg for arg in args):  # a phone's shell would split it
    sys.exit("not found")
elif args[0] == "shell" and args[1].endswith("benchmark_model"):
    print("INFO: Inference timings in us: Init: 100, First inference: 9, Warmup (avg): 9.5, Inference (avg): 7310.5")
elif args[0] == "push" and not __import__("pathlib").Path(args[1]).exists():
    print("cannot stat", file=sys.stderr)
    sys.exit(1)
"""


@pytest.fixture
def onnx_file(tmp_path):
    path = tmp_path / "model.onnx"
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    torch.onnx.export(model, (torch.randn(1, 3, 16, 16),), str(path), dynamo=False)
    return path


def test_measured_by_python_and_shown(onnx_file, tmp_path, linvit_command):
    kit = tmp_path / "kit"
    said = linvit_command("bench", onnx_file, "--on-device", "raspberrypi", "--out", kit)
    assert said.code == 0, said.err
    assert {path.name for path in kit.iterdir()} == {"README.md", "measure_files.py", "model.onnx"}
    command = [sys.executable, "measure_files.py", "--name", "This machine", "--rounds", "5"]
    subprocess.run(command, cwd=kit, check=True, env={"PATH": os.environ["PATH"]}, capture_output=True)
    said = linvit_command("bench", "--add", kit / "result.json", "--out", tmp_path / "speed")
    assert said.code == 0, said.err
    assert "This machine" in said.out
    assert "model.onnx" in said.out
    assert {path.name for path in (tmp_path / "speed").iterdir()} == {"devices.json", "devices.png"}
    (time,) = read_results([kit / "result.json"])
    assert len(time.seconds) == 5
    assert 0 < time.latency[1] < 1


def test_script_says_what_it_lacks_and_takes_free_sizes(tmp_path):
    from linvit.bench.devices import measure_files

    assert measure_files.random_images(["batch", 3, "32*height", "32*width"], np.float32).shape == (1, 3, 224, 224)
    kit = tmp_path / "kit"
    for device, name, lack in (
        ("raspberrypi", "measure_files.py", "there is no .onnx or .tflite file beside this script"),
        ("android", "measure_android.py", "there is no .tflite file beside this script"),
    ):
        write_kit(device, [], kit)
        command = [sys.executable, name] + ["--benchmark-model", "b"] * (device == "android")
        done = subprocess.run(command, cwd=kit, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (1, f"{lack}\n")
    (kit / "m.tflite").write_bytes(b"a model")
    command = [sys.executable, "measure_android.py", "--benchmark-model", "b"]
    done = subprocess.run(command, cwd=kit, env={"PATH": ""}, capture_output=True, text=True, check=False)
    assert done.stderr == "adb is not installed: it is in Android's platform tools\n"


def test_android_script_against_a_stand_in_for_adb(tmp_path):
    (tmp_path / "my model.tflite").write_bytes(b"a model")
    write_kit("android", [tmp_path / "my model.tflite"], tmp_path / "kit")
    adb = tmp_path / "bin" / "adb"
    adb.parent.mkdir()
    adb.write_text(ADB.format(python=sys.executable))
    adb.chmod(0o755)
    environment = {"PATH": f"{adb.parent}{os.pathsep}{os.environ['PATH']}"}
    command = [sys.executable, "measure_android.py", "--rounds", "3", "--benchmark-model"]
    done = subprocess.run(
        [*command, "missing"], cwd=tmp_path / "kit", env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "cannot stat" in done.stderr
    (tmp_path / "benchmark_model").write_bytes(b"a tool")
    command += [str(tmp_path / "benchmark_model")]
    subprocess.run(command, cwd=tmp_path / "kit", env=environment, check=True, capture_output=True)
    (time,) = read_results([tmp_path / "kit" / "result.json"])
    assert (time.device, time.file, time.runtime) == ("Maker Phone 1", "my model.tflite", "litert")
    assert time.seconds == pytest.approx([0.0073105] * 3)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("{", "is no result of a device"),
        ("[]", "its JSON is not what the scripts write"),
        ('{"device": "a", "threads": 1, "files": []}', "it has no files"),
        ('{"device": "a", "threads": 1}', "'files' is missing"),
        ('{"device": "a", "threads": 1, "files": [{"file": "f", "runtime": "r", "seconds": []}]}', "positive numbers"),
        (
            '{"device": "a", "threads": 1, "files": [{"file": "f", "runtime": "r", "seconds": [-1]}]}',
            "positive numbers",
        ),
    ],
)
def test_a_damaged_result_is_one_line(tmp_path, linvit_command, text, line):
    (tmp_path / "result.json").write_text(text)
    said = linvit_command("bench", "--add", tmp_path / "result.json")
    assert said.code == 2
    assert line in said.err
    assert "result.json" in said.err
    assert len(said.err.splitlines()) == 1


def test_wrong_files_are_named(tmp_path, linvit_command):
    (tmp_path / "m.pte").write_bytes(b"")
    for device in DEVICES:
        with pytest.raises(ValueError, match=rf"{device} measures .* files, which linvit export writes, got .*m\.pte"):
            write_kit(device, [tmp_path / "m.pte"], tmp_path / "kit")
    assert not (tmp_path / "kit").exists()
    missing = linvit_command("bench", tmp_path / "m.html", "--on-device", "browser", "--out", tmp_path / "kit")
    assert (missing.code, missing.err.count("\n")) == (2, 1)
    assert "m.html: there is no such file" in missing.err
    missing = linvit_command("bench", "--add", tmp_path / "result.json")
    assert (missing.code, missing.err.count("\n")) == (2, 1)
    assert "result.json" in missing.err
    assert "measures exported files" in linvit_command("bench", "--on-device", "browser", "--out", tmp_path / "kit").err
    assert "give --out DIR" in linvit_command("bench", "m.onnx", "--on-device", "browser").err
    assert "give models to measure" in linvit_command("bench").err


def test_result_is_plain_json(tmp_path):
    record = {"device": "a", "threads": None, "files": [{"file": "f", "runtime": "r", "seconds": [1.0, 2.0, 3.0]}]}
    (tmp_path / "result.json").write_text(json.dumps(record))
    (time,) = read_results([tmp_path / "result.json"])
    assert time.latency == (1.5, 2.0, 2.5)
