"""``linvit train``: Lightning's command line over a task and its data, and the run folder around it."""

import argparse
import contextlib
import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Generator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import DefaultHelpFormatter
from lightning import Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger

from linvit import __version__, recipes
from linvit.analysis.plots import plot_curves
from linvit.checks import first_line
from linvit.cli.common import print_facts, print_json, print_rows
from linvit.data.module import VisionData
from linvit.files import saving
from linvit.registry import TASKS
from linvit.tasks import run_folder as files
from linvit.tasks.callbacks import EpochLines, KeepBest, LastCheckpoint
from linvit.tasks.faults import SkipNotFinite, StepSeed
from linvit.tasks.settings import check_nulls, check_sections, readable, task_in, warn_of_slow_bfloat16
from linvit.tasks.trackers import TrackerName, open_trackers

_DESCRIPTION = """Train a model and keep everything about it in a run folder.

examples:
  linvit train                                                  CARE-S0 on the embedded digits, as --config demo
  linvit train --data.root photos --trainer.max_epochs 30       on photos/train/CLASS/* and photos/val/CLASS/*
  linvit train --config recipe.yaml --model.lr 5e-4             a recipe, with a setting changed
  linvit train --resume runs/care_s0-20250101-120000            continue, with --trainer.max_epochs for longer
  linvit train --config recipe.yaml --print_config > mine.yaml  all settings, to edit
  linvit train --config linearize --model.name runs/vit  put linear attention into a trained model
  linvit train --task detect --data.root coco --model.backbone care_s1  find objects; see --task detect --help
  linvit train --task segment --data.root streets               give each pixel a class; see --task segment --help"""

_THIS_CALL_ONLY = ("out", "resume", "json")
"""Arguments that are no settings of the training, and so not in ``config.yaml``."""

_FOLDER = "LINVIT_RUN_FOLDER"

MOST_IN_A_ROW = 9
"""Metrics that 80 columns have room for; more are printed one below the other."""

_NOISE = (
    ".*overrides the configure_model",
    ".*LightningCLI's args parameter",
    ".*exists and is not empty",
    ".*LeafSpec",
    ".*`training_step` returned `None`",
    ".*in eval mode at the start of training",
    ".*Grad strides do not match bucket view strides",
)


def run(argv: list[str]) -> int:
    """Train as the arguments say.

    Returns:
        0; errors are raised.

    Raises:
        ValueError: An argument is wrong.
        OSError: A file cannot be read or written.
        KeyboardInterrupt: Ctrl-C; the message says how to go on.
    """
    with _quiet():
        try:
            cli = TrainCLI(argv)
            with contextlib.redirect_stdout(sys.stderr):  # whatever Lightning prints, the result stands alone
                seconds = _fit(cli)
            if cli.trainer.is_global_zero:
                _report(cli, seconds)
        except argparse.ArgumentError as error:
            raise ValueError(readable(str(error))) from error
        except ValueError as error:
            if "compute_fn" in str(error) and isinstance(error.__cause__, ValueError | OSError):
                raise error.__cause__ from error  # what is wrong with the data, without jsonargparse's words around it
            if "more than 1 value per channel" in str(error):
                raise ValueError(
                    "batch norm cannot learn from one image with a map of one pixel: raise --data.batch_size to 2"
                ) from error
            raise
        except MisconfigurationException as error:
            raise ValueError(str(error)) from error
        except torch.OutOfMemoryError as error:
            raise ValueError("the GPU has too little memory: lower --data.batch_size or --data.img_size") from error
        finally:
            files.release()
    return 0


class HelpFormatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps the lines of the examples."""


class TrainCLI(LightningCLI):
    """Parses the arguments, claims the run folder and builds data, task and trainer.

    Args:
        argv: Arguments after ``linvit train``.

    Attributes:
        folder: The run folder.
        title: What the run is called: the model's name.
        resume: Whether the run in it is continued.
        last: The checkpoint to resume from, if there is one.
        checkpoint: Keeps ``last.ckpt``.
        skipping: Skips updates that are not finite.
        keeper: Keeps the best weights.
        is_demo: Whether neither data nor a model is named, and so the demonstration is run.
    """

    def __init__(self, argv: Sequence[str]) -> None:
        peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
        peek.add_argument("--resume", type=Path)
        peek.add_argument("--task")
        peek.add_argument("--config", "-c", action="append", default=[])
        peek.add_argument("--data.root", dest="data")
        peek.add_argument("--model.name", dest="model")
        argv = _recipes_found(argv)
        first, _ = peek.parse_known_args(argv)
        if first.resume:
            files.check_resumable(first.resume)
            first.config.insert(0, str(first.resume / files.CONFIG))
            argv = ["--config", first.config[0], *argv]
        self.is_demo = not (first.config or first.data or first.model) and first.task in (None, "classify")
        if self.is_demo:  # digits of 28 pixels need neither 224 of them nor what is made for 300 epochs
            argv = ["--config", str(recipes.find("demo")), *argv]
        for path in first.config:
            check_sections(path)
        name = first.task or task_in(first.config) or "classify"
        if not isinstance(name, str) or name not in TASKS:
            raise ValueError(f"--task {name!r} is not known; there is {', '.join(TASKS)}")
        self._task = TASKS[name]
        super().__init__(
            *self._task.load_training(),
            args=list(argv),
            run=False,
            save_config_callback=None,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            seed_everything_default=0,
            trainer_defaults={
                "accelerator": "auto",
                "devices": "auto",
                "max_epochs": 10,
                "num_sanity_val_steps": 0,
                "enable_model_summary": False,
            },
            parser_kwargs={
                "prog": "linvit train",
                "usage": "linvit train [--config RECIPE] [--data.root DIR] [--out FOLDER] [--any.setting VALUE ...]",
                "description": _DESCRIPTION,
                "exit_on_error": False,
                "allow_abbrev": False,
                "formatter_class": HelpFormatter,
                "dump_header": None,
            },
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what is not a setting of the data, the task or the trainer."""
        parser.link_arguments("data", "model.num_classes", compute_fn=_checked_classes, apply_on="instantiate")
        for link in self._task.links:
            link.apply(parser)
        if issubclass(self._task.load_training()[1], VisionData):
            parser.link_arguments("seed_everything", "data.seed", compute_fn=int)
        parser.add_argument(
            "--checkpoint.minutes", type=float | None, default=15.0, help="Write last.ckpt within an epoch that often."
        )
        parser.add_argument(
            "--checkpoint.steps", type=int | None, default=None, help="Write last.ckpt after that many batches."
        )
        parser.add_argument(
            "--max_not_finite", type=int, default=20, help="Updates with NaN in a row to skip before giving up."
        )
        parser.add_argument("--task", type=str, default="classify", help=f"What to train for: {', '.join(TASKS)}.")
        help = "Log to Weights & Biases or MLflow, too."
        parser.add_argument("--tracker", type=TrackerName | None, default=None, help=help)
        parser.add_argument("--out", type=str, help="Run folder to make (default: runs/MODEL-DATE-TIME).")
        parser.add_argument("--resume", type=str, help="Run folder to continue in, with its settings and those given.")
        parser.add_argument("--strict", action="store_true", help="Short for --data.strict true.")
        parser.add_argument("--json", action="store_true", help="Print the result as JSON.")

    def before_instantiate_classes(self) -> None:
        """Apply the shortcuts and claim the run folder, before anything takes long."""
        check_nulls(self.config, dict(zip(("model", "data"), self._task.load_training(), strict=True)))
        if self.config.strict:
            self.config.data.strict = True
        if self.config.resume and self.config.out:
            raise ValueError(f"--resume goes on in {self.config.resume}: leave out --out")
        self.resume = bool(self.config.resume)
        self.title = self._task.run_name(self.config.model)
        name = re.sub(r"[^\w.-]+", "-", self.title)
        first = getattr(rank_zero_only, "rank", 0) == 0
        default = f"runs/{name}-{datetime.now():%Y%m%d-%H%M%S}" if first else os.environ.get(_FOLDER, "runs")
        self.folder = Path(self.config.resume or self.config.out or default)
        if first:
            os.environ[_FOLDER] = str(self.folder)  # for the processes that Lightning starts for the other devices
            if not self.resume:
                files.claim(self.folder)
            files.hold(self.folder)

    def instantiate_classes(self) -> None:
        """Build everything; leave no empty folder behind when that fails."""
        try:
            super().instantiate_classes()
        except BaseException:
            with contextlib.suppress(OSError):
                self.folder.rmdir()
            raise

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer with what keeps the run folder, besides the user's own loggers and callbacks."""
        given = self.config_init.trainer
        self.last = files.newest_checkpoint(self.folder) if self.resume else None
        steps = files.steps_done(self.last) if self.last else 0
        self.checkpoint = LastCheckpoint(self.folder, self.config.checkpoint.steps, self.config.checkpoint.minutes)
        self.skipping = SkipNotFinite(self.config.max_not_finite)
        self.keeper = KeepBest(self.folder, self.datamodule.classes, self.datamodule.input_config())
        bar = given.enable_progress_bar is not False and sys.stderr.isatty()
        progress = RichProgressBar(leave=True, console_kwargs={"stderr": True}) if bar else EpochLines()
        seeding = StepSeed(int(self.config.seed_everything))
        kept = [seeding, self.skipping, self.keeper, self.checkpoint]
        trainer = super().instantiate_trainer(
            default_root_dir=str(self.folder),
            enable_progress_bar=bar,
            plugins=[*_listed(given.plugins), files.AtomicCheckpointIO()],
            callbacks=[*_listed(given.callbacks), *([] if given.fast_dev_run else kept), progress],
            logger=[
                files.MetricsCsv(self.folder, steps),
                files.TensorBoardEvents(self.folder, steps),
                *(logger for logger in _listed(given.logger) if isinstance(logger, Logger)),
                *open_trackers(self.config.tracker, self.folder, self.settings()),
            ],
            **kwargs,
        )
        if given.sync_batchnorm and trainer.world_size > 1 and trainer.strategy.root_device.type == "cpu":
            raise ValueError("--trainer.sync_batchnorm must be false on CPUs: torch has it for GPUs only")
        return trainer

    def settings(self) -> str:
        """Return the text of ``config.yaml``."""
        settings = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        for name in _THIS_CALL_ONLY:
            settings.pop(name, None)
        return f"# linvit {__version__}: all settings of this run\n{yaml.safe_dump(settings, sort_keys=False)}"


