"""Read the tensors of a checkpoint file. Nothing in it is executed.

Nothing is ever unpickled beyond tensors and a short list of harmless containers.
"""

import argparse
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from timm.models import clean_state_dict

from linvit.checks import first_line

__all__ = ["SUFFIXES", "read_state_dict"]

SUFFIXES = (".safetensors", ".pth", ".pth.tar", ".pt", ".bin", ".ckpt")
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")  # averaged weights before raw ones


# Configuration objects beside the tensors. That of yacs, which need not be installed, is a dictionary with attributes;
# OrderedDict is the one such type that torch fills without executing anything.
_HARMLESS: list[Any] = [argparse.Namespace, (OrderedDict, "yacs.config.CfgNode")]


def read_state_dict(path: str | Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a checkpoint without executing anything that is in it.

    Args:
        path: A ``.safetensors`` file, or a torch file that holds a state dict: plain, wrapped under ``model``,
            ``state_dict``, ``model_ema`` or ``state_dict_ema`` (the average is preferred), with the prefixes that
            DistributedDataParallel, ``torch.compile`` and Lightning put before names.

    Returns:
        Tensors by name, on the CPU.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not a checkpoint, is damaged, or holds types that are not tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint file at {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(_HARMLESS):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes the readers fail in many ways
        raise ValueError(f"cannot read {path}: {_why_unreadable(path, error)}") from error

    for key in _WRAPPERS:
        if isinstance(checkpoint, dict) and isinstance(checkpoint.get(key), dict):
            checkpoint = checkpoint[key]
            break
    tensors = isinstance(checkpoint, dict) and {k: v for k, v in checkpoint.items() if isinstance(v, torch.Tensor)}
    if not tensors:
        raise ValueError(f"cannot read {path}: it holds no state dict (looked for a plain one and for {_WRAPPERS})")
    tensors = clean_state_dict(tensors)
    if all(name.startswith("model.") for name in tensors):
        tensors = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    return tensors


def _why_unreadable(path: Path, error: Exception) -> str:
    try:
        refused = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # not a torch archive at all: the first error says more
        refused = []
    if refused:
        return (
            f"besides tensors it holds {', '.join(sorted(refused))}, which are not unpickled; "
            "save its state dict alone, as .safetensors"
        )
    if isinstance(error, pickle.UnpicklingError):  # torch's own words are advice to unpickle the file after all
        return "not a checkpoint, or damaged"
    return f"not a checkpoint, or damaged ({first_line(error)})"
