"""What a process of its own takes: processor time of a command, and a contender's peak memory.

``python -m linvit.bench.process CONTENDER FOLDER`` is the process whose memory is measured.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from linvit.bench.contenders import Contender, images_of
from linvit.bench.memory import peak_memory

__all__ = ["contender_memory", "run_command"]


def run_command(command: Sequence[str], **options: Any) -> tuple[int, str, float | None]:
    """Run a command to its end.

    Args:
        command: The program and its arguments.
        **options: Of ``subprocess.Popen``, but for ``stdout`` and ``text``.

    Returns:
        Exit status, what it printed, and the processor seconds that it and its children took; None where the system
        does not tell (Windows).
    """
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options) as process:
        assert process.stdout is not None
        printed = process.stdout.read()
        if not hasattr(os, "wait4"):
            return process.wait(), printed, None
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        return process.returncode, printed, usage.ru_utime + usage.ru_stime


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
