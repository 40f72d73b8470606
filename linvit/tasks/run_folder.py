"""The run folder: what lies in it, the check that it can be used, and writers that never leave half a file.

``config.yaml`` (all settings), ``metrics.csv`` and TensorBoard events, ``last.ckpt`` (to resume from), and of the best
weights so far ``model.safetensors``, ``config.json`` and ``confusion_matrix.png``; at the end ``curves.png``.
"""

import csv
import errno
import io
import os
import tempfile
from argparse import Namespace
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from safetensors import SafetensorError

from linvit.checkpoints import WEIGHTS_NAME
from linvit.files import atomic_write

CONFIG = "config.yaml"
METRICS = "metrics.csv"
LAST = "last.ckpt"
MODEL = WEIGHTS_NAME
CURVES = "curves.png"
CONFUSION = "confusion_matrix.png"


def claim(folder: Path) -> None:
    """Make a folder for a new run, and check that files can be written into it.

    Raises:
        ValueError: The folder holds a run already.
        NotADirectoryError: A file is in the way.
        PermissionError: The folder cannot be made or written into.
    """
    if any((folder / name).exists() for name in (LAST, MODEL)):
        raise ValueError(f"{folder} holds a run already: continue it with --resume {folder}, or give another --out")
    check_writable(folder)


def check_writable(folder: Path) -> None:
    """Make a folder if need be, and check that files can be written into it.

    Raises:
        NotADirectoryError: A file is in the way.
        PermissionError: The folder cannot be made or written into.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (FileExistsError, NotADirectoryError) as error:
        file = next((path for path in (folder, *folder.parents) if path.is_file()), folder)
        raise NotADirectoryError(f"cannot make the run folder {folder}: {file} is a file") from error
    except OSError as error:
        raise type(error)(f"cannot write into the run folder {folder}: {error.strerror}") from error


def check_resumable(folder: Path) -> None:
    """Check that a run can be continued.

    Raises:
        FileNotFoundError: The folder does not hold a run.
        PermissionError: The folder cannot be written into.
    """
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"{folder} holds no run to resume: it has no {CONFIG}")
    check_writable(folder)


@contextmanager
def saving(path: Path) -> Generator[None]:
    """Turn the ways in which a full disk shows itself into one clear error.

    Raises:
        OSError: There was no space left; the message names the file.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        full = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}
        number = next((n for n in full if getattr(error, "errno", None) == n or f"(os error {n})" in str(error)), None)
        if number is None:
            raise
        message = f"no space left to write {path} ({os.strerror(number).lower()}); what was there before is unharmed"
        raise OSError(message) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file in one go."""
    with saving(path), atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints under a temporary name first, and never unpickles anything but tensors and plain values."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint; on failure the previous one stays, and nothing else."""
        path = Path(path)
        buffer = io.BytesIO()  # torch.save hides the reason when it fails to write to a file itself
        torch.save(checkpoint, buffer)
        path.parent.mkdir(parents=True, exist_ok=True)
        with saving(path), atomic_write(path) as temporary:
            temporary.write_bytes(buffer.getbuffer())

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read a checkpoint."""
        return super().load_checkpoint(path, *args, **(kwargs | {"weights_only": True}))


class MetricsCsv(Logger):
    """Keeps ``metrics.csv``: one row per step at which something was logged, continued when a run is resumed.

    Args:
        folder: The run folder.
        resume: Keep the rows that are there, up to those that are logged again.
    """

    def __init__(self, folder: Path, resume: bool = False) -> None:
        super().__init__()
        self.path = folder / METRICS
        self._rows: dict[int, dict[str, float]] = {}
        if resume and self.path.is_file():
            with self.path.open(newline="") as file:
                for row in csv.DictReader(file):
                    self._rows[int(row["step"])] = {key: float(value) for key, value in row.items() if value}

    @property
    def name(self) -> str:
        """Name of the logger."""
        return "csv"

    @property
    def version(self) -> str:
        """No versions: the folder is the run."""
        return ""

    @property
    def log_dir(self) -> str:
        """The run folder."""
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: all settings are in ``config.yaml``."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add figures to the row of a step."""
        step = step or 0
        while self._rows and next(reversed(self._rows)) > step:
            self._rows.popitem()
        self._rows.setdefault(step, {}).update(metrics | {"step": step})

    @rank_zero_only
    def save(self) -> None:
        """Write the file."""
        columns = ["epoch", "step", *sorted({key for row in self._rows.values() for key in row} - {"epoch", "step"})]
        text = io.StringIO()
        writer = csv.DictWriter(text, columns)
        writer.writeheader()
        for row in self._rows.values():
            writer.writerow({key: int(row[key]) if key in ("epoch", "step") else f"{row[key]:.6g}" for key in row})
        write_text(self.path, text.getvalue())

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the file."""
        self.save()


class TensorBoardEvents(TensorBoardLogger):
    """Writes TensorBoard events directly into the run folder.

    Args:
        folder: The run folder.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, name="", version="")

    @rank_zero_only
    def save(self) -> None:
        """Write what is pending, without the file of settings that would double ``config.yaml``."""
        self.experiment.flush()
