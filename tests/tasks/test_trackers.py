"""Trackers with the real libraries, offline: what is logged, and that a resumed run goes on in its own curves."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_train import arguments, photos

__all__ = ["photos"]

pytestmark = pytest.mark.slow  # the libraries take ten seconds to start


def both(photos: Path, out: Path, linvit_command: Callable[..., Any], name: str) -> tuple[str, str]:
    """Train an epoch and resume for another; return which run of the tracker it was each time."""
    runs = []
    first = [*arguments(photos, out, 1), f"--tracker={name}"]
    for given in (first, ["train", "--resume", out, "--trainer.max_epochs=2"]):
        said = linvit_command(*given)
        assert said.code == 0, said.err
        noted = json.loads((out / "tracker.json").read_text())
        assert noted["tracker"] == name
        runs.append(noted["run"])
    return runs[0], runs[1]


def test_mlflow_keeps_everything_in_the_run_folder(
    photos: Path, tmp_path: Path, linvit_command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow", reason='needs: pip install "linvit[mlflow]"')
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    first, second = both(photos, tmp_path / "run", linvit_command, "mlflow")
    assert first == second
    (folder,) = (tmp_path / "run" / "mlruns").glob(f"*/{first}")
    lines = (folder / "metrics" / "val" / "top1").read_text().splitlines()
    assert len(lines) == 2, "one epoch before the stop and one after it"
    assert (folder / "params" / "model" / "name").read_text() == "test_efficientnet"


def test_wandb_works_offline(
    photos: Path, tmp_path: Path, linvit_command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason='needs: pip install "linvit[wandb]"')
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    first, second = both(photos, tmp_path / "run", linvit_command, "wandb")
    wandb.finish()
    assert first == second
    kept = list((tmp_path / "run" / "wandb").glob(f"offline-run-*-{first}/*.wandb"))
    assert kept
    assert b"test_efficientnet" in b"".join(path.read_bytes() for path in kept)


def test_wandb_without_a_login_is_one_line(photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason='needs: pip install "linvit[wandb]"')
    nobody = {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc")}
    said = subprocess.run(  # in a process of its own: wandb remembers how it was begun
        [sys.executable, "-m", "linvit", *map(str, arguments(photos, tmp_path / "run", 1)), "--tracker=wandb"],
        env={name: value for name, value in os.environ.items() if not name.startswith("WANDB_")} | nobody,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert said.returncode == 2
    assert "WANDB_MODE=offline" in said.stderr.splitlines()[-1]
