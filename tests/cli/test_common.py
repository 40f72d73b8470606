"""What the commands share: JSON that every program can read."""

import json
import math

from linvit.cli.common import print_json


def test_json_knows_no_nan(capsys):
    print_json([{"loss": math.nan, "deep": (1.5, -math.inf)}, "text", None])
    out = capsys.readouterr().out
    assert json.loads(out, parse_constant=lambda name: 1 / 0) == [{"loss": None, "deep": [1.5, None]}, "text", None]
