"""Fetch published weights: a file put by hand, a direct link, or the authors' Hugging Face repository."""

import hashlib
import zipfile
from http.client import HTTPException
from pathlib import Path
from typing import TypedDict

import torch
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from linvit.checks import first_line, some
from linvit.weights.read import SUFFIXES

__all__ = ["Published", "fetch_published"]


class Published(TypedDict, total=False):
    """What a model's ``pretrained_cfg`` says about where its weights are published."""

    architecture: str
    url: tuple[str, str] | None  # direct link, and the file's name
    hf_hub_id: str
    hf_hub_filename: str | None


def fetch_published(cfg: Published, cache_dir: str | Path | None = None) -> Path:
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


def _fetch_link(url: str, path: Path, cfg: Published, by_hand: Path) -> Path:
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), progress=True)  # under a temporary name until it is complete
    except (OSError, HTTPException) as error:
        raise ConnectionError(
            f"{cfg.get('architecture')}: the published weights could not be fetched ({first_line(error)}). Download "
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


def _fetch_from_hub(cfg: Published, published_name: str, by_hand: Path, cache_dir: str | Path | None) -> Path:
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
            f"{cfg.get('architecture')}: the published weights could not be fetched ({first_line(error)}). Download "
            f"the file whose name carries {size} from https://huggingface.co/{repo} by hand and save it as {by_hand}"
        ) from error
    if checksum is not None and _sha256(path) != checksum:
        path.unlink()
        raise ValueError(f"{name} from {repo} arrived damaged (its SHA-256 differs) and was removed; try again")
    return path


def _pick(names: list[str], published_name: str, size: str) -> str:
    if published_name in names:
        return published_name
    found = sorted(name for name in names if name.endswith(SUFFIXES) and size.lower() in Path(name).name.lower())
    if not found:
        raise ValueError(f"no weights file that carries {size} among {some(names)}")
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
