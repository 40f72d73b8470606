"""What the commands share: JSON that every program can read, tables that are whole in a pipe."""

import json
import math

import pytest

from linvit.cli.common import print_facts, print_json, print_rows
from linvit.data.digit_scenes import check_part


def test_json_knows_no_nan(capsys):
    print_json([{"loss": math.nan, "deep": (1.5, -math.inf)}, "text", None])
    out = capsys.readouterr().out
    assert json.loads(out, parse_constant=lambda name: 1 / 0) == [{"loss": None, "deep": [1.5, None]}, "text", None]


def test_a_table_is_not_folded_into_a_pipe(capsys):
    words = " ".join(["word"] * 100)
    print_facts({"name": words})
    print_rows([{"name": words}])
    assert capsys.readouterr().out.count(words) == 2


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["eval", "MODEL", "mnist5k", "--split", "some"], "argument --split: invalid choice: 'some' (choose from"),
        (["eval", "MODEL", "mnist5k", "--knn", "--temperature", "nan"], "must be a number above 0, not 'nan'"),
        (["export", "MODEL", "--to", "torch", "--bound", "-1"], "--bound: must be a number above 0, not '-1'"),
        (["export", "MODEL", "--to", "torch", "--bound", "nan"], "--bound: must be a number above 0, not 'nan'"),
    ],
)
def test_what_is_outside_its_range_is_one_line(linvit_command, run_folder, command, message) -> None:
    said = linvit_command(*[run_folder if word == "MODEL" else word for word in command])
    assert said.code == 2
    assert message in said.err
    assert said.err.count("\n") == 1


def test_digit_scenes_have_two_parts() -> None:
    for split in (None, "train", "val"):
        check_part(split)
    with pytest.raises(ValueError, match="digit-scenes has no part 'test'; its parts: train, val"):
        check_part("test")


@pytest.mark.parametrize(
    "command",
    [
        ["models", "*s0"],
        ["recipes", "demo"],
        ["study", "mechanism_deit", "--list"],
        ["predict", "MODEL", "PHOTOS/val/ant"],
        ["eval", "MODEL", "PHOTOS", "--workers", "0"],
        ["eval", "MODEL", "PHOTOS", "--workers", "0", "--against", "MODEL/model.safetensors"],
        ["export", "MODEL", "--to", "torch", "--images", "PHOTOS/val/ant", "--out", "OUT/m.pt2"],
        ["bench", "MODEL", "--img-size", "32", "--rounds", "1", "--warmup", "0", "--no-memory"],
        ["inspect", "MODEL", "PHOTOS/val/ant/0.png", "--out", "OUT/seen"],
        ["card", "MODEL", "--out", "OUT/card.md"],
    ],
)
def test_json_is_all_that_is_printed(linvit_command, run_folder, photos, tmp_path, command) -> None:
    for name, path in (("MODEL", run_folder), ("PHOTOS", photos), ("OUT", tmp_path)):
        command = [str(path) + word.removeprefix(name) if word.startswith(name) else word for word in command]
    said = linvit_command(*command, "--json")
    assert said.code == 0, said.err
    assert said.json
