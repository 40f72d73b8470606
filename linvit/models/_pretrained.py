"""Where weights come from: read a checkpoint file, fetch a published one, and check it against a model.

Nothing is ever unpickled beyond tensors and a short list of harmless containers.
"""

import argparse
import hashlib
import logging
import pickle
import sys
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file
from timm.models import clean_state_dict
from torch import nn

from linvit.models._tables import TABLES

__all__ = ["SUFFIXES", "Fit", "as_tuple", "compare", "fetch_published", "prepare_state_dict", "read_state_dict"]

_logger = logging.getLogger(__name__)

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
    return f"not a checkpoint, or damaged ({_first_line(error)})"


@dataclass(frozen=True)
class Fit:
    """How a checkpoint's tensors fit a model; see :func:`compare`."""

    tensors: dict[str, torch.Tensor]  # by the model's names, without those of other_classes
    other_classes: list[str]  # classifier tensors made for another number of classes
    classes: int | None  # that number
    resized: bool  # tables were interpolated to the model's image or window size
    missing: list[str]
    unexpected: list[str]
    reshaped: list[str]

    @property
    def problems(self) -> str:
        """What does not fit, in words; empty where everything does."""
        found = [("missing", self.missing), ("unexpected", self.unexpected), ("of another shape", self.reshaped)]
        return "; ".join(f"{len(names)} {what}: {_some(names)}" for what, names in found if names)


def compare(state_dict: dict[str, torch.Tensor], model: nn.Module) -> Fit:
    """Compare a checkpoint with a model, which may live on the meta device.

    Published names are translated by the ``checkpoint_filter_fn`` of the model's module, where it has one. A
    classifier for another number of classes and an input convolution for another number of channels are no problem;
    a model without classes takes no heads.
    """
    filter_fn = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    tables = _table_sizes(state_dict)
    if filter_fn is not None:
        state_dict = filter_fn(state_dict, model)
    cfg = getattr(model, "pretrained_cfg", {})
    classifiers = as_tuple(cfg.get("classifier"))
    input_convs = {f"{name}.weight" for name in as_tuple(cfg.get("first_conv"))}
    expected = model.state_dict()
    if getattr(model, "num_classes", None) == 0:
        heads = tuple(name.split(".")[0] + "." for name in classifiers)
        state_dict = {name: tensor for name, tensor in state_dict.items() if not name.startswith(heads)}

    differ = [n for n in expected if n in state_dict and state_dict[n].shape != expected[n].shape]
    classifier_names = {f"{name}.{part}" for name in classifiers for part in ("weight", "bias")}
    other_classes = [n for n in differ if n in classifier_names and state_dict[n].shape[1:] == expected[n].shape[1:]]
    return Fit(
        tensors={n: tensor for n, tensor in state_dict.items() if n not in other_classes},
        other_classes=other_classes,
        classes=len(state_dict[other_classes[0]]) if other_classes else None,
        resized=tables != _table_sizes(state_dict),
        missing=[n for n in expected if n not in state_dict],
        unexpected=[n for n in state_dict if n not in expected],
        reshaped=[
            f"{n} {list(state_dict[n].shape)} for {list(expected[n].shape)}"
            for n in differ
            if n not in other_classes and n not in input_convs
        ],
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
            *(fit.classes, model.num_classes, ", ".join(fit.other_classes)),
        )
    return fit.tensors


def as_tuple(names: str | tuple[str, ...] | list[str] | None) -> tuple[str, ...]:
    """Return the module names of a ``pretrained_cfg`` entry, which may be one name, several or none."""
    return (names,) if isinstance(names, str) else tuple(names or ())


