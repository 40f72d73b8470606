"""Fit a checkpoint's tensors to a model: compare the two, and say what does not fit before anything is loaded."""

import itertools
import logging
import re
import sys
from collections import Counter
from dataclasses import dataclass

import torch
from torch import nn

from linvit.checks import some
from linvit.weights.tables import TABLES

__all__ = ["Fit", "as_tuple", "compare", "prepare_state_dict"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fit:
    """How a checkpoint's tensors fit a model; see :func:`compare`."""

    tensors: dict[str, torch.Tensor]  # by the model's names, without those of other_classes
    other_classes: list[str]  # tensors of a classifier for another number of classes, or of one that is not there
    classes: int | None  # that number
    resized: bool  # tables were interpolated to the model's image or window size
    missing: list[str]
    unexpected: list[str]
    reshaped: list[str]
    in_chans: int | None = None  # of the input convolution, where it is made for another number of channels

    @property
    def problems(self) -> str:
        """What does not fit, in words; empty where everything does."""
        found = [("missing", self.missing), ("unexpected", self.unexpected), ("of another shape", self.reshaped)]
        return "; ".join(f"{len(names)} {what}: {some(names)}" for what, names in found if names)


def compare(state_dict: dict[str, torch.Tensor], model: nn.Module) -> Fit:
    """Compare a checkpoint with a model, which may live on the meta device.

    Published names are translated by the ``checkpoint_filter_fn`` of the model's module, where it has one. A
    classifier for another number of classes, none at all, and an input convolution for another number of channels are
    no problem; a model without classes takes no heads. A prefix of any kind that a wrapper put before all of the
    model's names ("net.", "student.") is taken off, and what lies beside it is left out.
    """
    fit = _compare(state_dict, model)
    if not fit.problems:
        return fit
    others = [_compare(part, model) for part in _parts(state_dict, len(model.state_dict()))]
    return min([fit, *others], key=lambda one: len(one.missing) + len(one.unexpected) + len(one.reshaped))


def _parts(state_dict: dict[str, torch.Tensor], wanted: int) -> list[dict[str, torch.Tensor]]:
    """Return what lies under each prefix that at least half as many names share as a model has."""
    shared = Counter(
        name[: end.start() + 1] for name in state_dict for end in itertools.islice(re.finditer(r"\.", name), 4)
    )
    prefixes = [prefix for prefix, count in shared.items() if 2 * count >= wanted]
    prefixes.sort(key=lambda prefix: "ema" not in prefix)  # an average before what it was taken of
    return [
        {name.removeprefix(prefix): tensor for name, tensor in state_dict.items() if name.startswith(prefix)}
        for prefix in prefixes
    ]


def _compare(state_dict: dict[str, torch.Tensor], model: nn.Module) -> Fit:
    filter_fn = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    tables = _table_sizes(state_dict)
    if filter_fn is not None:
        state_dict = filter_fn(state_dict, model)
    cfg = getattr(model, "pretrained_cfg", {})
    classifiers = as_tuple(cfg.get("classifier"))
    input_convs = {f"{name}.weight" for name in as_tuple(cfg.get("first_conv"))}
    expected = model.state_dict()
    heads = tuple(name.split(".")[0] + "." for name in classifiers)
    if getattr(model, "num_classes", None) == 0:
        state_dict = {n: tensor for n, tensor in state_dict.items() if n in expected or not n.startswith(heads)}

    differ = [n for n in expected if n in state_dict and state_dict[n].shape != expected[n].shape]
    classifier_names = {f"{name}.{part}" for name in classifiers for part in ("weight", "bias")}
    other_classes = [n for n in differ if n in classifier_names and state_dict[n].shape[1:] == expected[n].shape[1:]]
    missing = [n for n in expected if n not in state_dict]
    classes = len(state_dict[other_classes[0]]) if other_classes else None
    if classifier_names & set(missing) and not classifier_names & state_dict.keys():  # a backbone alone
        other_classes = [n for n in missing if n.startswith(heads)]
        missing, classes = [n for n in missing if n not in other_classes], 0
    return Fit(
        tensors={n: tensor for n, tensor in state_dict.items() if n not in other_classes},
        other_classes=other_classes,
        classes=classes,
        resized=tables != _table_sizes(state_dict),
        missing=missing,
        unexpected=[n for n in state_dict if n not in expected],
        reshaped=[
            f"{n} {list(state_dict[n].shape)} for {list(expected[n].shape)}"
            for n in differ
            if n not in other_classes and n not in input_convs
        ],
        in_chans=next((state_dict[n].shape[1] for n in differ if n in input_convs and state_dict[n].ndim == 4), None),
    )


def _table_sizes(state_dict: dict[str, torch.Tensor]) -> list[int]:
    leaves = ((name.rpartition(".")[2], tensor) for name, tensor in state_dict.items())
    return sorted(tensor.numel() for leaf, tensor in leaves if leaf.startswith(TABLES))  # PVT's pos_embed1 to 4, too


def prepare_state_dict(state_dict: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """Check that a checkpoint fits a model, before anything of it is loaded.

    Returns:
        The tensors by the model's names, without classifiers for another number of classes (a warning says so).

    Raises:
        ValueError: Tensors are missing, unexpected or of another shape; the message names them.
    """
    fit = compare(state_dict, model)
    if fit.problems:
        architecture = getattr(model, "pretrained_cfg", {}).get("architecture", type(model).__name__)
        raise ValueError(f"the checkpoint does not fit {architecture}, nothing was loaded: {fit.problems}")
    if fit.other_classes:
        _logger.warning(
            "the checkpoint was trained on %s classes, the model has %s: %s keep their new initialisation",
            *(fit.classes or "no", model.num_classes, ", ".join(fit.other_classes)),
        )
    return fit.tensors


def as_tuple(names: str | tuple[str, ...] | list[str] | None) -> tuple[str, ...]:
    """Return the module names of a ``pretrained_cfg`` entry, which may be one name, several or none."""
    return (names,) if isinstance(names, str) else tuple(names or ())
