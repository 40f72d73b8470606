"""Writing files so that nobody ever meets half of one."""

import errno
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

__all__ = ["atomic_write", "check_output", "save_picture", "saving"]


def check_output(path: "str | Path | None", folder: bool = False) -> None:
    """Check that a file, or files into a folder, can be written, before anything takes long; nothing is made.

    Args:
        path: The file, or the folder; None for nothing to write.
        folder: It is a folder.

    Raises:
        OSError: Something is in the way, or may not be written into; the message says what.
    """
    if path is None:
        return
    path = Path(path)
    if not folder and path.is_dir():
        raise IsADirectoryError(f"cannot write {path}: it is a folder, and a file is meant")
    nearest = next(place for place in ([path] if folder else []) + [*path.absolute().parents] if place.exists())
    if not nearest.is_dir():
        raise NotADirectoryError(f"cannot write into {path if folder else path.parent}: {nearest} is a file")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise PermissionError(f"cannot write into {path if folder else path.parent}: {nearest} may not be written into")


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


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside ``path`` to write to, and rename it to ``path`` when the block ends well.

    If the block raises, the temporary file is removed and ``path`` is left as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with saving(path):
            yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # or a power cut could leave the new name with nothing behind it
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        os.replace(temporary, path)
    except OSError as error:
        if error.filename == str(temporary):  # nobody has asked for that name
            error.filename = str(path)
        raise
    finally:
        with suppress(NotADirectoryError):
            temporary.unlink(missing_ok=True)


def save_picture(picture: "Image | Figure", path: str | Path) -> None:
    """Write a picture as a PNG; folders on the way are made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        if hasattr(picture, "savefig"):
            picture.savefig(temporary, format="png")
        else:
            picture.save(temporary, format="PNG")
