"""What many tests need: a small trained-like model in a folder, and the command line without a subprocess."""

import json
import os
import resource
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # for tests of kernels; Triton, which timm imports, reads it once

import timm
from PIL import Image

import linvit

CLASSES = ["ant", "bee", "cat"]
INPUT = {
    "input_size": (3, 32, 32),
    "mean": (0.5,) * 3,
    "std": (0.25,) * 3,
    "interpolation": "bilinear",
    "crop_pct": 1.0,
}
COLORS = {"ant": (200, 30, 30), "bee": (30, 200, 30), "cat": (30, 30, 200)}


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory) -> Path:
    """A run folder with a small CARE of three classes."""
    torch.manual_seed(0)
    model = timm.create_model(
        "care_s0", depths=(1, 1, 1, 1), dims=(4, 4, 16, 32), num_classes=3, layer_scale_init_value=0.5
    )
    torch.nn.init.normal_(model.head.fc.weight)  # so that classes differ
    folder = tmp_path_factory.mktemp("runs") / "small"
    linvit.save_model(model, folder, classes=CLASSES, input_config=INPUT)
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """Class folders below ``val``, three images each of several sizes, one of them unreadable in ``cat``."""
    root = tmp_path_factory.mktemp("photos")
    for name, color in COLORS.items():
        (root / "val" / name).mkdir(parents=True)
        for i, size in enumerate([(32, 32), (50, 20), (7, 90)]):
            Image.new("RGB", size, color).save(root / "val" / name / f"{i}.png")
    (root / "val" / "cat" / "broken.jpg").write_text("no image")
    return root


@contextmanager
def file_limit(size: int) -> Generator[None]:
    """Let no file grow beyond ``size`` bytes, as on a disk that runs full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@dataclass
class Said:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def linvit_command(capsys) -> Callable[..., Said]:
    """Run the command line in this process."""
    from linvit.cli.main import main

    def run(*args: str | Path) -> Said:
        capsys.readouterr()
        code = main([str(arg) for arg in args])
        out, err = capsys.readouterr()
        return Said(code, out, err)

    return run
