"""Timing takes turns: every contender is called as often, and none is always first."""

import pytest

from linvit.bench import median, take_turns


def test_contenders_take_turns_after_a_warm_up():
    calls = []
    seconds = take_turns({name: lambda name=name: calls.append(name) for name in "abc"}, rounds=3, warmup=1)
    assert "".join(calls) == "abc" + "abc" + "bca" + "cab"
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3, "c": 3}


def test_median_is_not_moved_by_one_slow_call():
    assert median({"a": [1.0, 2.0, 90.0], "b": [1.0, 3.0]}) == {"a": 2.0, "b": 2.0}


def test_no_rounds_is_an_error():
    with pytest.raises(ValueError, match="rounds must be at least 1, got 0"):
        take_turns({"a": lambda: None}, rounds=0)
