"""Settings that hands have edited: what is wrong with them, in one line."""

import contextlib
import json
import re
import warnings
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import torch
import yaml
from lightning import Trainer

__all__ = ["check_nulls", "check_sections", "readable", "task_in", "warn_of_slow_bfloat16"]

SECTIONS = ("model", "data", "trainer", "checkpoint")


def check_sections(path: str | Path) -> None:
    """Check that a file of settings holds settings, by sections.

    Raises:
        ValueError: It does not; the message names the file, the key, what was found and what is allowed.
    """
    try:
        settings = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} holds no settings: it is no text in UTF-8") from error
    except (OSError, yaml.YAMLError):
        return  # said when it is parsed
    if not isinstance(settings, dict):
        raise ValueError(f"{path} holds no settings, such as 'model: {{name: care_s0}}'")
    for key in SECTIONS:
        if key in settings and not isinstance(settings[key], dict):
            raise ValueError(
                f"{path}: {key} is {json.dumps(settings[key], default=str)}, and must be a section of settings"
            )


def check_nulls(settings: Namespace, classes: Mapping[str, type[Any]]) -> None:
    """Check that no setting is null but where its type says that it may be.

    Args:
        settings: All settings, as parsed.
        classes: The class that each section is for.

    Raises:
        ValueError: One is.
    """
    for section, kind in classes.items():
        given = vars(getattr(settings, section))
        for each in kind.__mro__:
            if "__init__" not in vars(each):
                continue
            for name, hint in get_type_hints(each.__init__).items():  # type: ignore[misc]
                allowed = hint in (Any, None, NoneType) or NoneType in get_args(hint)
                if name in given and given[name] is None and not allowed:
                    raise ValueError(f"--{section}.{name}: Expected {getattr(hint, '__name__', hint)}. Got value: null")


def task_in(configs: list[str]) -> Any:
    """Return the task that the last of the files names; what is wrong with them is found when they are parsed."""
    found = None
    for path in configs:
        with contextlib.suppress(OSError, UnicodeDecodeError, yaml.YAMLError):
            settings = yaml.safe_load(Path(path).read_text())
            found = settings.get("task", found) if isinstance(settings, dict) else found
    return found


def readable(message: str) -> str:
    """Make one plain line of what jsonargparse says about an argument."""
    message = " ".join(message.split())
    message = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", message).replace("typing.", "")
    message = re.sub(
        r"Does not validate .* Subtypes: (\[.*\]) Errors: .* Given value: ", r"Expected one of \1. Got value: ", message
    )
    message = re.sub(r"\ba Literal(\[.*?\])", r"one of \1", message)
    message = re.sub(r'^Parser key "([^"]+)":', r"--\1:", message)
    return f"{message} (see linvit train --help)" if message.startswith("unrecognized") else message


def warn_of_slow_bfloat16(trainer: Trainer) -> None:
    """Warn where bfloat16 would be computed by float32 instructions: it is about ten times slower than float32."""
    able = torch.cpu.get_capabilities()
    native = able["architecture"] != "x86_64" or able.get("avx512_bf16") or able.get("amx_bf16")
    if trainer.strategy.root_device.type == "cpu" and "bf16" in str(trainer.precision) and not native:
        warnings.warn(
            f"--trainer.precision {trainer.precision}: this processor has no bfloat16 arithmetic, and float32 is about "
            "10 times faster on it: give --trainer.precision 32-true",
            stacklevel=2,
        )
