"""The run folder: when it may be used, and that what is in it is always whole."""

import csv
import errno
import os
import signal
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch

from linvit.files import saving
from linvit.tasks.run_folder import (
    LAST,
    METRICS,
    PREVIOUS,
    AtomicCheckpointIO,
    MetricsCsv,
    check_resumable,
    claim,
    hold,
    newest_checkpoint,
    release,
    steps_done,
)
from tests.conftest import file_limit


@contextmanager
def ordinary_user() -> Generator[None]:
    """Act without the super user's rights, to whom every folder is writable."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_new_folder_is_made_with_its_parents_and_left_empty(tmp_path: Path) -> None:
    claim(tmp_path / "runs" / "new")
    assert list((tmp_path / "runs" / "new").iterdir()) == []
    claim(tmp_path / "runs" / "new")


def test_two_trainings_do_not_share_a_folder(linvit_command, tmp_path: Path) -> None:
    ready, done = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        hold(tmp_path)
        grandchild = os.fork()  # as a process that loads images, which must not keep the folder
        if grandchild == 0:
            os.read(done[0], 1)
            os._exit(0)
        os.write(ready[1], b"x")
        os.read(done[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    said = linvit_command("train", "--out", tmp_path)
    assert said.code == 2
    assert said.err == (
        f"linvit: error: another training is at work in {tmp_path}: wait for it, or give another --out\n"
    )
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    try:
        hold(tmp_path)
    finally:
        release()
        os.write(done[1], b"xx")


@pytest.mark.parametrize("name", ["last.ckpt", "model.safetensors"])
def test_a_run_is_not_overwritten(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"holds a run already: continue it with --resume .*, or give another --out$"):
        claim(tmp_path)


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("not a folder")
    for folder in (tmp_path / "runs", tmp_path / "runs" / "one"):
        with pytest.raises(NotADirectoryError, match=f"cannot make the run folder {folder}: {tmp_path}/runs is a file"):
            claim(folder)


def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    for parent in list(tmp_path.parents)[:3]:  # pytest-of-USER, pytest-N and the worker
        parent.chmod(0o755)
    tmp_path.chmod(0o555)
    with ordinary_user():
        for folder in (tmp_path, tmp_path / "one"):
            with pytest.raises(PermissionError, match=f"cannot write into the run folder {folder}: Permission denied"):
                claim(folder)


def test_only_a_run_is_resumed(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no run to resume: it has no config\.yaml"):
        check_resumable(tmp_path)
    (tmp_path / "config.yaml").touch()
    check_resumable(tmp_path)


def test_a_full_disk_leaves_the_previous_checkpoint_alone(tmp_path: Path) -> None:
    files = AtomicCheckpointIO()
    files.save_checkpoint({"weights": torch.ones(4)}, tmp_path / LAST)
    message = r"no space left to write .*last\.ckpt \(file too large\); what was there before is unharmed"
    with file_limit(100_000), pytest.raises(OSError, match=message):
        files.save_checkpoint({"weights": torch.zeros(100_000)}, tmp_path / LAST)
    assert [path.name for path in tmp_path.iterdir()] == [LAST]
    assert torch.equal(files.load_checkpoint(tmp_path / LAST)["weights"], torch.ones(4))


def test_other_errors_of_the_disk_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Input/output error") as caught, saving(tmp_path / LAST):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    assert caught.value.errno == errno.EIO


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_a_checkpoint_runs_no_code_when_it_is_read(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "trap": Trap(tmp_path / "sprung")}, tmp_path / LAST)
    with pytest.raises(Exception, match=r"Weights only load failed"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / LAST, weights_only=False)
    assert not (tmp_path / "sprung").exists()


def read(folder: Path) -> list[dict[str, str]]:
    """Read ``metrics.csv``."""
    with (folder / METRICS).open(newline="") as file:
        return list(csv.DictReader(file))


def test_metrics_are_one_row_per_step_and_go_on_where_the_checkpoint_is(tmp_path: Path) -> None:
    first = MetricsCsv(tmp_path)
    for epoch, step in enumerate((9, 19, 29)):
        first.log_metrics({"epoch": epoch, "val/loss": 1.0 - epoch / 10}, step)
        first.save()
        first.log_metrics({"epoch": epoch, "train/loss": 2.0}, step)
    first.save()
    assert [row["step"] for row in read(tmp_path)] == ["9", "19", "29"]
    assert all(all(row.values()) for row in read(tmp_path))
    with (tmp_path / METRICS).open("a") as file:
        file.write("3,3")  # cut off by a crash

    second = MetricsCsv(tmp_path, steps=20)  # from the checkpoint of the second epoch, before its figures were complete
    second.log_metrics({"epoch": 1, "val/loss": 0.25}, 19)
    second.log_metrics({"epoch": 2, "lr": 0.5}, 25)
    second.finalize("success")
    rows = read(tmp_path)
    assert [row["step"] for row in rows] == ["9", "19", "25"]
    assert list(rows[0]) == ["epoch", "step", "lr", "train/loss", "val/loss"]
    assert rows[0]["val/loss"] == "1"
    assert rows[1] == {"epoch": "1", "step": "19", "lr": "", "train/loss": "2", "val/loss": "0.25"}

    third = MetricsCsv(tmp_path)
    third.finalize("failed")
    assert read(tmp_path) == rows, "one that logged nothing harms nothing"
    third.log_metrics({"lr": 1.0}, 0)
    third.save()
    assert [row["step"] for row in read(tmp_path)] == ["0"], "a new run begins anew"


def test_metrics_are_appended_not_written_anew(tmp_path: Path) -> None:
    metrics = MetricsCsv(tmp_path)
    metrics.log_metrics({"loss": 1.0}, 0)
    metrics.save()
    before = (tmp_path / METRICS).stat().st_ino, (tmp_path / METRICS).read_bytes()
    for step in range(1, 4):
        metrics.log_metrics({"loss": 2.0}, step)
        metrics.save()
    assert ((tmp_path / METRICS).stat().st_ino, (tmp_path / METRICS).read_bytes()[: len(before[1])]) == before


@pytest.mark.parametrize("damage", ["truncated", "one byte", "missing"])
def test_a_damaged_checkpoint_is_told_and_the_one_before_it_taken(tmp_path: Path, damage: str) -> None:
    files = AtomicCheckpointIO()
    for step in range(3):
        files.save_checkpoint({"global_step": step, "weights": torch.full((1000,), step)}, tmp_path / LAST)
    assert newest_checkpoint(tmp_path) == tmp_path / LAST
    content = bytearray((tmp_path / LAST).read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "missing":
        (tmp_path / LAST).unlink()
    else:
        (tmp_path / LAST).write_bytes(content if damage == "one byte" else content[: len(content) // 2])
    with nullcontext() if damage == "missing" else pytest.warns(UserWarning, match=r"last\.ckpt is damaged"):
        found = newest_checkpoint(tmp_path)
    assert found == tmp_path / PREVIOUS
    assert steps_done(found) == 1
    files.save_checkpoint({"global_step": 3}, tmp_path / LAST)
    assert [steps_done(tmp_path / name) for name in (LAST, PREVIOUS)] == [3, 1], "no damaged one took its place"


def test_only_damaged_checkpoints_are_an_error(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    for name in (LAST, PREVIOUS):
        (tmp_path / name).write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match=r"the checkpoints in .* are damaged: train anew"):
        newest_checkpoint(tmp_path)
