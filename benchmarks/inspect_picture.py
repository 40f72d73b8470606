"""Stack some overview pictures of ``linvit inspect`` into one.

python benchmarks/inspect_picture.py runs/demo/pictures docs/inspect.png
"""

import sys
from pathlib import Path

from PIL import Image

from linvit.files import atomic_write

COUNT, WIDTH = 3, 1200


def main(folder: str, out: str) -> None:
    """Read the first pictures of a folder, and write them one above the other."""
    opened = [Image.open(path).convert("RGB") for path in sorted(Path(folder).glob("*_overview.png"))[:COUNT]]
    if not opened:
        raise SystemExit(f"no *_overview.png in {folder}: linvit inspect writes them")
    rows = [
        image.resize((WIDTH, round(image.height * WIDTH / image.width)), Image.Resampling.LANCZOS) for image in opened
    ]
    picture = Image.new("RGB", (WIDTH, sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        picture.paste(row, (0, top))
        top += row.height
    with atomic_write(Path(out)) as temporary:
        picture.quantize(256).save(temporary, format="PNG", optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
