"""``linvit COMMAND ...``: finds the command, and turns what goes wrong in it into one line and an exit code."""

import importlib
import os
import re
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any, TextIO

from linvit.allocator import keep_freed_memory

COMMANDS = {
    "models": ("linvit.cli.models", "list the models: size, cost, published accuracy"),
    "train": ("linvit.cli.train", "train a model, or resume a training run"),
    "eval": ("linvit.cli.eval", "measure a model on a data set"),
    "predict": ("linvit.cli.predict", "say what is in images"),
    "export": ("linvit.cli.export", "write a model in a format for deployment"),
    "bench": ("linvit.cli.bench", "measure the speed of models against each other"),
    "study": ("linvit.cli.study", "train arms and seeds on one budget, and compare them"),
    "inspect": ("linvit.cli.inspect", "show where a model looks, how sharply, and of what rank"),
    "app": ("linvit.cli.app", "serve a page to compare models and see where they look"),
    "card": ("linvit.cli.card", "describe a model for those who find it on the hub"),
    "push": ("linvit.cli.push", "share a model on the Hugging Face hub"),
    "recipes": ("linvit.cli.recipes", "list the training runs that come with linvit"),
}
"""Name of a command: its module, which is imported when the command is run, and its line in the help."""

BUG = "linvit: this looks like a bug of linvit: please report it, with the command and all of this"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: Arguments after the program's name; those of the process by default.

    Returns:
        The exit code: 0 for success, 2 for an error that the user can do something about, 130 for Ctrl-C.

    Raises:
        Exception: What went wrong is a bug.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help(), file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        from linvit import __version__

        print(f"linvit {__version__}")
        return 0
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning  # type: ignore[assignment]
        try:
            if argv is None:  # this process is the command's own
                keep_freed_memory()
            return _command(arguments[0]).run(arguments[1:])
        except SystemExit as stop:  # argparse: after its help, or after its own line about a wrong argument
            return stop.code if isinstance(stop.code, int) else int(stop.code is not None) * 2
        except KeyboardInterrupt as interrupt:
            print(f"\nlinvit: {str(interrupt) or 'interrupted'}", file=sys.stderr)
            return 130
        except BrokenPipeError:  # whoever read the output has seen enough, as `head` has
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except Exception as error:
            if debug:
                raise
            if not _is_known(error):
                error.add_note(BUG)
                raise
            print(f"linvit: error: {_one_line(error)}", file=sys.stderr)
            return 2


def _command(name: str) -> Any:
    if name not in COMMANDS:
        raise ValueError(f"unknown command {name!r}; there are {', '.join(COMMANDS)} (see linvit --help)")
    return importlib.import_module(COMMANDS[name][0])


def _is_known(error: Exception) -> bool:
    """Tell what went wrong with what the user gave or has from what went wrong within linvit."""
    if isinstance(error, ValueError | OSError | ImportError):
        return True
    names = {kind.__name__ for kind in type(error).__mro__}
    if "OutOfMemoryError" in names or "DataLoader worker" in str(error):
        return True
    # timm's models say so where images do not suit them; a check without words is for its programmers.
    return isinstance(error, AssertionError) and bool(str(error)) and _raised_in(error) == "timm"


def _raised_in(error: Exception) -> str:
    """Return the package that raised an error, torch's own check functions aside."""
    modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    packages = [module.partition(".")[0] for module in modules]
    return next((package for package in reversed(packages) if package != "torch"), "")


def _help() -> str:
    width = max(map(len, COMMANDS))
    commands = [f"  {name:{width}}  {line}" for name, (_, line) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: linvit COMMAND ... [--help] [--debug]",
            "",
            "Linear-complexity vision transformers: train, evaluate, use and ship them.",
            "",
            "commands:",
            *commands,
            "",
            "options:",
            "  --help     explain a command: linvit train --help",
            "  --version  say which version this is",
            "  --debug    show the traceback of an error",
            "",
            "example:",
            "  linvit train --data.root photos --model.name care_s0 --out runs/photos",
        ]
    )


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    print(f"linvit: warning: {' '.join(str(message).split())}", file=sys.stderr)


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    text = str(error).strip() or type(error).__name__
    if "OutOfMemoryError" in type(error).__name__:
        return "the device has too little memory: take smaller images, or fewer at a time (--batch-size)"
    if isinstance(error, ModuleNotFoundError) and "pip install" not in text:
        text += ': pip install "linvit[train,detect,segment,deploy]"'
    if found := re.search(r"DataLoader worker .*?(?:killed by (signal: [^.]*)|exited unexpectedly)", text):
        text = f"a process that loads images was killed ({found[1] or 'it is gone'}), often for lack of memory: "
        text += "load with fewer of them, or with none to see why (--data.workers 0 in training, else --workers 0)"
    if "Traceback (most recent call last)" in text:  # from a worker process: its last line is what was raised there
        text = text.splitlines()[-1].partition(": ")[2] or text.splitlines()[-1]
    return " ".join(text.split())


if __name__ == "__main__":
    sys.exit(main())
