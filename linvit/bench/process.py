"""Peak memory of one side, in a process of its own: ``python -m linvit.bench.process SIDE_AS_JSON FOLDER``."""

import json
import subprocess
import sys
from pathlib import Path

from linvit.bench.memory import peak_memory
from linvit.bench.sides import Side, images_of

__all__ = ["side_memory"]


def side_memory(side: Side, folder: Path) -> int:
    """Return by how many bytes a fresh process grows at most when it loads a side and runs one image.

    Where a runtime has a file, it is read from ``folder``, so that the model's making does not count.
    """
    command = [sys.executable, "-m", "linvit.bench.process", json.dumps(side.record), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{side.name}: {done.stderr.strip().splitlines()[-1]}")
    return int(done.stdout.split()[-1])


def main(record: str, folder: str) -> None:
    """Load and run a side, and print the growth in bytes."""
    fields = json.loads(record)
    side = Side(**(fields | {"size": tuple(fields["size"])}))
    print(peak_memory(lambda: side.open(Path(folder))(images_of(1, 3, side.size)), side.device))


if __name__ == "__main__":
    main(*sys.argv[1:])
