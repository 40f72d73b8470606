"""The run folder: what lies in it, the check that it can be used, and writers that never leave half a file.

``config.yaml`` (all settings), ``metrics.csv`` and TensorBoard events, ``last.ckpt`` (to resume from) and the one
before it, ``previous.ckpt`` (should the last be damaged), and of the best weights so far ``model.safetensors``,
``config.json`` and ``confusion_matrix.png``; at the end ``curves.png``.
"""

import csv
import io
import os
import tempfile
import traceback
import warnings
import zipfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from linvit.checkpoints import WEIGHTS_NAME
from linvit.files import atomic_write, saving

CONFIG = "config.yaml"
METRICS = "metrics.csv"
LAST = "last.ckpt"
PREVIOUS = "previous.ckpt"
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


_held: list[int] = []
"""Descriptors of the folders that this process trains into."""


def hold(folder: Path) -> None:
    """Keep a run folder for this process until :func:`release`, or until it ends in whatever way.

    Raises:
        ValueError: Another process trains into it.
    """
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise ValueError(f"another training is at work in {folder}: wait for it, or give another --out") from error
    except OSError:  # a file system without locks
        os.close(descriptor)
        return
    _held.append(descriptor)


def release() -> None:
    """Let others have the folders."""
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):  # processes that load images may outlive one that is killed, for some seconds
    os.register_at_fork(after_in_child=release)


def check_resumable(folder: Path) -> None:
    """Check that a run can be continued.

    Raises:
        FileNotFoundError: The folder does not hold a run.
        PermissionError: The folder cannot be written into.
    """
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"{folder} holds no run to resume: it has no {CONFIG}")
    check_writable(folder)


def newest_checkpoint(folder: Path) -> Path | None:
    """Find the checkpoint to resume from: the last, or the previous one where the last is damaged or missing.

    A damaged last one is removed, with a warning, so that it never takes the place of the previous one.

    Returns:
        The path; None if none was ever written.

    Raises:
        ValueError: There are only damaged ones.
    """
    found = [path for path in (folder / LAST, folder / PREVIOUS) if path.exists()]
    whole = [path for path in found if _is_whole(path)]
    if found and not whole:
        raise ValueError(
            f"the checkpoints in {folder} are damaged: train anew with another --out, from the best weights so far if "
            f"there are any: --model.pretrained {folder / MODEL}"
        )
    if len(found) > len(whole) and found[0] not in whole:
        warnings.warn(f"{found[0]} is damaged (cut off?): going on from {whole[0]}", stacklevel=2)
        found[0].unlink(missing_ok=True)
    return whole[0] if whole else None


