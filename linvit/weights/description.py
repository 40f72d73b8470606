"""``config.json`` of a saved model: read, and checked key by key before anything is built of it."""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["CONFIG_NAME", "read_description"]

CONFIG_NAME = "config.json"


class Kind(NamedTuple):
    """What a value may be: a test, and how to say it."""

    holds: Callable[[Any], bool]
    words: str


def _is_int(value: Any, least: float = 0, most: float = math.inf) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_list(value: Any, test: Callable[[Any], bool], least: int = 0) -> bool:
    return isinstance(value, list) and len(value) >= least and all(map(test, value))


def _or_null(kind: Kind) -> Kind:
    return Kind(lambda value: value is None or kind.holds(value), f"{kind.words}, or null")


TEXT = Kind(lambda value: isinstance(value, str) and bool(value), "a text")
TEXTS = Kind(lambda value: _is_list(value, TEXT.holds), "a list of texts")
NAMES = Kind(lambda value: TEXT.holds(value) or TEXTS.holds(value), "a text or a list of texts")
OBJECT = Kind(lambda value: isinstance(value, dict), "an object of names and values")
COUNT = Kind(_is_int, "a whole number, 0 or more")
LENGTH = Kind(lambda value: _is_int(value, 1), "a whole number, 1 or more")
FLAG = Kind(lambda value: isinstance(value, bool), "true or false")
NUMBERS = Kind(lambda value: _is_list(value, _is_number, 1), "a list of numbers")
DEVIATIONS = Kind(lambda value: _is_list(value, lambda each: _is_number(each) and each > 0, 1), "numbers above 0")
SHARE = Kind(lambda value: _is_number(value) and value > 0, "a number above 0")
SIZE = Kind(
    lambda value: _is_list(value, lambda each: _is_int(each, 1), 3) and len(value) == 3,
    "three whole numbers: channels, height, width",
)
SIDES = Kind(
    lambda value: (
        isinstance(value, dict)
        and value.keys() == {"img_size"}
        and _is_list(value["img_size"], lambda each: _is_int(each, 1), 2)
        and len(value["img_size"]) == 2
    ),
    "an object with img_size: height and width",
)
VALUES = Kind(lambda value: _is_list(value, lambda each: _is_int(each, 0, 65535)), "a list of mask values")
ROWS = Kind(
    lambda value: _is_list(
        value,
        lambda row: (
            isinstance(row, dict)
            and all(TEXT.holds(row.get(name)) for name in ("module", "attention"))
            and _is_list(row.get("grid_size"), lambda each: _is_int(each, 1), 2)
        ),
    ),
    "a list of objects with module, attention and grid_size",
)


def _three(kind: Kind) -> Kind:
    return Kind(lambda value: kind.holds(value) and len(value) == 3, f"three: {kind.words}")


def _one_of(*names: str) -> Kind:
    return Kind(lambda value: value in names, f"one of {', '.join(names)}")


INPUT = {
    "input_size": SIZE,
    "test_input_size": SIZE,
    "mean": NUMBERS,
    "std": DEVIATIONS,
    "crop_pct": SHARE,
    "interpolation": _one_of("bilinear", "bicubic", "nearest", "lanczos", "random", "box", "hamming"),
    "crop_mode": _one_of("center", "squash", "border"),
    "fixed_input_size": FLAG,
    "num_classes": COUNT,
    "first_conv": _or_null(NAMES),
    "classifier": _or_null(NAMES),
    "label_names": TEXTS,
}
"""Keys of ``pretrained_cfg``, which describe what a classifier sees."""

CLASSIFIER = {
    "architecture": TEXT,
    "num_classes": COUNT,
    "num_features": COUNT,
    "global_pool": TEXT,
    "label_names": TEXTS,
    "model_args": OBJECT,
    "pretrained_cfg": OBJECT,
    "metrics": _or_null(OBJECT),
    "linearize": ROWS,
    "quantize": SIDES,
}

