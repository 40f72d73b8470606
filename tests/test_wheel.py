"""The package as pip installs it: everything that it needs is in the wheel, and it runs from anywhere."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BUILD = "import sys; from setuptools.build_meta import build_wheel; print(build_wheel(sys.argv[1]))"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    source = tmp_path_factory.mktemp("source") / "linvit"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "linvit", source / "linvit", ignore=shutil.ignore_patterns("__pycache__"))
    out = source.parent / "wheel"
    out.mkdir()
    subprocess.run([sys.executable, "-c", BUILD, str(out)], cwd=source, check=True, capture_output=True)
    (built,) = out.glob("linvit-*.whl")
    return built


def test_every_file_of_the_package_is_in_the_wheel(wheel):
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "linvit").rglob("*") if path.is_file()}
    expected = {name for name in files if "__pycache__" not in name and not name.startswith("linvit/.")}
    assert expected - set(zipfile.ZipFile(wheel).namelist()) == set()
    assert any(name.endswith("recipes/imagenet/care_s0.yaml") for name in expected)


@pytest.mark.xdist_group("wheel")
def test_installed_into_an_empty_folder_it_trains_a_recipe_from_elsewhere(wheel, tmp_path):
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", tmp_path / "site", wheel]
    subprocess.run([sys.executable, *map(str, install)], check=True, capture_output=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def python(*arguments: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
        command = [sys.executable, "-P", *arguments]
        said = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True)
        assert said.returncode == 0, said.stderr
        return said.stdout.strip()

    found = python("-c", "import linvit; print(linvit.__file__)")
    assert found == str(tmp_path / "site" / "linvit" / "__init__.py")  # and not the source beside this test
    short = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "2"]
    python("-m", "linvit", "train", "--config", "demo", "--out", "run", *short)
    assert (elsewhere / "run" / "model.safetensors").is_file()