def _some(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def fetch_published(cfg: dict[str, Any], cache_dir: str | Path | None = None) -> Path:
    """Find the published weights of a model, downloading them where they are not here yet.

    A file that was put by hand into torch's checkpoint folder, under the published name, comes first. Otherwise it is
    downloaded with a progress bar: from a direct link into that folder, or from the authors' Hugging Face repository
    (the published name, or else the one file whose name carries the model's size) into the Hugging Face cache, where
    it is compared with the repository's checksum.

    Args:
        cfg: The model's ``pretrained_cfg``, with ``architecture`` and either ``url``, a pair of link and file name,
            or ``hf_hub_id`` and ``hf_hub_filename``.
        cache_dir: Replaces the folder that downloads are kept in.

    Returns:
        The path of the file.

    Raises:
        ConnectionError: It is not here and could not be fetched; the message says what to download and where to
            put it.
        ValueError: The authors publish no weights for this model, or what arrived is not a checkpoint or not what
            the repository announced.
    """
    url, published_name = cfg.get("url") or (None, cfg.get("hf_hub_filename"))
    if published_name is None:
        raise ValueError(f"{cfg.get('architecture')}: no weights are published for this model")
    by_hand = Path(torch.hub.get_dir()) / "checkpoints" / published_name
    if by_hand.is_file():
        return by_hand
    if url is not None:
        return _fetch_link(url, by_hand if cache_dir is None else Path(cache_dir) / published_name, cfg, by_hand)
    return _fetch_from_hub(cfg, published_name, by_hand, cache_dir)


def _fetch_link(url: str, path: Path, cfg: dict[str, Any], by_hand: Path) -> Path:
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), progress=True)  # under a temporary name until it is complete
    except (OSError, HTTPException) as error:
        raise ConnectionError(
            f"{cfg.get('architecture')}: the published weights could not be fetched ({_first_line(error)}). Download "
            f"{url} by hand and save it as {by_hand}"
        ) from error
    if not _is_torch_file(path):  # a truncated transfer, or a web page that says why there is no file
        path.unlink()
        raise ValueError(f"{url} did not give a complete torch file, and what it gave was removed; try again")
    return path


def _is_torch_file(path: Path) -> bool:
    """Tell whether a file can be one that torch saved: a whole archive, or a pickle as before torch 1.6."""
    if zipfile.is_zipfile(path):
        return True
    with path.open("rb") as file:
        return file.read(1) == b"\x80"


def _fetch_from_hub(cfg: dict[str, Any], published_name: str, by_hand: Path, cache_dir: str | Path | None) -> Path:
    repo = cfg["hf_hub_id"]
    size = published_name.split(".")[0].split("_")[-1]  # "S0" of "CARETrans_S0.pth.tar"
    try:
        files = HfApi().model_info(repo, files_metadata=True).siblings or []
        name = _pick([file.rfilename for file in files], published_name, size)
        path = Path(hf_hub_download(repo, name, cache_dir=cache_dir))
        checksum = next((file.lfs.sha256 for file in files if file.rfilename == name and file.lfs), None)
    except Exception as error:  # no network (in the words of the hub's HTTP library), or no such file there
        cached = _pick_cached(repo, published_name, size, cache_dir)
        if cached is not None:
            return cached
        raise ConnectionError(
            f"{cfg.get('architecture')}: the published weights could not be fetched ({_first_line(error)}). Download "
            f"the file whose name carries {size} from https://huggingface.co/{repo} by hand and save it as {by_hand}"
        ) from error
    if checksum is not None and _sha256(path) != checksum:
        path.unlink()
        raise ValueError(f"{name} from {repo} arrived damaged (its SHA-256 differs) and was removed; try again")
    return path


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def _pick(names: list[str], published_name: str, size: str) -> str:
    if published_name in names:
        return published_name
    found = sorted(name for name in names if name.endswith(SUFFIXES) and size.lower() in Path(name).name.lower())
    if not found:
        raise ValueError(f"no weights file that carries {size} among {_some(names)}")
    return found[0]


def _pick_cached(repo: str, published_name: str, size: str, cache_dir: str | Path | None) -> Path | None:
    try:
        folder = Path(snapshot_download(repo, cache_dir=cache_dir, local_files_only=True))
        return folder / _pick([str(p.relative_to(folder)) for p in folder.rglob("*")], published_name, size)
    except (LocalEntryNotFoundError, ValueError):
        return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
