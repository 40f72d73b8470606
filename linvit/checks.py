"""Checks of settings, so that each refusal names the setting, what it was and what is allowed."""

import difflib
from collections.abc import Iterable

__all__ = ["did_you_mean", "require"]


def require(holds: bool, name: str, value: object, allowed: str) -> None:
    """Raise a ValueError about a setting unless ``holds``."""
    if not holds:
        raise ValueError(f"{name} must be {allowed}, not {value!r}")


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "timm names them all") -> str:
    """Return the end of a message about an unknown name: the known names nearest to it, or else ``otherwise``."""
    near = difflib.get_close_matches(name.lower(), list(known), n=3)
    return f"; did you mean {' or '.join(near)}?" if near else f"; {otherwise}"
