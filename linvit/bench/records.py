"""Measured values in one form of JSON file, whatever measures them: it grows cell by cell, and goes on after a stop.

A record says what was measured, with which settings, on which machine and with which versions; its cells hold the raw
values. Tables and charts are made from the file alone::

    {"what": ..., "settings": {...}, "machine": {...}, "cells": [{"of": {"model": "care_s0"}, "raw": {...}}, ...]}
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from linvit.bench.run import machine
from linvit.files import atomic_write

__all__ = ["Cell", "Record"]


@dataclass(frozen=True)
class Cell:
    """One measurement.

    Attributes:
        of: What tells it from the other cells of the record: ``{"model": "care_s0", "img_size": 224}``.
        raw: The values as they were measured, nothing averaged: ``{"seconds": [...]}``.
    """

    of: dict[str, Any]
    raw: dict[str, Any]


@dataclass
class Record:
    """What one command measured.

    Attributes:
        what: One line.
        settings: Whatever the values depend on, of plain types.
        machine: Processor, cores and versions, as :func:`linvit.bench.run.machine` tells them.
        cells: The measurements.
        path: The file that is written after each cell; None keeps all in memory.
    """

    what: str
    settings: dict[str, Any]
    machine: dict[str, Any] = field(default_factory=machine)
    cells: list[Cell] = field(default_factory=list)
    path: Path | None = None

    @classmethod
    def read(cls, path: str | Path) -> "Record":
        """Read a file.

        Raises:
            ValueError: It holds no record.
        """
        try:
            found = json.loads(Path(path).read_text())
            cells = [Cell(cell["of"], cell["raw"]) for cell in found["cells"]]
            return cls(found["what"], found["settings"], found["machine"], cells, Path(path))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} holds no record of measurements") from error

    @classmethod
    def resume(cls, path: str | Path | None, what: str, settings: dict[str, Any]) -> "Record":
        """Go on with the record in a file, or begin one where there is none.

        Raises:
            ValueError: The file holds measurements with other settings, which must not be mixed with these.
        """
        settings = json.loads(json.dumps(settings, default=str))
        if path is None or not Path(path).is_file():
            return cls(what, settings, path=Path(path) if path else None)
        record = cls.read(path)
        differ = [name for name in {**record.settings, **settings} if record.settings.get(name) != settings.get(name)]
        if differ:
            name = differ[0]
            was, now = record.settings.get(name), settings.get(name)
            raise ValueError(f"{path} was measured with {name} {was!r}, not {now!r}: give another file")
        return record

    def get(self, **of: Any) -> dict[str, Any] | None:
        """Return the raw values of the cell that is exactly this, or None."""
        return next((cell.raw for cell in self.cells if cell.of == of), None)

    def select(self, **of: Any) -> Iterator[Cell]:
        """Yield the cells that agree with this."""
        for cell in self.cells:
            if all(cell.of.get(name) == value for name, value in of.items()):
                yield cell

    def add(self, of: dict[str, Any], raw: dict[str, Any]) -> None:
        """Add a cell, in place of the same one if it is there, and write the file."""
        self.cells = [cell for cell in self.cells if cell.of != of]
        self.cells.append(Cell(of, raw))
        self.write()

    def write(self) -> None:
        """Write the file, if the record has one."""
        if self.path is None:
            return
        cells = [{"of": cell.of, "raw": cell.raw} for cell in self.cells]
        found = {"what": self.what, "settings": self.settings, "machine": self.machine, "cells": cells}
        with atomic_write(self.path) as temporary:
            temporary.write_text(json.dumps(found, indent=1) + "\n")
