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
