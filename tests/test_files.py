"""Files that are written: whole or not at all, and what is in the way is named before anything takes long."""

from pathlib import Path

import pytest

from linvit.files import atomic_write, check_output
from tests.conftest import file_limit


def test_an_error_names_the_file_that_was_asked_for(tmp_path: Path) -> None:
    for path in (tmp_path / "gone" / "a.csv", tmp_path):
        with pytest.raises((FileNotFoundError, IsADirectoryError)) as caught, atomic_write(path) as temporary:
            temporary.write_text("x")
        assert caught.value.filename == str(path)
    assert not list(tmp_path.iterdir())
    assert not list(tmp_path.parent.glob(".*part"))


def test_what_is_in_the_way_is_named_and_nothing_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for path in ("file", "new", "a/b/c.csv"):
        check_output(tmp_path / path)
    check_output(tmp_path / "a" / "b", folder=True)
    check_output(None)
    with pytest.raises(IsADirectoryError, match="it is a folder, and a file is meant"):
        check_output(tmp_path)
    for path, folder in (("file", True), ("file/x", True), ("file/x/y", False)):
        with pytest.raises(NotADirectoryError, match=r"cannot write into .*: .*/file is a file"):
            check_output(tmp_path / path, folder)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(PermissionError, match="may not be written into"):
        check_output(tmp_path / "new" / "a.csv")
    monkeypatch.chdir(tmp_path)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "command",
    [
        ["predict", "RUN", "mnist5k", "--csv", "FILE/a"],
        ["predict", "RUN", "mnist5k", "--csv", "FOLDER"],
        ["predict", "RUN", "mnist5k", "--save", "FILE"],
        ["predict", "RUN", "mnist5k", "--grid", "FOLDER"],
        ["eval", "RUN", "mnist5k", "--confusion", "FILE/a"],
        ["eval", "RUN", "mnist5k", "--per-class", "FOLDER"],
        ["eval", "RUN", "mnist5k", "--against", "RUN2", "--chart", "FOLDER"],
        ["export", "RUN", "--to", "torch", "--out", "FILE/a"],
        ["inspect", "RUN", "mnist5k", "--out", "FILE"],
        ["bench", "RUN", "--out", "FILE"],
        ["card", "RUN", "--out", "FOLDER", "--force"],
        ["study", "mechanism_deit", "--out", "FILE"],
    ],
)
def test_every_command_looks_first(linvit_command, run_folder: Path, tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "file").touch()
    given = {"RUN": run_folder, "FILE": tmp_path / "file", "FOLDER": tmp_path}
    words = [given.get(word, word.replace("FILE", str(tmp_path / "file"))) for word in command]
    said = linvit_command(*words)
    assert said.code == 2
    assert said.err.startswith("linvit: error: cannot write")
    assert said.err.count("\n") == 1
    assert said.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "command",
    [
        ["predict", "RUN", "mnist5k", "--csv", "OUT/found.csv"],
        ["predict", "RUN", "mnist5k", "--save", "OUT"],
        ["predict", "RUN", "mnist5k", "--grid", "OUT/grid.png"],
        ["eval", "RUN", "PHOTOS", "--confusion", "OUT/confusion.png", "--workers", "0"],
        ["eval", "RUN", "PHOTOS", "--per-class", "OUT/classes.csv", "--workers", "0"],
        ["export", "RUN", "--to", "torch", "--out", "OUT/model.pt2", "--images", "PHOTOS/val/ant"],
        ["export", "RUN", "--to", "onnx", "--out", "OUT/model.onnx", "--images", "PHOTOS/val/ant"],
        ["inspect", "RUN", "PHOTOS/val/ant/0.png", "--out", "OUT"],
        ["bench", "RUN", "--img-size", "32", "--rounds", "1", "--warmup", "0", "--no-memory", "--out", "OUT"],
        ["card", "RUN", "--out", "OUT/card.md"],
    ],
)
def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(
    linvit_command, run_folder: Path, photos: Path, tmp_path: Path, command: list[str]
) -> None:
    for number, word in enumerate(command):
        for name, path in (("RUN", run_folder), ("PHOTOS", photos), ("OUT", tmp_path)):
            command[number] = command[number].replace(name, str(path)) if word.startswith(name) else command[number]
    with file_limit(20):
        said = linvit_command(*command)
    assert said.code == 2, said.err
    lines = [line for line in said.err.splitlines() if not line.startswith("linvit: passed over")]
    assert len(lines) == 1
    assert "no space left to write" in lines[0] or "File too large" in lines[0] or "cannot write" in lines[0], lines
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


PREDICTOR = "linvit.inference.classification.ClassificationPredictor"


def interrupted(*args: object, **kwargs: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("command", "where"),
    [
        (["predict", "RUN", "mnist5k", "--csv", "OUT/a.csv"], f"{PREDICTOR}.predict_batch"),
        (["predict", "RUN", "mnist5k", "--save", "OUT"], "linvit.cli.predict.save_picture"),
        (["eval", "RUN", "PHOTOS", "--per-class", "OUT/a.csv", "--workers", "0"], f"{PREDICTOR}.outputs"),
        (["export", "RUN", "--to", "torch", "--out", "OUT/m.pt2"], "linvit.deploy.export.compare"),
        (["inspect", "RUN", "PHOTOS/val/ant/0.png", "--out", "OUT"], "linvit.analysis.figures.draw_layers"),
    ],
)
def test_ctrl_c_leaves_nothing_half_written(
    linvit_command, run_folder: Path, photos: Path, tmp_path: Path, monkeypatch, command: list[str], where: str
) -> None:
    given = {"RUN": str(run_folder), "PHOTOS": str(photos), "OUT": str(tmp_path / "out")}
    monkeypatch.setattr(where, interrupted)
    for name, path in given.items():
        command = [path + word.removeprefix(name) if word.startswith(name) else word for word in command]
    said = linvit_command(*command)
    assert said.code == 130
    assert said.err == "\nlinvit: interrupted\n"
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert all(path.suffix in (".png", ".svg") and path.stat().st_size > 1000 for path in left), left
