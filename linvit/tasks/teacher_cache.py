"""What a teacher said of each crop, kept in a file: rows of float16 that are read and written at their places."""

import hashlib
import json
import math
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from linvit.files import saving

__all__ = ["TeacherCache"]

CHECKSUM = 4
"""Bytes before each row that say whether it is whole; a row that was never written has zeros there."""


class TeacherCache:
    """Features of images, by the images' numbers. Several processes of one machine may use it at once.

    Args:
        folder: Where the file lies.
        settings: Everything the features depend on: other settings, another file.
        rows: How many images there are.
        shapes: Shape of each feature of an image.

    Attributes:
        path: The file.
        size: Bytes that it grows to.
    """

    def __init__(
        self, folder: str | Path, settings: dict[str, Any], rows: int, shapes: Sequence[tuple[int, ...]]
    ) -> None:
        self._shapes = shapes
        self._counts = [math.prod(shape) for shape in shapes]
        self._bytes = CHECKSUM + 2 * sum(self._counts)
        key = json.dumps([settings, rows, [list(shape) for shape in shapes]], sort_keys=True, default=str)
        self.path = Path(folder) / f"teacher-{hashlib.blake2b(key.encode(), digest_size=8).hexdigest()}.cache"
        self.size = rows * self._bytes
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)

    def read(self, numbers: Sequence[int]) -> list[Tensor] | None:
        """Return the features ``[len(numbers), *shape]`` of images, float32; None unless all of them are known."""
        rows = []
        for number in numbers:
            found = os.pread(self._file, self._bytes, number * self._bytes)
            values = found[CHECKSUM:]
            if len(found) < self._bytes or int.from_bytes(found[:CHECKSUM], "little") != _checksum(values):
                return None
            rows.append(np.frombuffer(values, np.float16))
        flat = torch.from_numpy(np.stack(rows)).float()
        return [
            part.reshape(len(rows), *shape)
            for part, shape in zip(flat.split(self._counts, dim=1), self._shapes, strict=True)
        ]

    def write(self, numbers: Sequence[int], features: Sequence[Tensor]) -> list[Tensor]:
        """Keep features of images, and return them as :meth:`read` will.

        Raises:
            OSError: There is no space left.
        """
        halves = [x.detach().cpu().half() for x in features]
        flat = torch.cat([x.flatten(1) for x in halves], dim=1).numpy()
        for number, row in zip(numbers, flat, strict=True):
            values = row.tobytes()
            with saving(self.path):
                os.pwrite(self._file, _checksum(values).to_bytes(CHECKSUM, "little") + values, number * self._bytes)
        return [x.float() for x in halves]

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)


def _checksum(values: bytes) -> int:
    return zlib.crc32(values) or 1
