"""Checks of settings, and the words of refusals: each names the setting, what it was and what is allowed."""

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from inspect import signature

__all__ = ["did_you_mean", "first_line", "require", "require_numbers", "said_as", "some"]


def require(holds: bool, name: str, value: object, allowed: str) -> None:
    """Raise a ValueError about a setting unless ``holds``."""
    if not holds:
        raise ValueError(f"{name} must be {allowed}, not {value!r}")


def require_numbers(where: str, given: Mapping[str, object], function: Callable[..., object]) -> None:
    """Raise a ValueError about an argument that is no number, where a function's own default is a fraction."""
    for name, parameter in signature(function).parameters.items():
        value = given.get(name, parameter.default)
        if isinstance(parameter.default, float) and not isinstance(value, int | float | None):
            raise ValueError(f"{where}: {name} must be a number such as {parameter.default}, not {value!r}")


@contextmanager
def said_as(what: str) -> Iterator[None]:
    """Raise as a ValueError whatever a library raises about arguments that come from a file or a person.

    Args:
        what: What does not suit it, which the message begins with.
    """
    try:
        yield
    except (ValueError, OSError, ImportError, MemoryError):
        raise
    except Exception as error:  # an index, a type, a size: whatever the arguments happen to break first
        raise ValueError(f"{what}: {first_line(error)}") from error


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "timm names them all") -> str:
    """Return the end of a message about an unknown name: the known names nearest to it, or else ``otherwise``."""
    near = difflib.get_close_matches(name.lower(), list(known), n=3)
    if not near:
        return f"; {otherwise}" if otherwise else ""
    return f"; did you mean {' or '.join(near)}?"


def some(names: Iterable[object], most: int = 5) -> str:
    """Return the first names, and how many more there are, for a message."""
    listed = [str(name) for name in names]
    shown = ", ".join(listed[:most]) or "none"
    return f"{shown} and {len(listed) - most:,} more" if len(listed) > most else shown


def first_line(error: BaseException, most: int = 160) -> str:
    """Return the first line of an error's message, at most ``most`` characters; its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:most]
