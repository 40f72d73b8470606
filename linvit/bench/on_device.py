"""Measure on the user's own device: a folder to take there, and what comes back from it."""

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from linvit.bench.timing import quartiles
from linvit.files import atomic_write

__all__ = ["DEVICES", "DeviceTime", "read_results", "write_kit"]


@dataclass(frozen=True)
class Device:
    """A kind of device.

    Attributes:
        suffixes: Of the files that can be measured there.
        script: What measures them; None where a file does it itself.
        how: What to do, for the README.
    """

    suffixes: tuple[str, ...]
    script: str | None
    how: str


DEVICES = {
    "raspberrypi": Device(
        (".onnx", ".tflite"),
        "measure_files.py",
        """Copy this folder to the device (any machine with Python 3.9 or newer) and run there:

    pip install numpy onnxruntime ai-edge-litert     # the last two as far as there are .onnx and .tflite files
    python measure_files.py --name "Raspberry Pi 5"
""",
    ),
    "android": Device(
        (".tflite",),
        "measure_android.py",
        """Connect the phone by USB, switch on USB debugging, install adb (Android's platform tools), get LiteRT's
`benchmark_model` for Android (its documentation's page on performance measurement links it), and run here:

    python measure_android.py --benchmark-model android_aarch64_benchmark_model
    python measure_android.py --benchmark-model android_aarch64_benchmark_model --gpu

This script was tried against a stand-in for adb, not with a phone.
""",
    ),
    "browser": Device(
        (".html",),
        None,
        """Open each page in the browser to be measured with `#measure` behind its address
(`file:///.../model.html#measure`). It times 30 images and offers `result.json` for download.
""",
    ),
}
"""Kinds of devices by name."""


def write_kit(device: str, files: Sequence[Path], folder: Path) -> list[Path]:
    """Write a folder that measures exported files on a device.

    Args:
        device: A key of :data:`DEVICES`.
        files: What ``linvit export`` wrote.
        folder: What to write; it is made.

    Returns:
        The files of the folder.

    Raises:
        ValueError: There is no such device, a file is missing or cannot run there, or two have one name.
    """
    if device not in DEVICES:
        raise ValueError(f"device must be one of {', '.join(DEVICES)}, got {device!r}")
    kind = DEVICES[device]
    for file in files:
        if file.suffix not in kind.suffixes:
            what = f"{' and '.join(kind.suffixes)} files, which linvit export writes"
            raise ValueError(f"{device} measures {what}, got {file}")
        if not file.is_file():
            raise ValueError(f"{file}: there is no such file")
    if len({file.name for file in files}) < len(files):
        raise ValueError(f"files must have different names, got {', '.join(file.name for file in files)}")
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for file in files:
        with atomic_write(folder / file.name) as temporary:
            shutil.copyfile(file, temporary)
        written.append(folder / file.name)
    readme = (
        f"# Measure on the device: {device}\n\n{kind.how}\nThen, where linvit is: `linvit bench --add result.json`.\n"
    )
    texts = {"README.md": readme}
    if kind.script is not None:
        script = resources.files("linvit.bench") / "devices" / kind.script
        texts[kind.script] = script.read_text(encoding="utf-8")
    for name, text in texts.items():
        with atomic_write(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
        written.append(folder / name)
    return written


@dataclass(frozen=True)
class DeviceTime:
    """What a device needed for one image of one file, in seconds, each value a call or the mean of a turn."""

    device: str
    file: str
    runtime: str
    threads: int | None
    seconds: list[float]

    @property
    def latency(self) -> tuple[float, float, float]:
        """Return lower quartile, median and upper quartile in seconds."""
        return quartiles(self.seconds)


def read_results(paths: Sequence[Path]) -> list[DeviceTime]:
    """Read what devices measured.

    Raises:
        ValueError: A file is no such result; the message says which and why.
    """
    times = []
    for path in paths:
        try:
            record: Any = json.loads(path.read_text(encoding="utf-8"))
            if not record["files"]:
                raise ValueError("it has no files")
            for cell in record["files"]:
                seconds = [float(value) for value in cell["seconds"]]
                if not seconds or not all(math.isfinite(value) and value > 0 for value in seconds):
                    raise ValueError(f"seconds of {cell['file']} must be positive numbers")
                times.append(
                    DeviceTime(
                        str(record["device"]), str(cell["file"]), str(cell["runtime"]), record["threads"], seconds
                    )
                )
        except (KeyError, TypeError, RecursionError) as error:
            what = f"{error} is missing" if isinstance(error, KeyError) else "its JSON is not what the scripts write"
            raise ValueError(f"{path} is no result of a device: {what}") from error
        except ValueError as error:
            raise ValueError(f"{path} is no result of a device: {error}") from error
    return times
