"""Peak memory of one contender, in a process of its own: ``python -m linvit.bench.process CONTENDER FOLDER``."""

import json
import subprocess
import sys
from pathlib import Path

from linvit.bench.contenders import Contender, images_of
from linvit.bench.memory import peak_memory

__all__ = ["contender_memory"]


def contender_memory(contender: Contender, folder: Path) -> int:
    """Return by how many bytes a fresh process grows at most when it loads a contender and runs one image.

    Where a runtime has a file, it is read from ``folder``, so that the model's making does not count.
    """
    command = [sys.executable, "-m", "linvit.bench.process", json.dumps(contender.record), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"{contender.name}: {done.stderr.strip().splitlines()[-1]}")
    return int(done.stdout.split()[-1])


def main(record: str, folder: str) -> None:
    """Load and run a contender, and print the growth in bytes."""
    fields = json.loads(record)
    contender = Contender(**(fields | {"size": tuple(fields["size"])}))
    print(peak_memory(lambda: contender.open(Path(folder))(images_of(1, 3, contender.size)), contender.device))


if __name__ == "__main__":
    main(*sys.argv[1:])
