"""A study: what its file must say, what is equal, which runs are left, and what its differences are called."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from linvit import recipes
from linvit.bench.records import Record
from linvit.studies.report import difference
from linvit.studies.run import RECORD, run_study
from linvit.studies.study import cells, changed, read_study

TINY = {"depths": [1, 1, 1, 1], "dims": [4, 4, 8, 16], "head_dims": [None, None, 4, 4], "layer_scale_init_value": 0.5}
SMALL = {
    "metric": "top1",
    "seeds": [0, 1],
    "base": {
        "model": {"name": "care_s0", "model_args": TINY},
        "data": {"img_size": 32, "batch_size": 16, "workers": 0},
        "trainer": {"max_epochs": 1, "limit_train_batches": 2, "limit_val_batches": 2, "accelerator": "cpu"},
    },
    "arms": {"low": {"model.lr": 1e-4}, "high": {"model.lr": 1e-2}},
}
STUDIES = recipes.list_recipes("studies/*")


def write(folder: Path, **changes) -> Path:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(SMALL | changes, sort_keys=False))
    return path


def test_arms_change_the_settings_that_all_share(tmp_path):
    study = read_study(write(tmp_path), {"trainer.max_epochs": 3})
    settings = study.settings("high")
    assert settings["model"] == {"name": "care_s0", "model_args": TINY, "lr": 1e-2}
    assert settings["trainer"]["max_epochs"] == 3
    assert "lr" not in study.base["model"], "an arm changes its own copy"
    assert list(cells(study)) == [("low", 0), ("high", 0), ("low", 1), ("high", 1)]
    assert study.compare == (("high", "low"),)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"arms": {}}, "arms must be changes by arm"),
        ({"arms": {"a": {"lr": 1}}}, "arms must be changes by arm"),
        ({"seeds": ["one"]}, "seeds must be numbers, not"),
        ({"equal": ["luck"]}, "equal must be of updates, parameters, macs, time, not"),
        ({"compare": [["low", "no"]]}, "compare must be pairs of the arms low, high, not"),
        ({"arm": {}}, "'arm' is not known; did you mean arms"),
        (
            {"arms": {"a": {}, "b": {"data.batch_size": 8}}},
            "updates are to be equal, and the arm 'b' changes data.batch",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(tmp_path, changes, line):
    with pytest.raises(ValueError, match=r"mine\.yaml: ") as error:
        read_study(write(tmp_path, **changes))
    assert line in str(error.value)


def test_unknown_study_names_those_there_are():
    with pytest.raises(ValueError, match="neither a file nor the name of a study; did you mean mechanism_"):
        read_study("mechanisms")


def test_parameters_are_brought_within_one_per_cent(tmp_path):
    arms = {"narrow": {}, "deep": {"model.model_args.depths": [1, 1, 2, 1]}}
    fit = {"model.model_args.dims": [[4, 4, 8, width] for width in (8, 12, 16)]}
    unequal = read_study(write(tmp_path, arms=arms, equal=["parameters"]))
    with pytest.raises(ValueError, match=r"deep has [\d,]+ parameters at best, which is not within 1 % of"):
        unequal.settings("deep")
    study = read_study(write(tmp_path, arms={"narrow": {}, "same": {"model.lr": 1e-4}}, equal=["parameters"], fit=fit))
    assert study.settings("same")["model"]["model_args"]["dims"] == [4, 4, 8, 16]


def test_cost_is_brought_within_one_per_cent(tmp_path):
    arms = {"narrow": {}, "stacked": {"model.model_args.mixing": "stacked"}}
    unequal = read_study(write(tmp_path, arms=arms, equal=["macs"]))
    with pytest.raises(ValueError, match=r"stacked has [\d,]+ macs at best, which is not within 1 % of"):
        unequal.settings("stacked")
    fit = {"model.model_args.drop_path_rate": [0.0, 0.1]}
    study = read_study(write(tmp_path, arms={"a": {}, "b": {"model.lr": 1e-4}}, equal=["macs"], fit=fit))
    assert study.settings("b")["model"]["lr"] == 1e-4


@pytest.mark.parametrize("recipe", STUDIES, ids=lambda recipe: recipe.name)
def test_arms_of_the_packaged_studies_are_what_linvit_train_takes(recipe, tmp_path, linvit_command):
    study = read_study(recipe.name)
    for arm in list(study.arms)[:: max(1, len(study.arms) - 1)]:  # the first and the last
        if study.bench:
            continue
        (tmp_path / "arm.yaml").write_text(yaml.safe_dump(study.settings(arm), sort_keys=False))
        said = linvit_command("train", "--config", tmp_path / "arm.yaml", "--print_config")
        assert said.code == 0, f"{arm}: {said.err}"


def test_differences_come_with_an_interval_or_are_called_none():
    clear = difference("a", "b", [(0.53, 0.50), (0.54, 0.51), (0.55, 0.515)])
    assert clear.differ
    assert clear.mean == pytest.approx(0.0317, abs=1e-4)
    # Student's t of three pairs: 4.303 standard errors
    assert clear.interval == pytest.approx((0.0245, 0.0388), abs=1e-4)
    noisy = difference("a", "b", [(0.53, 0.50), (0.50, 0.52), (0.55, 0.53)])
    assert not noisy.differ
    assert "no difference" in noisy.words()
    assert "too few to tell" in difference("a", "b", [(0.5, 0.4)]).words()
    same = difference("a", "b", [(0.5, 0.5), (0.6, 0.6)])
    assert not same.differ
    with pytest.raises(ValueError, match="no seed in common"):
        difference("a", "b", [])


def test_settings_are_named_with_dots():
    assert changed({"a": {"b": 1}}, {"a.c.d": 2, "e": 3}) == {"a": {"b": 1, "c": {"d": 2}}, "e": 3}


@pytest.mark.xdist_group("study")
def test_a_study_trains_its_arms_once_and_says_what_came_out(tmp_path, linvit_command, monkeypatch):
    file = write(tmp_path, seeds=[0])
    out = tmp_path / "out"
    said = linvit_command("study", file, "--out", out, "--jobs", "1", "--json")
    assert said.code == 0, said.err
    assert [row["arm"] for row in said.json["rows"]] == ["low", "high"]
    assert said.json["rows"][0]["updates"] == "2"
    assert "of 2 runs" in said.err
    record = Record.read(out / RECORD)
    assert {(cell.of["arm"], cell.of["seed"]) for cell in record.cells} == {("low", 0), ("high", 0)}
    assert record.cells[0].raw["parameters"] > 1000
    assert all(1 < cell.raw["processor_seconds"] < 600 for cell in record.cells)
    assert said.json["rows"][0]["processor time"].endswith(" min")
    assert (out / "chart.png").stat().st_size > 1000
    assert (out / "table.md").read_text().startswith("| arm | top1 |")
    assert (out / "runs" / "low-0" / "model.safetensors").is_file()

    monkeypatch.setattr("linvit.studies.run.run_command", lambda *args, **kwargs: pytest.fail("trained again"))
    again = linvit_command("study", file, "--out", out, "--json")
    assert again.json["rows"] == said.json["rows"]
    other = linvit_command("study", file, "--out", out, "--trainer.max_epochs", "2")
    assert other.code == 2
    assert "was measured with base" in other.err

    asked = linvit_command("study", write(tmp_path, seeds=[0], compare=[["low", "high"]]), "--out", out, "--json")
    assert asked.json["rows"] == said.json["rows"], "what is compared changes nothing that was trained"
    arms = SMALL["arms"] | {"high": {"model.lr": 1e-1}}
    changed_arm = linvit_command("study", write(tmp_path, seeds=[0], arms=arms), "--out", out)
    assert changed_arm.code == 2
    assert "high was measured with the settings in" in changed_arm.err


def test_a_study_of_speed_measures_each_arm_once(tmp_path, monkeypatch):
    path = tmp_path / "speed.yaml"
    path.write_text(yaml.safe_dump({"bench": {"a": "care_s0", "b": "care_s1"}}))
    asked: list[str] = []

    def bench(command: list[str], **_: object) -> tuple[int, str, float]:
        asked.append(command[4])
        return 0, "{}", 1.0

    monkeypatch.setattr("linvit.studies.run.run_command", bench)
    for _ in range(2):
        run_study(read_study(path), tmp_path / "out", tell=lambda line: None)
    assert asked == ["care_s0", "care_s1"]


@pytest.mark.slow
def test_killed_study_goes_on(tmp_path):
    file = write(tmp_path, seeds=[0], base=changed(SMALL["base"], {"trainer.max_epochs": 3, "checkpoint.steps": 1}))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "linvit", "study", str(file), "--out", str(out), "--jobs", "1", "--json"]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not (out / "runs" / "low-0" / "last.ckpt").is_file() and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(first.pid, signal.SIGKILL)  # the run itself goes on, and the next call waits for its end
    first.wait()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert [row["n"] for row in rows] == ["1", "1"]
    metrics = (out / "runs" / "low-0" / "metrics.csv").read_text().splitlines()
    assert sum(line.startswith("0,") for line in metrics) <= 2, "no epoch was trained twice"


@pytest.mark.slow
def test_equal_time_gives_slower_arms_fewer_epochs(tmp_path):
    arms = {"small": {}, "large": {"model.model_args.depths": [4, 8, 8, 4]}}
    file = write(tmp_path, seeds=[0], arms=arms, equal=["time"], base=changed(SMALL["base"], {"trainer.max_epochs": 6}))
    command = [sys.executable, "-m", "linvit", "study", str(file), "--out", str(tmp_path / "out"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    small, large = json.loads(done.stdout)["rows"]
    assert int(large["updates"]) < int(small["updates"])
