"""Runs the cells of a study as ordinary training runs, several at once, and goes on after any stop.

A study's folder holds ``record.json`` (see :mod:`linvit.bench.records`), ``settings/ARM.yaml`` (what ``linvit train``
is given), ``runs/ARM-SEED`` (ordinary run folders) and ``logs/ARM-SEED.txt`` (what each run said).
"""

import csv
import json
import os
import queue
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml

from linvit.bench.process import run_command
from linvit.bench.records import Record
from linvit.catalogue import count_macs
from linvit.checkpoints import load_model
from linvit.data.loading import cores
from linvit.files import atomic_write
from linvit.studies.study import Study, cells, changed

try:
    import fcntl
except ImportError:  # Windows has none: there, two calls on one folder are not kept apart
    fcntl = None  # type: ignore[assignment]

__all__ = ["RECORD", "run_study"]

RECORD = "record.json"
INTERRUPTED = 130
BEGUN = "begun"


def run_study(
    study: Study,
    out: Path,
    arms: Sequence[str] | None = None,
    jobs: int | None = None,
    threads: int = 1,
    tell: Callable[[str], None] = print,
) -> Record:
    """Train what is not trained yet, and return the record of all.

    Args:
        study: The study.
        out: Its folder.
        arms: Arms to train; None for all.
        jobs: Runs at once; None for one on each GPU, or else one for every ``threads`` cores.
        threads: Threads of each run on a CPU.
        tell: Is given a line when a cell is done, with the time left.

    Raises:
        ValueError: An arm does not exist, the folder holds another study, or runs failed; the message names them.
        KeyboardInterrupt: Ctrl-C; the same call goes on.
    """
    if unknown := [arm for arm in arms or () if arm not in study.arms]:
        raise ValueError(f"--arms: {study.name} has no arm {unknown[0]!r}; there are {', '.join(study.arms)}")
    for place in ("settings", "runs", "logs"):
        (out / place).mkdir(parents=True, exist_ok=True)
    with _locked(out / ".lock", f"another call works on {out}; wait for its end, or give another --out"):
        record = Record.resume(out / RECORD, study.purpose, _facts(study))
        _check_arms(study, out, record)
        record.write()
        todo = [cell for cell in cells(study, arms) if record.get(arm=cell[0], seed=cell[1]) is None]
        if study.bench:
            _measure(study, record, [arm for arm, _ in todo], tell)
        elif todo:
            _train(study, out, record, todo, jobs, threads, tell)
        record.cells.sort(key=lambda cell: (list(study.arms).index(cell.of["arm"]), cell.of["seed"]))
        record.write()
    return record


def _facts(study: Study) -> dict[str, Any]:
    """Return what measurements of one record must have in common. Where the data lie is nobody's concern."""
    facts = asdict(study)
    for name in ("purpose", "seeds", "arms", "compare"):
        facts.pop(name)
    if root := (study.base.get("data") or {}).get("root"):
        facts["base"] = changed(study.base, {"data.root": Path(str(root)).name})
    return facts


def _check_arms(study: Study, out: Path, record: Record) -> None:
    """Raise a ValueError if an arm that was measured has other settings now; new arms may join."""
    for arm in study.arms:
        file = out / "settings" / f"{_slug(arm)}.yaml"
        if "time" in study.equal or not file.is_file() or not any(record.select(arm=arm)):
            continue
        was, now = yaml.safe_load(file.read_text()), study.settings(arm)
        if changed(was, {"data.root": None}) != changed(now, {"data.root": None}):
            raise ValueError(f"{arm} was measured with the settings in {file}, others now: give --out, or a new name")


