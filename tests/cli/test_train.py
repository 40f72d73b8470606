"""``linvit train`` from the command line to the run folder: what it leaves, resuming, Ctrl-C, bad input."""

import csv
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm.data
import torch
import yaml
from PIL import Image

from linvit.cli.main import main
from linvit.tasks import ClassificationTask
from linvit.tasks.callbacks import EpochLines
from tests.conftest import file_limit

TRAIN_IMAGES, VAL_IMAGES, BATCH = 24, 9, 8  # per class; images per batch: 6 updates per epoch
UPDATES = 2 * TRAIN_IMAGES // BATCH


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder of dark and light images."""
    root = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for part, count in (("train", TRAIN_IMAGES), ("val", VAL_IMAGES)):
        for level, name in enumerate(("dark", "light")):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                values = random.integers(0, 200, (32, 32, 3)) + 50 * level
                Image.fromarray(values.astype(np.uint8)).save(root / part / name / f"{number}.png")
    return root


def arguments(photos: Path, out: Path | None, epochs: int = 2, *more: str) -> list[str]:
    """Return the arguments of a short training."""
    settings = {
        "data.root": photos,
        "data.img_size": 32,
        "data.batch_size": BATCH,
        "data.workers": 0,
        "model.name": "test_efficientnet",
        "trainer.accelerator": "cpu",
        "trainer.max_epochs": epochs,
    }
    given = [f"--{name}={value}" for name, value in settings.items()]
    return ["train", *given, *([] if out is None else [f"--out={out}"]), *more]


ROUGH = ("--model.ema_decay=0.8", "--model.mixup=0.4", "--model.model_args={drop_path_rate: 0.2, drop_rate: 0.2}")
"""Everything that is random or kept between updates."""


def metrics(folder: Path) -> list[dict[str, str]]:
    """Read ``metrics.csv`` without the speed."""
    with (folder / "metrics.csv").open(newline="") as file:
        return [{key: row[key] for key in row if "per_second" not in key} for row in csv.DictReader(file)]


def checkpoint(folder: Path) -> dict[str, Any]:
    """Read ``last.ckpt``, which must not need unpickling."""
    return torch.load(folder / "last.ckpt", weights_only=True)


@pytest.fixture(scope="module")
def whole(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train three epochs without a break."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert main(arguments(photos, out, 3, *ROUGH)) == 0
    return out


def test_run_folder_holds_all_there_is_to_know(whole: Path) -> None:
    names = {path.name.split(".tfevents")[0] for path in whole.iterdir()}
    pictures = {"curves.png", "confusion_matrix.png"}
    texts = {"config.yaml", "config.json", "metrics.csv"}
    assert names == pictures | texts | {"last.ckpt", "previous.ckpt", "model.safetensors", "events.out"}
    rows = metrics(whole)
    assert [(row["epoch"], row["step"]) for row in rows] == [("0", "5"), ("1", "11"), ("2", "17")]
    assert all(all(row.values()) for row in rows)
    assert checkpoint(whole)["global_step"] == 3 * UPDATES
    described = json.loads((whole / "config.json").read_text())
    assert described["label_names"] == ["dark", "light"]
    best = max(rows, key=lambda row: (float(row["val/top1"]), -float(row["val/loss"])))
    assert described["metrics"]["epoch"] == int(best["epoch"]) + 1
    assert described["metrics"]["top1"] == pytest.approx(float(best["val/top1"]), rel=1e-4)


def test_kept_model_is_the_one_that_was_validated(whole: Path, photos: Path) -> None:
    model = timm.create_model(f"local-dir:{whole}", pretrained=True).eval()
    config = timm.data.resolve_model_data_config(model)
    assert config["input_size"] == (3, 32, 32)
    transform = timm.data.create_transform(**config)
    paths = [sorted((photos / "val" / name).iterdir()) for name in ("dark", "light")]
    target = torch.tensor([label for label, group in enumerate(paths) for _ in group])
    images: Any = [transform(Image.open(path)) for group in paths for path in group]
    with torch.no_grad():
        logits = model(torch.stack(images))
    expected = json.loads((whole / "config.json").read_text())["metrics"]
    assert float((logits.argmax(1) == target).float().mean()) == pytest.approx(expected["top1"])
    assert float(torch.nn.functional.cross_entropy(logits, target)) == pytest.approx(expected["loss"], rel=1e-4)


def test_config_of_a_run_repeats_it(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = tmp_path / "again"
    assert main(["train", "--config", str(whole / "config.yaml"), "--out", str(again), "--json"]) == 0
    said = capsys.readouterr()
    result = json.loads(said.out)
    assert metrics(again) == metrics(whole)
    assert (again / "config.yaml").read_text() == (whole / "config.yaml").read_text()
    assert result["run"] == str(again)
    assert result["epochs"] == 3
    assert result["top1"] == pytest.approx(float(metrics(again)[int(result["best_epoch"]) - 1]["val/top1"]), rel=1e-4)
    assert result["images_per_second"] > 0
    assert "epoch 3/3" in said.err


def test_printed_config_is_a_config(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments(photos, None, 7), "--model.lr=0.003", "--print_config"]) == 0
    printed = capsys.readouterr().out
    settings = yaml.safe_load(printed)
    assert settings["trainer"]["max_epochs"] == 7
    assert settings["model"]["lr"] == 0.003
    (tmp_path / "mine.yaml").write_text(printed)
    assert main(["train", "--config", str(tmp_path / "mine.yaml"), "--print_config"]) == 0
    assert capsys.readouterr().out == printed


def signal_once(
    monkeypatch: pytest.MonkeyPatch, owner: type, hook: str, on_call: int, number: int = signal.SIGINT
) -> None:
    """Send a signal, that of Ctrl-C by default, when a hook is called for the ``on_call``-th time."""
    original, calls = getattr(owner, hook), []

    def pressed(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        if len(calls) == on_call:
            signal.raise_signal(number)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(owner, hook, pressed)


def test_resumed_after_an_epoch_it_ends_as_if_it_had_not_stopped(
    whole: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        signal_once(patch, EpochLines, "on_train_epoch_end", 1)
        assert main(arguments(photos, out, 3, *ROUGH)) == 130
    assert capsys.readouterr().err.endswith(f"linvit: interrupted; go on with: linvit train --resume {out}\n")
    assert checkpoint(out)["global_step"] == UPDATES
    assert (out / "model.safetensors").is_file(), "what was validated can be used already"
    assert main(["train", "--resume", str(out)]) == 0
    same_run(out, whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_in_an_epoch_it_ends_as_if_it_had_not_stopped(
    whole: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        signal_once(patch, ClassificationTask, "training_step", UPDATES + 2, number)
        assert main(arguments(photos, out, 3, *ROUGH)) == 130
    assert checkpoint(out)["global_step"] == UPDATES + 2, "the batch under way was finished"
    assert main(["train", "--resume", str(out)]) == 0
    same_run(out, whole)


def train_in_two_processes(args: list[str]) -> None:
    """Run the command line in a process of its own: a fork of one whose libraries have threads can wait for ever."""
    two = ("--trainer.devices=2", "--trainer.strategy=ddp_fork")
    subprocess.run([sys.executable, "-m", "linvit.cli.main", *args, *two], check=True, timeout=300)


def same_run(ours: Path, theirs: Path) -> None:
    """Check that two runs logged the same figures and ended with the same weights."""
    assert metrics(ours) == metrics(theirs)
    mine, yours = checkpoint(ours), checkpoint(theirs)
    for part in ("state_dict", "current_model_state"):
        for name, value in yours[part].items():
            assert torch.equal(mine[part][name], value), name
    assert (ours / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()


def test_stopped_in_validation_it_validates_from_the_start(
    whole: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        signal_once(patch, ClassificationTask, "validation_step", 2)
        assert main(arguments(photos, out, 3, *ROUGH)) == 130
    saved = checkpoint(out)
    assert saved["global_step"] == UPDATES
    assert not (out / "model.safetensors").exists()
    assert main(["train", "--resume", str(out)]) == 0
    rows, expected = metrics(out), metrics(whole)
    assert rows[1:] == expected[1:]
    for name in ("step", "val/loss", "val/top1"):
        assert rows[0][name] == expected[0][name]


def test_resume_takes_new_settings_and_finished_runs(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(arguments(photos, out, 1)) == 0
    first = (out / "model.safetensors").read_bytes()
    capsys.readouterr()
    assert main(["train", "--resume", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["epochs"] == 1, "there was nothing left to do"
    assert (out / "model.safetensors").read_bytes() == first
    assert main(["train", "--resume", str(out), "--trainer.max_epochs=2", "--model.lr=0.01"]) == 0
    rows = metrics(out)
    assert [row["epoch"] for row in rows] == ["0", "1"]
    last = 1e-5 + 0.5 * (0.01 - 1e-5) * (1 + math.cos(math.pi * (2 * UPDATES - 1) / (2 * UPDATES)))
    assert float(rows[1]["lr"]) == pytest.approx(last, rel=1e-3), "the schedule is that of the new settings"
    assert yaml.safe_load((out / "config.yaml").read_text())["trainer"]["max_epochs"] == 2


def test_a_bare_folder_of_photos_is_enough(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(photos / "train", "my_photos")
    given = ["--model.name=test_efficientnet", "--data.img_size=32", "--data.workers=0", "--trainer.max_epochs=1"]
    assert main(["train", "--data.root", "my_photos", *given, "--trainer.accelerator=cpu", "--json"]) == 0
    said = capsys.readouterr()
    assert 0 <= json.loads(said.out)["top1"] <= 1
    assert "2 classes" in said.err
    assert "warning" not in said.err
    (run,) = Path("runs").iterdir()
    assert checkpoint(run)["global_step"] == 9, "38 images to learn from, in batches of 4"


def test_bfloat16_that_would_be_emulated_is_told(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    short = ("--trainer.precision=bf16-mixed", "--trainer.limit_train_batches=1", "--trainer.limit_val_batches=0")
    for able in (False, True):
        monkeypatch.setattr(
            torch.cpu, "get_capabilities", lambda able=able: {"architecture": "x86_64", "amx_bf16": able}
        )
        assert main(arguments(photos, tmp_path / str(able), 1, *short)) == 0
        assert ("no bfloat16 arithmetic" in capsys.readouterr().err) == (not able)


def test_learning_rate_follows_the_total_batch_and_says_so(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("--model.lr_batch=64", "--trainer.accumulate_grad_batches=2", "--model.warmup_epochs=0")
    constant = ("--model.min_lr=0.00025", "--trainer.limit_val_batches=0")
    assert main(arguments(photos, tmp_path / "run", 1, *given, *constant)) == 0
    assert "learning rate 0.00025 = 0.001 x 16 / 64 images per update\n" in capsys.readouterr().err
    assert float(metrics(tmp_path / "run")[0]["lr"]) == pytest.approx(0.00025)


def test_ctrl_c_at_the_terminal_leaves_a_run_to_resume(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    given = arguments(photos, out, 500, "--data.workers=1")
    process = subprocess.Popen(
        [sys.executable, "-m", "linvit.cli.main", *given],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert process.stderr is not None
    said = [process.stderr.readline() for _ in range(2)]
    assert "epoch 1/500" in said[1], said
    time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the loading processes too
    out_text, err_text = process.communicate(timeout=60)
    assert process.returncode == 130, err_text
    assert out_text == ""
    assert err_text.endswith(f"linvit: interrupted; go on with: linvit train --resume {out}\n")
    assert "Traceback" not in err_text
    assert "warning" not in "".join([*said, err_text])
    done = checkpoint(out)["global_step"]
    assert done >= UPDATES
    assert not list(out.glob(".*"))
    epochs = done // UPDATES + 1
    assert main(["train", "--resume", str(out), f"--trainer.max_epochs={epochs}", "--data.workers=0"]) == 0
    assert checkpoint(out)["global_step"] == epochs * UPDATES


def test_full_disk_stops_with_one_line_and_harms_nothing(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(arguments(photos, out, 1)) == 0
    before = (out / "last.ckpt").read_bytes()
    capsys.readouterr()
    with file_limit(1_000_000):  # more than the weights, less than the checkpoint
        assert main(["train", "--resume", str(out), "--trainer.max_epochs=2"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"linvit: error: no space left to write {out / 'last.ckpt'} (file too large); what was there before is unharmed"
    )
    assert (out / "last.ckpt").read_bytes() == before
    assert timm.create_model(f"local-dir:{out}", pretrained=True)
    assert not list(out.glob(".*"))
    assert main(["train", "--resume", str(out), "--trainer.max_epochs=2"]) == 0
    assert checkpoint(out)["global_step"] == 2 * UPDATES

    with file_limit(100_000):  # less than the weights
        assert main(arguments(photos, tmp_path / "new", 1)) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert line.startswith(f"linvit: error: no space left to write {tmp_path / 'new'}/")
    assert {path.name.split(".")[0] for path in (tmp_path / "new").iterdir()} == {"config", "events", "metrics"}


def test_unreadable_images_are_counted_at_the_end_and_strict_stops(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "photos"
    for path in photos.rglob("*.png"):
        copy = root / path.relative_to(photos)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    broken = [root / "train" / "dark" / "3.png", root / "val" / "light" / "0.png"]
    for path in broken:
        path.write_bytes(path.read_bytes()[:500])
    assert main([*arguments(root, tmp_path / "run", 2), "--json"]) == 0
    said = capsys.readouterr()
    warnings = [line for line in said.err.splitlines() if "warning" in line]
    assert len(warnings) == 1
    assert warnings[0].startswith("linvit: warning: 2 image files could not be read: ")
    assert all(str(path) in warnings[0] for path in broken)
    assert sorted(json.loads(said.out)["unreadable"]) == sorted(map(str, broken))

    assert main([*arguments(root, tmp_path / "strict", 2), "--strict", "--data.workers=1"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2, lines
    assert lines[1].startswith(f"linvit: error: cannot read image {root}/")


def test_without_validation_the_last_weights_are_kept(photos: Path, tmp_path: Path) -> None:
    assert main([*arguments(photos, tmp_path / "run", 1), "--trainer.limit_val_batches=0"]) == 0
    network = timm.create_model(f"local-dir:{tmp_path / 'run'}", pretrained=True)
    last = checkpoint(tmp_path / "run")["state_dict"]
    for name, value in network.state_dict().items():
        assert torch.equal(value, last[f"model.{name}"]), name


def test_alone_it_trains_care_on_the_embedded_digits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    short = ["--trainer.limit_train_batches=2", "--trainer.limit_val_batches=2", "--trainer.max_epochs=1"]
    small = ["--data.img_size=32", "--data.batch_size=8", "--data.workers=0", "--trainer.accelerator=cpu"]
    assert main(["train", *short, *small]) == 0
    said = capsys.readouterr()
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.startswith("care_s0-20")
    assert "top-1" in said.out
    assert f"run folder: runs/{run.name}" in said.out
    assert "warning" not in said.err
    assert "embedded digits, trained as by --config demo" in said.err
    described = json.loads((run / "config.json").read_text())
    assert described["architecture"] == "care_s0"
    assert described["label_names"] == [str(digit) for digit in range(10)]


def test_alone_it_does_what_the_demo_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--config", "demo", "--print_config"]) == 0
    demo = capsys.readouterr().out
    assert main(["train", "--print_config"]) == 0
    assert capsys.readouterr().out == demo
    assert main(["train", "--model.name=care_s1", "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["data"]["img_size"] == 224, "who names a model says all"


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (["--task=dance"], "--task 'dance' is not known; there is classify"),
        (["--model.lr=fast"], "--model.lr: Expected a float. Got value: fast"),
        (["--model.learning_rate=1"], "unrecognized arguments: --model.learning_rate=1 (see linvit train --help)"),
        (["--trainer.precision=8"], "--trainer.precision: Expected one of ["),
        (["--model.name=care_s9"], "unknown model 'care_s9'; did you mean care_s"),
        (["--config=gone.yaml"], "gone.yaml is neither a file nor the name of a recipe"),
        (["--resume"], "argument --resume: expected one argument"),
        (["--resume=gone"], "gone holds no run to resume: it has no config.yaml"),
        (["--data.root=gone"], "data folder gone does not exist"),
        (["--trainer.devices=2", "--trainer.sync_batchnorm=true"], "--trainer.sync_batchnorm must be false on CPUs"),
        (["--trainer.accelerator=hamster"], "You selected an invalid accelerator name"),
        (["--out=taken"], "cannot make the run folder taken: taken is a file"),
        (["--trainer.max_epochs=-1"], "the schedule needs an end: set trainer.max_epochs or trainer.max_steps"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    given: list[str],
    line: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken").write_text("a file")
    assert main([*arguments(photos, None), *given]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    (error,) = [each for each in said.err.splitlines() if not each.startswith("test_efficientnet, ")]
    assert error.startswith(f"linvit: error: {line}")
    assert not list(tmp_path.glob("runs/*/last.ckpt"))


def test_a_run_is_not_overwritten(whole: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (whole / "last.ckpt").read_bytes()
    assert main(arguments(photos, whole)) == 2
    assert f"continue it with --resume {whole}, or give another --out" in capsys.readouterr().err
    assert main(["train", "--resume", str(whole), "--out", "other"]) == 2
    assert "leave out --out" in capsys.readouterr().err
    assert (whole / "last.ckpt").read_bytes() == before


def test_nothing_is_left_where_nothing_could_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--data.root", str(tmp_path / "gone"), "--out", str(tmp_path / "run")]) == 2
    assert list(tmp_path.iterdir()) == []


def test_data_are_looked_through_before_anything_is_written(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(photos, tmp_path / "run", 1, "--data.batch_size=1000")) == 2
    assert "batch_size must be at most" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_a_model_refuses_is_one_line(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ("--model.name=vit_tiny_patch16_224", "--model.model_args={depth: 1, embed_dim: 24}")
    assert main(arguments(photos, tmp_path / "run", 1, *given)) == 2  # at 32 pixels instead of 224
    assert re.search(r"^linvit: error: Input height \(32\).*224", capsys.readouterr().err, re.MULTILINE)


def test_json_stands_alone_whatever_lightning_prints(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--json", "--trainer.enable_model_summary=true", "--trainer.limit_train_batches=1")
    assert main(arguments(photos, tmp_path / "run", 1, *more)) == 0
    assert json.loads(capsys.readouterr().out)["epochs"] == 1


def test_help_shows_examples_and_the_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    out = capsys.readouterr().out
    assert "examples:\n  linvit train " in out
    for flag in ("--model.ema_decay", "--data.root", "--trainer.max_epochs", "--resume", "--out", "--strict", "--json"):
        assert flag in out


def test_batches_of_one_image_are_refused_in_one_line_and_never_chosen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(9):
        folder = tmp_path / "few" / ("odd" if number % 2 else "even")
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (20 * number, 9, 9)).save(folder / f"{number}.png")
    given = [each for each in arguments(tmp_path / "few", tmp_path / "a", 1) if "batch_size" not in each]
    given = [each.replace("test_efficientnet", "care_s0") for each in given]
    small = "--model.model_args={depths: [1, 1, 1, 1], dims: [4, 4, 16, 32], layer_scale_init_value: 0.5}"
    assert main([*given, small, "--trainer.limit_train_batches=1"]) == 0
    capsys.readouterr()
    assert main([*given[:-1], f"--out={tmp_path / 'b'}", small, "--data.batch_size=1"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert "batch norm cannot learn from one image with a map of one pixel: raise --data.batch_size to 2" in line
