"""A thousand photos: predicted as fast as they are evaluated, in memory that does not grow."""

import gc
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import linvit
from linvit.inference.classification import ClassificationPredictor
from linvit.inference.stream import predict_all
from tests.conftest import CLASSES

pytestmark = pytest.mark.slow

PHOTOS = 1000
SIZES = [(500, 375), (375, 500), (640, 480), (333, 500), (1024, 683)]


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A thousand JPEGs of five sizes in class folders."""
    root = tmp_path_factory.mktemp("album")
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    pictures = [Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC) for size in SIZES]
    for number in range(PHOTOS):
        folder = root / CLASSES[number % len(CLASSES)]
        folder.mkdir(exist_ok=True)
        pictures[number % len(SIZES)].save(folder / f"{number:04d}.jpg", quality=90)
    return root


def test_predict_takes_no_more_time_than_eval(
    linvit_command: Any, run_folder: Path, album: Path, tmp_path: Path
) -> None:
    commands = {
        "eval": ("eval", run_folder, album, "--workers", "0", "--json"),
        "predict": ("predict", run_folder, album, "--workers", "1", "--csv", tmp_path / "found.csv"),
    }
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(3):  # in turns
        for name, command in commands.items():
            cpu, wall = time.process_time(), time.perf_counter()
            assert linvit_command(*command).code == 0
            seconds[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    best = {name: np.array(times).min(axis=0) for name, times in seconds.items()}
    cpu_ratio, wall_ratio = best["predict"] / best["eval"]
    print(f"\npredict over eval, {PHOTOS} photos: processor time {cpu_ratio:.2f}, wall clock {wall_ratio:.2f}; {best}")
    assert len((tmp_path / "found.csv").read_text().splitlines()) == PHOTOS + 1
    assert cpu_ratio < 1.1  # the clock on the wall says how busy the machine is, too


def test_memory_is_flat(run_folder: Path, album: Path) -> None:
    predictor = ClassificationPredictor(linvit.load_model(run_folder))
    levels = []
    for number, _ in enumerate(predict_all(predictor, sorted(album.rglob("*.jpg")), batch_size=16, workers=2)):
        if number % 100 == 99:
            gc.collect()
            levels.append(resident())
    print("\nresident MB after each hundred photos:", [round(level) for level in levels])
    assert max(levels[3:]) - levels[2] < 15


def resident() -> float:
    """Return the memory of this process in MB."""
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * 4096 / 1e6
