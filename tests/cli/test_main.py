"""The entry point: commands, errors in one line, exit codes."""

import subprocess
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch

import linvit
from linvit.cli import main as entry
from linvit.cli.main import main


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[list[str]], int]], None]:
    """Give a way to add a command ``try``."""

    def add(run: Callable[[list[str]], int]) -> None:
        module = types.ModuleType("try_command")
        module.run = run
        monkeypatch.setitem(sys.modules, "try_command", module)
        monkeypatch.setitem(entry.COMMANDS, "try", ("try_command", "fails"))

    return add


def raising(error: BaseException) -> Callable[[list[str]], int]:
    def run(argv: list[str]) -> int:
        raise error

    return run


def test_help_lists_the_commands_and_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for name in ("models", "train", "eval", "predict", "export"):
        assert f"\n  {name} " in out
    assert "example:\n  linvit train" in out


def test_no_command_is_an_error_with_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "usage: linvit COMMAND" in said.err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"linvit {linvit.__version__}\n"


def test_unknown_command_names_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("linvit: error: unknown command 'trian'; there are models, train, eval, predict, export")
    assert said.count("\n") == 1


def test_a_command_gets_its_arguments_and_gives_the_exit_code(command: Any) -> None:
    seen: list[list[str]] = []

    def run(argv: list[str]) -> int:
        seen.append(argv)
        return 7

    command(run)
    assert main(["try", "one", "--debug", "--two"]) == 7
    assert seen == [["one", "--two"]]


WORKER = 'Caught ValueError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File "x"\n'


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("size must be\n  at least 1"), "size must be at least 1"),
        (FileNotFoundError(2, "No such file or directory", "a.png"), "a.png: No such file or directory"),
        (PermissionError("cannot write into runs"), "cannot write into runs"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (
            ModuleNotFoundError("No module named 'onnx'"),
            "No module named 'onnx': pip install \"linvit[train,detect,segment,deploy]\"",
        ),
        (ImportError('X is missing: pip install "linvit[train]"'), 'X is missing: pip install "linvit[train]"'),
        (ValueError(f"{WORKER}ValueError: cannot read a.png: truncated"), "cannot read a.png: truncated"),
        (ValueError(), "ValueError"),
    ],
)
def test_an_error_is_one_line_and_exit_code_2(
    command: Any, capsys: pytest.CaptureFixture[str], error: Exception, line: str
) -> None:
    command(raising(error))
    assert main(["try"]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", f"linvit: error: {line}\n")


def test_debug_shows_the_traceback(command: Any) -> None:
    command(raising(ValueError("wrong")))
    with pytest.raises(ValueError, match="wrong"):
        main(["--debug", "try"])


@pytest.mark.parametrize(
    "error", [KeyError("bug"), AssertionError("never"), RuntimeError("shapes differ"), NotImplementedError()]
)
def test_a_bug_looks_like_a_bug(command: Any, error: Exception) -> None:
    command(raising(error))
    with pytest.raises(type(error)) as caught:
        main(["try"])
    assert "please report it" in caught.value.__notes__[0]


def test_a_bug_ends_in_a_traceback_and_a_request() -> None:
    code = "import linvit.cli.main as m; m._command = lambda name: 1 / 0; m.main(['models'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("linvit: this looks like a bug of linvit")


def test_a_full_device_and_what_a_model_of_timm_refuses_are_one_line(
    command: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    command(raising(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. " * 9)))
    assert main(["try"]) == 2
    assert "the device has too little memory" in capsys.readouterr().err

    def refuse(argv: list[str]) -> int:
        timm.create_model("vit_tiny_patch16_224", depth=1, embed_dim=24)(torch.zeros(1, 3, 32, 32))
        return 0

    command(refuse)
    assert main(["try"]) == 2
    assert capsys.readouterr().err.startswith("linvit: error: Input height (32) doesn't match model")


def test_interrupt_is_130(command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    command(raising(KeyboardInterrupt("interrupted; go on with: this")))
    assert main(["try"]) == 130
    assert capsys.readouterr().err == "\nlinvit: interrupted; go on with: this\n"
    command(raising(KeyboardInterrupt()))
    assert main(["try"]) == 130
    assert capsys.readouterr().err == "\nlinvit: interrupted\n"


@pytest.mark.parametrize(("code", "expected"), [(0, 0), (None, 0), (2, 2), ("text", 2)])
def test_exit_of_a_parser_becomes_the_exit_code(command: Any, code: Any, expected: int) -> None:
    command(raising(SystemExit(code)))
    assert main(["try"]) == expected


def test_warnings_are_one_line_and_the_way_they_are_shown_is_restored(
    command: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(argv: list[str]) -> int:
        warnings.simplefilter("always")
        warnings.warn("the head\n is new", stacklevel=1)
        return 0

    before = warnings.showwarning
    command(run)
    assert main(["try"]) == 0
    assert capsys.readouterr().err == "linvit: warning: the head is new\n"
    assert warnings.showwarning is before


def test_the_entry_point_imports_no_command_before_it_is_run() -> None:
    code = "import sys, linvit.cli.main as m; m.main(['--help']); print([n for n in sys.modules if n in BAD])"
    bad = ["lightning", "torchmetrics", "matplotlib", "rich", "jsonargparse", "linvit.data", "linvit.tasks"]
    done = subprocess.run(
        [sys.executable, "-c", f"BAD = {bad}; {code}"], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.rstrip().endswith("[]")
