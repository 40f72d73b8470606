"""Trackers beside the run folder: Weights & Biases and MLflow, by one flag; a resumed run goes on in its own curves."""

import json
import os
import secrets
from pathlib import Path
from typing import Literal

import yaml
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import Logger, MLFlowLogger, WandbLogger

from linvit.files import atomic_write

__all__ = ["TrackerName", "open_trackers"]

TrackerName = Literal["wandb", "mlflow"]

PLACE = "tracker.json"
"""In the run folder: which run of the tracker this is, for resuming."""

PROJECT = "linvit"


def open_trackers(name: TrackerName | None, folder: Path, settings: str) -> list[Logger]:
    """Return Lightning's logger for a tracker, with the settings of the run in it; none where none is named.

    Where things go is said as the trackers' own tools say it: ``WANDB_MODE=offline`` keeps W&B's files in the run
    folder, to be sent by ``wandb sync``; ``WANDB_PROJECT`` and ``MLFLOW_EXPERIMENT_NAME`` replace the project "linvit";
    ``MLFLOW_TRACKING_URI`` names MLflow's server, without which its files lie in the run folder.

    Args:
        name: The tracker.
        folder: The run folder, which also names the run.
        settings: All settings of the run, as YAML.

    Raises:
        ValueError: The tracker does not let one in.
        ModuleNotFoundError: Its package is missing.
    """
    if name is None:
        return []
    place = folder / PLACE
    known = json.loads(place.read_text()) if place.is_file() else {}
    run = known["run"] if known.get("tracker") == name else None
    logger = _wandb(folder, run) if name == "wandb" else _mlflow(folder, run)
    if getattr(rank_zero_only, "rank", 0) == 0:
        try:
            if run is None:  # MLflow refuses settings that change, such as more epochs
                logger.log_hyperparams(yaml.safe_load(settings))
            run = str(logger.version if name == "wandb" else logger.run_id)  # type: ignore[attr-defined]
        except Exception as error:
            line = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise ValueError(f"--tracker {name}: {line} ({_ADVICE[name]})") from error
        with atomic_write(place) as temporary:
            temporary.write_text(json.dumps({"tracker": name, "run": run}) + "\n")
    return [logger]


_ADVICE = {
    "wandb": "log in with wandb login, or keep everything here with WANDB_MODE=offline",
    "mlflow": "MLFLOW_TRACKING_URI names the server; without it everything is kept here",
}


def _wandb(folder: Path, run: str | None) -> Logger:
    project = os.environ.get("WANDB_PROJECT", PROJECT)
    try:
        return WandbLogger(
            folder.name, folder, version=run or secrets.token_hex(4), project=project, resume="allow", log_model=False
        )
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('--tracker wandb needs: pip install "linvit[wandb]"') from error


def _mlflow(folder: Path, run: str | None) -> Logger:
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    server = os.environ.get("MLFLOW_TRACKING_URI")
    if server is None:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        server = f"file:{(folder / 'mlruns').absolute()}"
    try:
        return MLFlowLogger(experiment, folder.name, server, log_model=False, run_id=run)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('--tracker mlflow needs: pip install "linvit[mlflow]"') from error
