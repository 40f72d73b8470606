"""What the commands share: JSON that every program can read, tables that are whole in a pipe."""

import json
import math

from linvit.cli.common import print_facts, print_json, print_rows


def test_json_knows_no_nan(capsys):
    print_json([{"loss": math.nan, "deep": (1.5, -math.inf)}, "text", None])
    out = capsys.readouterr().out
    assert json.loads(out, parse_constant=lambda name: 1 / 0) == [{"loss": None, "deep": [1.5, None]}, "text", None]


def test_a_table_is_not_folded_into_a_pipe(capsys):
    words = " ".join(["word"] * 100)
    print_facts({"name": words})
    print_rows([{"name": words}])
    assert capsys.readouterr().out.count(words) == 2
