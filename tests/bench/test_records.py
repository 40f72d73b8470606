"""Records of measurements: cells are kept as they are measured, and settings are not mixed."""

import json

import pytest

from linvit.bench.records import Record


def test_a_record_grows_and_goes_on_after_a_stop(tmp_path):
    path = tmp_path / "speed.json"
    first = Record.resume(path, "how fast", {"threads": 1})
    assert not path.exists()
    first.add({"model": "a", "size": 32}, {"seconds": [1.0, 2.0]})
    found = Record.resume(path, "how fast", {"threads": 1})
    assert found.get(model="a", size=32) == {"seconds": [1.0, 2.0]}
    assert found.get(model="a") is None, "a cell is told by all that it is"
    assert [cell.raw for cell in found.select(model="a")] == [{"seconds": [1.0, 2.0]}]
    assert found.machine == first.machine
    assert found.machine["torch"]
    found.add({"model": "a", "size": 32}, {"seconds": [3.0]})
    found.add({"model": "b", "size": 32}, {"seconds": [4.0]})
    assert [cell.raw["seconds"] for cell in Record.read(path).cells] == [[3.0], [4.0]]


def test_other_settings_are_refused_by_name(tmp_path):
    path = tmp_path / "speed.json"
    Record.resume(path, "how fast", {"threads": 1, "rounds": 3}).write()
    with pytest.raises(ValueError, match="was measured with threads 1, not 2: give another file"):
        Record.resume(path, "how fast", {"threads": 2, "rounds": 3})


@pytest.mark.parametrize("text", ["", "[]", '{"cells": 3}', json.dumps({"what": "x", "settings": {}, "machine": {}})])
def test_what_is_no_record_is_said_in_one_line(tmp_path, text):
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"other\.json holds no record of measurements"):
        Record.read(path)


def test_without_a_file_all_stays_in_memory():
    record = Record.resume(None, "how fast", {})
    record.add({"model": "a"}, {"seconds": [1.0]})
    assert record.get(model="a") == {"seconds": [1.0]}
