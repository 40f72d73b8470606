"""The tasks, in one place: what each is trained with, and the commands that serve the models it makes."""

import importlib
import pkgutil
from argparse import Action, Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from linvit.checkpoints import task_of
from linvit.cli.common import Parser

__all__ = ["TASKS", "Link", "Task", "dispatch"]


@dataclass(frozen=True)
class Task:
    """A task; everything is named here and imported when it is used.

    Attributes:
        module: Its Lightning module, a :class:`linvit.tasks.base.VisionTask`.
        data: Its Lightning data module, with ``root``, ``strict``, ``classes``, ``num_classes``, ``input_config()``.
        commands: Module with ``run_eval(args)`` and ``run_predict(args)`` for models of this task; ``EVAL_OPTIONS`` and
            ``PREDICT_OPTIONS``, their own options as argparse takes them; ``TITLE``, which heads these in the help.
        named_by: Settings of the module that the default run folder is named by.
        links: What settings follow from others (see :class:`Link`).
    """

    module: str
    data: str
    commands: str
    named_by: tuple[str, ...] = ("name",)
    links: tuple["Link", ...] = ()

    def classes(self) -> tuple[type[Any], type[Any]]:
        """Import the Lightning module and the data module."""
        return pkgutil.resolve_name(self.module), pkgutil.resolve_name(self.data)

    def title(self, settings: Namespace) -> str:
        """Return what a run with these settings of the module is called."""
        return "-".join(str(getattr(settings, name)) for name in self.named_by)


@dataclass(frozen=True)
class Link:
    """A setting that is not the user's to give, because it follows from another.

    Attributes:
        source: The other: ``data.NAME`` is an attribute of the data module, ``model.NAME`` a setting.
        target: The setting.
        compute: Makes its value of the other's; by default they are the same.
    """

    source: str
    target: str
    compute: Callable[[Any], Any] | None = None

    def apply(self, parser: Any) -> None:
        """Make it so in a parser of Lightning's."""
        when = "instantiate" if self.source.startswith("data.") else "parse"
        parser.link_arguments(self.source, self.target, compute_fn=self.compute, apply_on=when)


def _has_masks(name: str) -> bool:
    return name == "mask_rcnn"


TASKS = {
    "classify": Task("linvit.tasks:ClassificationTask", "linvit.data:ClassificationData", "linvit.cli.classify"),
    "linearize": Task("linvit.tasks:LinearizeTask", "linvit.data:ClassificationData", "linvit.cli.classify"),
    "detect": Task(
        "linvit.tasks:DetectionTask",
        "linvit.data:DetectionData",
        "linvit.cli.detect",
        named_by=("name", "backbone"),
        links=(
            Link("data.size", "model.size"),
            Link("data.max_size", "model.max_size"),
            Link("model.name", "data.masks", _has_masks),
        ),
    ),
    "segment": Task(
        "linvit.tasks:SegmentationTask",
        "linvit.data:SegmentationData",
        "linvit.cli.segment",
        named_by=("name", "backbone"),
    ),
}


def dispatch(parser: Parser, verb: Literal["eval", "predict"], argv: Sequence[str]) -> int:
    """Add every task's options to a parser with MODEL, parse, and do what the task of the model asks for.

    Raises:
        ValueError: The arguments are wrong, or belong to another task than the model's.
    """
    rooms = [importlib.import_module(name) for name in dict.fromkeys(task.commands for task in TASKS.values())]
    actions, owners = _add(parser, {room.TITLE: getattr(room, f"{verb.upper()}_OPTIONS") for room in rooms})
    args = parser.parse_args(argv)
    task = task_of(args.model)
    if task not in TASKS:
        raise ValueError(f"{args.model} is a model for task {task!r}; there is {', '.join(TASKS)}")
    room = importlib.import_module(TASKS[task].commands)
    for name, action in actions.items():
        if getattr(args, action.dest) != action.default and room.TITLE not in owners[name]:
            titles = " and ".join(owners[name])
            raise ValueError(f"{name} is for {titles}, and {args.model} is a model for {room.TITLE}")
    return getattr(room, f"run_{verb}")(args)


def _add(
    parser: Parser, options: dict[str, dict[str, dict[str, Any]]]
) -> tuple[dict[str, Action], dict[str, list[str]]]:
    """Add the options of all titles, each once; return them, and the titles of each, by their names."""
    owners: dict[str, list[str]] = {}
    for title, own in options.items():
        for name in own:
            owners.setdefault(name, []).append(title)
    groups = {title: parser.add_argument_group(title) for title in dict.fromkeys(map(" and ".join, owners.values()))}
    actions = {
        name: groups[" and ".join(titles)].add_argument(name, **options[titles[0]][name])
        for name, titles in owners.items()
    }
    return actions, owners
