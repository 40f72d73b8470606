"""The formats to export to: one file for each, with its record in ``FORMAT``. A file put here is found."""

import importlib
import pkgutil
from collections.abc import Iterator

from linvit.deploy.formats._record import Format

__all__ = ["FORMATS", "Format", "find_format"]


def _records() -> Iterator[Format]:
    for module in pkgutil.iter_modules(__path__):
        if not module.name.startswith("_"):
            yield importlib.import_module(f"{__name__}.{module.name}").FORMAT


FORMATS: dict[str, Format] = {record.name: record for record in _records()}
"""By name. Their libraries are imported when a file is written or loaded."""


def find_format(name: str) -> Format:
    """Return a format that is ready to use: its libraries are there.

    Raises:
        ValueError: There is no such format.
        ModuleNotFoundError: A library is missing; the message says what to do.
    """
    if name not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {name!r}")
    FORMATS[name].require()
    return FORMATS[name]