def _is_whole(path: Path) -> bool:
    """Compare a checkpoint with the checksums that torch puts into it."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except (zipfile.BadZipFile, EOFError, OSError):
        return False


def steps_done(checkpoint: Path) -> int:
    """Return how many updates a checkpoint holds.

    Raises:
        ValueError: It is no checkpoint of a training, or what it says of its progress is damaged.
    """
    content = torch.load(checkpoint, weights_only=True, mmap=True)
    if not isinstance(content, dict):
        raise ValueError(f"{checkpoint} is no checkpoint of a training")
    for name in ("global_step", "epoch"):
        value = content.get(name, None if name == "global_step" else 0)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ValueError(f"{checkpoint}: {name} is {value!r}, and must be a whole number, 0 or more")
    _check_progress(checkpoint, "loops", content.get("loops", {}))
    return content["global_step"]


def _check_progress(checkpoint: Path, place: str, found: Any) -> None:
    """Check that what counts the epochs and batches of a checkpoint are numbers."""
    if isinstance(found, dict):
        for name, value in found.items():
            _check_progress(checkpoint, f"{place}.{name}", value)
    elif not isinstance(found, int):
        raise ValueError(f"{checkpoint}: {place} is {found!r}, and must be a whole number")


def was_restoring(error: BaseException) -> bool:
    """Tell whether a checkpoint was being read: Lightning raises whatever its contents lead to."""
    modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    return isinstance(error, Exception) and any(name.endswith(".checkpoint_connector") for name in modules)


def write_text(path: Path, text: str) -> None:
    """Write a text file in one go."""
    with saving(path), atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints under a temporary name first, and never unpickles anything but tensors and plain values."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint and keep the one before it; on failure both stay, and nothing else."""
        path = Path(path)
        buffer = io.BytesIO()  # torch.save hides the reason when it fails to write to a file itself
        torch.save(checkpoint, buffer)
        path.parent.mkdir(parents=True, exist_ok=True)
        with saving(path), atomic_write(path) as temporary:
            temporary.write_bytes(buffer.getbuffer())
            if path.name == LAST and path.is_file():
                os.replace(path, path.with_name(PREVIOUS))

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read a checkpoint."""
        return super().load_checkpoint(path, *args, **(kwargs | {"weights_only": True}))


class MetricsCsv(Logger):
    """Keeps ``metrics.csv``: one row per step at which something was logged, continued when a run is resumed.

    Rows are appended; only the last one changes while its step goes on. When a figure with a new name comes up the
    file is written anew with another column.

    Args:
        folder: The run folder.
        steps: Keep the rows of so many updates; what was logged after the checkpoint that is resumed is cut off.
    """

    def __init__(self, folder: Path, steps: int = 0) -> None:
        super().__init__()
        self.path = folder / METRICS
        self.steps = steps
        self._columns = ["epoch", "step"]
        self._row: dict[str, str] = {}
        self._end: int | None = None  # where the row that is under way begins, in bytes

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
        """Add metrics to the row of a step."""
        if self._end is None:
            self._open()
        if self._row.get("step") != str(step or 0):
            self._write()
            self._end, self._row = self.path.stat().st_size, {}
        self._row |= {key: f"{value:.6g}" for key, value in metrics.items()} | {"step": str(step or 0)}
        if "epoch" in metrics:
            self._row["epoch"] = str(int(metrics["epoch"]))

    @rank_zero_only
    def save(self) -> None:
        """Write what was logged."""
        self._write()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what was logged."""
        self._write()

    def _write(self) -> None:
        """Write the row that is under way over what the file holds of it."""
        if self._end is None:
            if self.path.is_file():
                return  # nothing was logged here, but maybe by another process
            self._open()
        if new := sorted(self._row.keys() - set(self._columns)):
            rows = self._rows(self._end)
            self._columns = ["epoch", "step", *sorted([*self._columns[2:], *new])]
            self._rewrite(rows)
        with saving(self.path), self.path.open("r+", newline="") as file:
            file.seek(self._end or 0)
            file.truncate()
            if self._row:
                csv.DictWriter(file, self._columns).writerow(self._row)

    def _open(self) -> None:
        """Begin the file, or go on with it: its last row may not be complete yet."""
        rows = [row for row in self._rows() if None not in row.values() and int(row["step"]) < self.steps]
        if rows:
            self._columns = list(rows[0])
            self._row = {key: value for key, value in rows.pop().items() if value}
        self._rewrite(rows)

    def _rows(self, end: int | None = None) -> list[dict[str, str]]:
        if not self.path.is_file():
            return []
        text = self.path.read_bytes()[:end].decode()
        return list(csv.DictReader(text.splitlines()))

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns)
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.path, text.getvalue())
        self._end = self.path.stat().st_size


class TensorBoardEvents(TensorBoardLogger):
    """Writes TensorBoard events directly into the run folder.

    Args:
        folder: The run folder.
        steps: What was logged later than after so many updates no longer counts.
    """

    def __init__(self, folder: Path, steps: int = 0) -> None:
        super().__init__(folder, name="", version="", purge_step=steps or None)

    @rank_zero_only
    def save(self) -> None:
        """Write what is pending, without the file of settings that would double ``config.yaml``."""
        self.experiment.flush()
