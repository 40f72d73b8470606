"""Image folders written to disk for the tests of the data room."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

MakeFolder = Callable[[str, dict[str, int]], Path]


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """Write ``{class: number of images}`` below a folder; image i of class c has the gray value 20 c + i."""

    def make(name: str, counts: dict[str, int]) -> Path:
        for index, (label, count) in enumerate(counts.items()):
            folder = tmp_path / name / label
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (24, 20), (20 * index + i,) * 3).save(folder / f"{i}.png")
        return tmp_path / name

    return make
