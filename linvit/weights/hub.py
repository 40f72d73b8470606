"""Whether the Hugging Face hub can be asked: its own library tries for a minute, and says so a dozen times."""

import threading
from collections.abc import Iterable
from typing import Any

import timm
from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.utils import get_session
from torch import nn

from linvit.checks import first_line

__all__ = ["WEIGHTS_FILES", "check_reachable", "create_pretrained"]

PATIENCE = 5.0
"""Seconds until a hub that does not answer counts as not there."""

WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")


def check_reachable(what: str, repo: str, files: Iterable[str]) -> None:
    """Return at once if one of the files is in the hub's cache here, or else when the hub answers.

    Args:
        what: What is wanted, for the message.
        repo: The repository that has it, ``USER/REPO`` or ``USER/REPO@REVISION``.
        files: Names of which one is enough.

    Raises:
        ConnectionError: The files are not here, and the hub does not answer.
    """
    repo, _, revision = repo.partition("@")
    if any(isinstance(try_to_load_from_cache(repo, name, revision=revision or None), str) for name in files):
        return
    failed: list[Exception] = []

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=PATIENCE)
        except Exception as error:  # each version of the hub's library has another HTTP library under it
            failed.append(error)

    asking = threading.Thread(target=ask, daemon=True)  # a name server may take longer than any timeout
    asking.start()
    asking.join(PATIENCE)
    if asking.is_alive():
        failed.append(TimeoutError(f"no answer in {PATIENCE:.0f} seconds"))
    if failed:
        raise ConnectionError(
            f"{what}: the published weights are not on this machine, and {constants.ENDPOINT} cannot be reached "
            f"({first_line(failed[0])})"
        ) from failed[0]


def create_pretrained(name: str, **kwargs: Any) -> nn.Module:
    """Build a registered model with its published weights.

    Args:
        name: By timm's name, or ``hf-hub:USER/REPO`` or ``local-dir:FOLDER``.
        **kwargs: More arguments of the model.

    Raises:
        ConnectionError: The weights are neither here nor can be fetched.
        ValueError: There are none.
    """
    if ":" in name:
        source, _, repo = name.partition(":")
        if source == "hf-hub":
            check_reachable(name, repo, WEIGHTS_FILES)
        return timm.create_model(name, pretrained=True, **kwargs)
    ours = timm.models.model_entrypoint(name.partition(".")[0]).__module__.startswith("linvit.")
    cfg = timm.get_pretrained_cfg(name)
    if not ours:
        if cfg is None or not cfg.has_weights:
            raise ValueError(f"{name}: no weights are published for this model")
        if cfg.hf_hub_id:
            files = [cfg.hf_hub_filename] if cfg.hf_hub_filename else WEIGHTS_FILES
            check_reachable(name, cfg.hf_hub_id, files)
    return timm.create_model(name, pretrained=True, **kwargs)