NETWORK = {
    "task": TEXT,
    "architecture": OBJECT,
    "label_names": TEXTS,
    "input": OBJECT,
    "metrics": _or_null(OBJECT),
}
"""Keys of a network for a task of linvit's own: :class:`linvit.heads.DenseModel`."""

BUILT = {
    "num_classes": LENGTH,
    "name": TEXT,
    "backbone": TEXT,
    "backbone_args": OBJECT,
    "decoder_args": OBJECT,
    "detector_args": OBJECT,
    "replaced": ROWS,
    "window": _or_null(LENGTH),
    "stride": _or_null(LENGTH),
    "size": LENGTH,
    "max_size": LENGTH,
    "channels": LENGTH,
    "anchor_size": SHARE,
}
"""Keys of what such a network is built of, ``architecture``."""

SEEN = {
    "segment": {
        "mean": _three(NUMBERS),
        "std": _three(DEVIATIONS),
        "values": VALUES,
        "ignore": VALUES,
        "short_side": _or_null(LENGTH),
    },
    "detect": {},
}
"""Keys of what such a network sees, by task; all must be there."""

COLOURS = Kind(
    lambda value: _is_list(value, lambda row: _is_list(row, lambda each: _is_int(each, 0, 255), 3) and len(row) == 3),
    "a list of colours, each red, green and blue from 0 to 255",
)
DRAWN = {"colors": COLOURS, "void": COLOURS, "label_names": TEXTS}
"""Keys of what it sees that need not be there."""


def read_description(folder: Path) -> dict[str, Any]:
    """Read the description of a saved model.

    Returns:
        What ``config.json`` says; of the keys that linvit or timm uses, each that is there has the right type.

    Raises:
        OSError: There is no such file.
        ValueError: It is damaged, or a key is missing or has a wrong value: the message names file, key, what was found
            and what is allowed.
    """
    path = folder / CONFIG_NAME
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} describes no model: it holds no object")
    is_network = "task" in found
    _check(path, "", found, NETWORK if is_network else CLASSIFIER)
    _require(path, "", found, ("architecture",))
    if is_network:
        seen = SEEN.get(found["task"], {})
        _check(path, "input.", found.get("input", {}), seen | DRAWN)
        _require(path, "input.", found.get("input", {}), seen)
        _check(path, "architecture.", found["architecture"], BUILT)
        count = found["architecture"].get("num_classes")
    else:
        _check(path, "pretrained_cfg.", found.get("pretrained_cfg", {}), INPUT)
        _check_channels(path, found.get("pretrained_cfg", {}))
        _check(path, "model_args.", found.get("model_args", {}), {"num_classes": COUNT, "in_chans": LENGTH})
        count = found.get("num_classes")
    names = found.get("label_names")
    if names and count is not None and len(names) != count:
        raise ValueError(f"{path}: label_names has {len(names)} names, and num_classes is {count}")
    return found


def _check(path: Path, place: str, found: Mapping[str, Any], kinds: Mapping[str, Kind]) -> None:
    for key, kind in kinds.items():
        if key in found and not kind.holds(found[key]):
            raise ValueError(f"{path}: {place}{key} is {_short(found[key])}, and must be {kind.words}")


def _check_channels(path: Path, seen: Mapping[str, Any]) -> None:
    counts = {key: len(seen[key]) for key in ("mean", "std") if key in seen}
    counts |= {"input_size": seen["input_size"][0]} if "input_size" in seen else {}
    if len(set(counts.values())) > 1:
        said = ", ".join(f"{key} {count}" for key, count in counts.items())
        raise ValueError(f"{path}: pretrained_cfg is for different numbers of channels: {said}")


def _require(path: Path, place: str, found: Mapping[str, Any], keys: Iterable[str]) -> None:
    for key in keys:
        if key not in found:
            raise ValueError(f"{path}: {place}{key} is missing")


def _short(value: Any, most: int = 60) -> str:
    text = json.dumps(value)
    return text if len(text) <= most else f"{text[: most - 1]}…"