def _train(
    study: Study,
    out: Path,
    record: Record,
    todo: list[tuple[str, int]],
    jobs: int | None,
    threads: int,
    tell: Callable[[str], None],
) -> None:
    settings = {arm: study.settings(arm) for arm in dict.fromkeys(arm for arm, _ in todo)}
    if "time" in study.equal:
        settings = _timed(study, settings, out, threads)
    for arm, values in settings.items():
        with atomic_write(out / "settings" / f"{_slug(arm)}.yaml") as temporary:
            temporary.write_text(yaml.safe_dump(values, sort_keys=False))
    gpus = torch.cuda.device_count()
    jobs = jobs or gpus or max(1, cores() // threads)
    places: queue.SimpleQueue[int] = queue.SimpleQueue()  # which GPU a run takes
    for place in range(jobs):
        places.put(place % gpus if gpus else -1)
    begin, failed, stop = time.monotonic(), {}, threading.Event()

    def work(arm: str, seed: int) -> dict[str, Any]:
        place = places.get()
        try:
            if stop.is_set():
                raise KeyboardInterrupt
            return _cell(study, out, arm, seed, threads, place)
        finally:
            places.put(place)

    with ThreadPoolExecutor(jobs) as pool:
        waiting: dict[Future[dict[str, Any]], tuple[str, int]] = {pool.submit(work, *cell): cell for cell in todo}
        try:
            done = 0
            while waiting:
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    arm, seed = waiting.pop(future)
                    done += 1
                    try:
                        raw = future.result()
                    except subprocess.CalledProcessError as error:
                        failed[f"{arm}, seed {seed}"] = str(error.stderr)
                        tell(f"{arm}, seed {seed}: failed: {error.stderr}")
                        continue
                    record.add({"arm": arm, "seed": seed}, raw)
                    left = (time.monotonic() - begin) / done * len(waiting)
                    tell(
                        f"{arm}, seed {seed}: {study.metric} {raw['values'][-1]:.4g}; {done} of {len(todo)} runs, "
                        + (
                            f"about {_duration(left)} left"
                            if waiting
                            else f"{_duration(time.monotonic() - begin)} in all"
                        )
                    )
        except BaseException:
            stop.set()  # runs that have begun get the terminal's Ctrl-C by themselves, and save what they have
            raise
    if failed:
        name, why = next(iter(failed.items()))
        raise ValueError(f"{len(failed)} of {len(todo)} runs failed; {name}: {why}")


def _cell(study: Study, out: Path, arm: str, seed: int, threads: int, gpu: int) -> dict[str, Any]:
    """Train one cell, or what is left of it, and return what it gave."""
    name = f"{_slug(arm)}-{seed}"
    folder, log = out / "runs" / name, out / "logs" / f"{name}.txt"
    with _locked(log.with_suffix(".lock")) as lock:  # a run whose call was killed goes on by itself: wait for its end
        if (folder / "config.yaml").is_file():
            arguments = ["--resume", str(folder)]
        else:
            arguments = ["--config", str(out / "settings" / f"{_slug(arm)}.yaml"), "--out", str(folder)]
            arguments += ["--seed_everything", str(seed)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        if gpu >= 0:
            environment["CUDA_VISIBLE_DEVICES"] = str(gpu)
        _linvit(["train", *arguments], log, environment, lock)
        evaluations = {}
        for options in study.evaluate:
            given = [f"--{key}={value}" for key, value in options.items()]
            data = (study.base.get("data") or {}).get("root") or "mnist5k"
            said = _linvit(["eval", str(folder), str(data), *given, "--json"], log, environment, lock)
            found = json.loads(said)
            # Where run and data lie is nobody's concern.
            evaluations[" ".join(given)] = {key: found[key] for key in found if key not in ("model", "data")}
    raw = _result(folder, study.metric) | {"processor_seconds": _spent(log)}
    return raw | ({"evaluations": evaluations} if evaluations else {})


def _spent(log: Path) -> float | None:
    """Return the processor seconds of all commands of a log; None where one was not seen to its end."""
    lines = log.with_suffix(".seconds").read_text().split()
    begun = lines.count(BEGUN)
    return sum(float(line) for line in lines if line != BEGUN) if 2 * begun == len(lines) else None


def _linvit(arguments: list[str], log: Path, environment: dict[str, str], lock: int | None) -> str:
    """Run a command; what it prints is returned, what it says goes into the log, its processor time beside that.

    Raises:
        CalledProcessError: It failed; its ``stderr`` is the last line that it said.
        KeyboardInterrupt: It was interrupted.
    """
    command = [sys.executable, "-m", "linvit", *arguments]
    keep = () if lock is None else (lock,)  # the lock is held for as long as the run lives, whatever becomes of us
    with log.open("a") as said, log.with_suffix(".seconds").open("a", buffering=1) as seconds:
        print(BEGUN, file=seconds)
        returncode, printed, spent = run_command(command, stderr=said, env=environment, pass_fds=keep)
        if spent is not None:
            print(spent, file=seconds)
    if returncode == INTERRUPTED:
        raise KeyboardInterrupt("interrupted; the same command goes on")
    if returncode:
        lines = log.read_text().strip().splitlines() or ["it said nothing"]
        raise subprocess.CalledProcessError(returncode, command, stderr=lines[-1])
    return printed


def _result(folder: Path, metric: str) -> dict[str, Any]:
    """Read what a run gave: the metric by update, its size and cost, and its speed."""
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    validated = [row for row in rows if row.get(f"val/{metric}")]
    if not validated:
        raise ValueError(f"{folder} has no val/{metric}: metric must be one that the task logs")
    rates = [float(row["train/images_per_second"]) for row in rows if row.get("train/images_per_second")]
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    model = load_model(folder)
    size = settings["data"].get("img_size")
    return {
        "steps": [int(row["step"]) + 1 for row in validated],
        "values": [float(row[f"val/{metric}"]) for row in validated],
        "images_per_second": sum(rates) / len(rates) if rates else None,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "macs": count_macs(model, (3, size, size)) if size else None,
        "model": settings["model"],
    }


def _timed(study: Study, settings: dict[str, dict[str, Any]], out: Path, threads: int) -> dict[str, dict[str, Any]]:
    """Give each arm the epochs that fit into the time of the first one's, by the speed of a short run of each."""
    speeds: dict[str, float] = {}
    kept = out / "settings" / "speeds.json"
    if kept.is_file():
        speeds = json.loads(kept.read_text())
    first = next(iter(study.arms))
    for arm in dict.fromkeys([first, *settings]):
        if arm in speeds:
            continue
        file = out / "settings" / "probe.yaml"
        file.write_text(yaml.safe_dump(study.settings(arm)))
        probe = out / "logs" / f"probe-{_slug(arm)}-{time.time_ns()}"
        short = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=40", "--trainer.limit_val_batches=1"]
        arguments = ["train", "--config", str(file), "--out", str(probe), *short, "--json"]
        said = _linvit(arguments, out / "logs" / "probe.txt", {**os.environ, "OMP_NUM_THREADS": str(threads)}, None)
        speeds[arm] = json.loads(said)["images_per_second"]
        with atomic_write(kept) as temporary:
            temporary.write_text(json.dumps(speeds, indent=1))
    epochs = study.base["trainer"]["max_epochs"]
    return {
        arm: changed(own, {"trainer.max_epochs": max(1, round(epochs * speeds[arm] / speeds[first]))})
        for arm, own in settings.items()
    }


def _measure(study: Study, record: Record, arms: Sequence[str], tell: Callable[[str], None]) -> None:
    """Measure speeds, one arm after the other: beside others none would be true."""
    for arm in arms:
        command = [sys.executable, "-m", "linvit", "bench", *study.bench[arm].split(), "--json"]
        with tempfile.TemporaryFile("w+") as said:
            returncode, printed, spent = run_command(command, stderr=said)
            said.seek(0)
            if returncode:
                raise ValueError(f"{arm}: {(said.read().strip().splitlines() or ['it said nothing'])[-1]}")
        record.add({"arm": arm, "seed": study.seeds[0]}, json.loads(printed) | {"processor_seconds": spent})
        tell(f"{arm}: measured")


@contextmanager
def _locked(path: Path, refusal: str | None = None):
    """Hold a lock on a file; yield its descriptor, for a child to hold it, too.

    Raises:
        ValueError: Somebody else holds it, and there is a refusal; without one, wait.
    """
    if fcntl is None:
        yield None
        return
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if refusal else 0))
        except BlockingIOError as error:
            raise ValueError(refusal) from error
        yield file.fileno()


def _slug(arm: str) -> str:
    return re.sub(r"[^\w.=-]+", "_", arm)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