def _recipes_found(argv: Sequence[str]) -> list[str]:
    """Return the arguments with each recipe that ``--config`` names replaced by its file."""
    found = list(argv)
    for i, argument in enumerate(found):
        flag, equals, name = argument.partition("=")
        if flag not in ("--config", "-c"):
            continue
        name = name if equals else "".join(found[i + 1 : i + 2])
        if name.startswith("studies/"):
            raise ValueError(f"{name} is a study: linvit study {name.removeprefix('studies/')}")
        if equals:
            found[i] = f"{flag}={recipes.find(name)}"
        elif name:
            found[i + 1] = str(recipes.find(name))
    return found


def _fit(cli: TrainCLI) -> float:
    """Train; return the seconds that took."""
    if getattr(rank_zero_only, "rank", 0) == 0:
        files.write_text(cli.folder / files.CONFIG, cli.settings())
        if cli.is_demo:
            print(
                "no --data.root, --model.name or --config: embedded digits, trained as by --config demo",
                file=sys.stderr,
            )
        parameters = sum(parameter.numel() for parameter in cli.model.kept().parameters())
        classes = len(cli.datamodule.classes)
        print(
            f"{cli.title}, {parameters / 1e6:.1f} M parameters, {classes or 'no'} classes, "
            f"on {cli.trainer.strategy.root_device}, {cli.trainer.precision}: {cli.folder}",
            file=sys.stderr,
        )
    warn_of_slow_bfloat16(cli.trainer)
    begin = time.perf_counter()
    try:
        with cli.checkpoint.catching_interrupts():
            cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=str(cli.last) if cli.last else None)
    except (Exception, SystemExit) as error:  # Lightning exits on signals, and loading processes may die of them
        if cli.last and files.was_restoring(error):
            raise ValueError(f"{cli.last} does not fit this run, or is damaged: {first_line(error)}") from error
        if cli.checkpoint.interrupted:
            raise KeyboardInterrupt(f"interrupted; go on with: linvit train --resume {cli.folder}") from error
        raise
    return time.perf_counter() - begin


def _checked_classes(data: Any) -> int:
    """Count the classes, after the data were looked through: what is wrong with them comes before all else."""
    data.setup("fit")
    return data.num_classes


def _report(cli: TrainCLI, seconds: float) -> None:
    """Draw the curves and print the result: only that goes to standard output."""
    metrics = cli.folder / files.METRICS
    if metrics.is_file():
        with saving(cli.folder / files.CURVES):
            plot_curves(metrics, cli.folder / files.CURVES, _shares(cli.model))
    best, watch = cli.keeper.best, cli.model.stopwatch
    last = cli.trainer.callback_metrics.get("train/loss")
    if last is not None and not last.isfinite():
        warnings.warn("the loss is no longer finite: the training diverged; lower --model.lr", stacklevel=2)
    if count := cli.skipping.skipped:
        were = "update was skipped: its" if count == 1 else "updates were skipped: their"
        warnings.warn(f"{count} {were} gradients were not finite", stacklevel=2)
    result = {
        "run": str(cli.folder),
        "model": cli.title,
        "epochs": cli.trainer.current_epoch,
        "best_epoch": best.get("epoch"),
        **{name: best.get(name) for name in cli.model.metrics},
        "images_per_second": round(watch.images / watch.seconds, 2) if watch.images else None,
        "seconds": round(seconds, 2),
        "skipped_updates": cli.skipping.skipped,
        "unreadable": list(cli.model.unreadable),
    }
    if cli.config.json:
        print_json(result)
        return
    row = {
        **{heading: _metric(name, best.get(name)) for name, heading in cli.model.metrics.items()},
        "best epoch": f"{best['epoch']} of {result['epochs']}" if best else "-",
        "images/s": f"{result['images_per_second'] or 0:.1f}",
        "seconds": f"{seconds:.0f}",
    }
    if len(row) > MOST_IN_A_ROW:
        print_facts(row)
    else:
        print_rows([row])
    print(f"run folder: {cli.folder}")


def _shares(task: Any) -> dict[str, str]:
    return {name: heading for name, heading in task.metrics.items() if name != "loss"}


def _metric(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if name == "loss" else f"{value:.2%}"


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """Silence what Lightning says to programmers; let linvit speak to the standard error stream."""
    ours, handler = logging.getLogger("linvit"), logging.StreamHandler()
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PossibleUserWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        for message in _NOISE:
            warnings.filterwarnings("ignore", message)
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        ours.addHandler(handler)
        ours.setLevel(logging.INFO)
        try:
            yield
        finally:
            ours.removeHandler(handler)
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]
