"""linvit bench: tables, JSON, charts, and what is asked wrongly."""

import json

import pytest

from linvit.cli.bench import _parse

ARGS = ("--rounds", "3", "--warmup", "1", "--no-memory", "--img-size", "32")


def test_forms_and_peers_in_one_table(linvit_command, run_folder, tmp_path):
    out = tmp_path / "out"
    peer = ("--against", "mobilenetv3_small_050", "--top1", "mobilenetv3_small_050=57.9")
    said = linvit_command("bench", run_folder, *peer, "--fused", "both", "--out", out, *ARGS, "32x64")
    assert said.code == 0, said.err
    record = json.loads((out / "results.json").read_text())
    assert len(record["contenders"]) == 8  # two models, two forms, two sizes
    assert {contender["contender"]["fused"] for contender in record["contenders"]} == {False, True}
    assert all(contender["error"] < 1e-4 and len(contender["seconds"]) == 3 for contender in record["contenders"])
    assert record["torch"]
    assert {path.name for path in out.iterdir()} == {"results.json", "accuracy.png", "resolution.png"}


def test_json_and_no_chart_of_accuracies_that_nobody_knows(linvit_command, run_folder, tmp_path):
    args = ("--json", "--clock", "cpu", "--threads", "1", "--out", tmp_path)
    said = linvit_command("bench", run_folder, *ARGS, *args)
    assert said.code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
    (contender,) = said.json["contenders"]
    assert contender["latency"]["q1"] <= contender["latency"]["median"]
    assert said.json["clock"] == "cpu"


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (
            ["--runtime", "tflite"],
            "--runtime must be of eager, compiled, executorch, litert, onnxruntime, openvino, got",
        ),
        (["--img-size", "0"], "argument --img-size: must be PIXELS or HEIGHTxWIDTH, got '0'"),
        (["--device", "xyz"], "device 'xyz' is not here: give auto, cpu, or an accelerator that torch finds"),
        (["--rounds", "0"], "--rounds must be at least 1, got 0"),
        (["--precision", "int4"], "--precision must be of float32, float16, bfloat16, int8, int8-full, got 'int4'"),
        (["--top1", "care_s0"], "--top1 must be NAME=PERCENT, got 'care_s0'"),
    ],
)
def test_wrong_arguments_are_named(linvit_command, args, line):
    said = linvit_command("bench", "care_s0", *args)
    assert said.code == 2
    assert line in said.err


def test_a_runtime_that_takes_no_number_of_threads_says_so(capsys):
    _parse(["care_s0", "--runtime", "executorch", "--threads", "1"])
    assert capsys.readouterr().err == "ExecuTorch takes the threads of its process, not --threads: see taskset\n"
    _parse(["care_s0", "--runtime", "onnxruntime", "--threads", "1"])
    assert capsys.readouterr().err == ""
