"""Sharing a model on the Hugging Face hub: its card, and an upload that is whole or not there.

``hf-hub:USER/REPO`` reads what :func:`push` writes: ``model.safetensors``, ``config.json`` and ``README.md``, the card.
Of the other files of a run only its curves go along: ``config.yaml`` and the checkpoints name folders of this machine.
"""

import contextlib
import json
from pathlib import Path
from typing import Any

import timm
import yaml
from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from linvit.checkpoints import CONFIG_NAME, CONVERSION, WEIGHTS_NAME, load_model, task_of

__all__ = ["CARD", "files_of", "model_card", "push", "repository_exists"]

CARD = "README.md"
CURVES = "curves.png"
SETTINGS = "config.yaml"

PIPELINES = {
    "classify": "image-classification",
    "detect": "object-detection",
    "segment": "image-segmentation",
    "backbone": "image-feature-extraction",
}
"""What the hub calls the tasks."""

PURPOSES = {
    "classify": "a classifier of {count} classes",
    "detect": "a detector of {count} classes",
    "segment": "a segmentation network of {count} classes",
    "backbone": "a backbone without classes, to be trained on",
}


def model_card(folder: Path, repo: str = "USER/REPO", licence: str | None = None) -> str:
    """Describe a saved model: what it is, its metrics, how it sees images, how to load it, whence it came.

    Nothing is told that a run's settings hold of this machine: folders of data and weights are not named.

    Args:
        folder: A run folder.
        repo: What it is called on the hub.
        licence: The licence of the weights, under the hub's name for it; None where none was chosen.

    Raises:
        FileNotFoundError: The folder holds no model.
        ValueError: The model is damaged.
    """
    model: Any = load_model(folder)
    described = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    kind = task_of(folder)
    kind = "backbone" if kind == "classify" and model.num_classes == 0 else kind
    architecture = described["architecture"]
    name = architecture if isinstance(architecture, str) else f"{architecture['name']} over {architecture['backbone']}"
    by_timm = kind in ("classify", "backbone") and CONVERSION not in described
    header: dict[str, Any] = {"library_name": "timm" if by_timm else "linvit", "pipeline_tag": PIPELINES[kind]}
    header["tags"] = ["linvit", "linear-attention", *(["timm"] if by_timm else [])]
    if licence:
        header["license"] = licence
    size = sum(parameter.numel() for parameter in model.parameters())
    purpose = PURPOSES[kind].format(count=model.num_classes)
    parts = [
        f"---\n{yaml.safe_dump(header, sort_keys=False)}---",
        f"# {repo.rpartition('/')[2]}",
        f"{name}, {size / 1e6:.1f} M parameters: {purpose}. Made with linvit, the home of linear-complexity vision "
        "transformers.",
        _metrics(described.get("metrics") or {}, repo, kind),
        _preprocessing(described.get("pretrained_cfg") or described.get("input") or {}),
        _loading(repo, by_timm, _is_ours(described, name)),
        _training(folder, described),
        "## Licence\n\n"
        + (f"The weights: {licence}." if licence else "None was chosen: ask before you use the weights."),
        f"![Curves of the training]({CURVES})" if (folder / CURVES).is_file() else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _is_ours(described: dict[str, Any], name: str) -> bool:
    return CONVERSION in described or name in timm.list_models(module="linvit") or name.startswith(("care", "linglo"))


def _metrics(metrics: dict[str, float], repo: str, kind: str) -> str:
    if not metrics:
        return ""
    rows = [f"| {name} | {_shown(name, value)} |" for name, value in metrics.items() if value is not None]
    measured = "--knn" if kind == "backbone" else ""
    command = f"linvit eval hf-hub:{repo} DATA {measured}".strip()
    return "\n".join(
        [
            "## Metrics",
            "",
            "On the held-out images of the training, at its best epoch; on yours:",
            "",
            f"    {command}",
            "",
            "| metric | value |",
            "|---|---|",
            *rows,
        ]
    )


def _shown(name: str, value: float) -> str:
    if name == "epoch":
        return f"{value:.0f}"
    return f"{value:.4f}" if name.endswith("loss") else f"{value:.2%}"


def _preprocessing(config: dict[str, Any]) -> str:
    known = {
        name: config[name] for name in ("input_size", "mean", "std", "interpolation", "crop_pct") if name in config
    }
    if not known:
        return ""
    rows = [
        f"| {name} | {', '.join(map(str, value)) if isinstance(value, list) else value} |"
        for name, value in known.items()
    ]
    return "\n".join(["## What it sees", "", "| setting | value |", "|---|---|", *rows])


def _loading(repo: str, by_timm: bool, ours: bool) -> str:
    timm_lines = [
        "```python",
        "import timm",
        *(["import linvit  # registers the architecture"] if ours else []),
        "",
        f'model = timm.create_model("hf-hub:{repo}", pretrained=True).eval()',
        "```",
        "",
    ]
    linvit_lines = ["```python", "import linvit", "", f'model = linvit.load_model("hf-hub:{repo}")', "```"]
    return "\n".join(["## How to load it", "", *(timm_lines if by_timm else []), *linvit_lines])


def _training(folder: Path, described: dict[str, Any]) -> str:
    """Tell how it was trained, as far as that names nothing of this machine."""
    try:
        settings = yaml.safe_load((folder / SETTINGS).read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return ""
    model, data, trainer = (settings.get(name) or {} for name in ("model", "data", "trainer"))
    facts = {
        "task": settings.get("task"),
        "epochs": trainer.get("max_epochs"),
        "image size": data.get("img_size") or data.get("crop_size") or data.get("size"),
        "images per batch and device": data.get("batch_size"),
        "optimizer": model.get("opt"),
        "highest learning rate": model.get("lr"),
        "weight decay": model.get("weight_decay"),
        "weight average": model.get("ema_decay") or None,
        "seed": settings.get("seed_everything"),
        "started from": _public(model.get("pretrained")),
        "teacher": _public(model.get("teacher")),
    }
    rows = [f"| {name} | {value} |" for name, value in facts.items() if value is not None]
    return "\n".join(["## Training", "", "| setting | value |", "|---|---|", *rows]) if rows else ""


def _public(weights: Any) -> str | None:
    """Name published weights; others are a file of the author's."""
    if not weights:
        return None
    if weights is True:
        return "the published weights"
    name = str(weights)
    known = name.startswith(("hf-hub:", "package:")) or timm.is_model(name.partition(".")[0])
    return name if known else "weights of the author's"


def files_of(folder: Path, repo: str, licence: str | None = None) -> dict[str, bytes | Path]:
    """Return what :func:`push` uploads, by its name there; the card is the folder's own where it has one.

    Raises:
        FileNotFoundError: The folder holds no model.
        ValueError: The model is damaged.
    """
    card = model_card(folder, repo, licence)
    described = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    if "pretrained_cfg" in described:  # whose licence is that of the architecture's published weights
        described["pretrained_cfg"].pop("license", None)
        described["pretrained_cfg"] |= {"license": licence} if licence else {}
    files: dict[str, bytes | Path] = {
        WEIGHTS_NAME: folder / WEIGHTS_NAME,
        CONFIG_NAME: (json.dumps(described, indent=2) + "\n").encode(),
        CARD: folder / CARD if (folder / CARD).is_file() else card.encode(),
    }
    return files | ({CURVES: folder / CURVES} if (folder / CURVES).is_file() else {})


def repository_exists(repo: str) -> bool:
    """Return whether the hub has a repository of this name that the user may see.

    Raises:
        ConnectionError: The hub does not answer.
        ValueError: It is no name of a repository.
    """
    _check_name(repo)
    with _one_line(f"the hub did not say whether {repo} exists"):
        return HfApi().repo_exists(repo)


def push(
    files: dict[str, bytes | Path], repo: str, private: bool = False, message: str = "Model trained with linvit"
) -> str:
    """Upload a model in one commit: all of it is there afterwards, or nothing has changed.

    A repository that was made for it is removed again when the upload fails, and the upload can be repeated.

    Args:
        files: What to upload, as :func:`files_of` returns it.
        repo: ``USER/REPO``; made if it is not there.
        private: Let only the user see a new repository.
        message: Of the commit.

    Returns:
        The address of the model.

    Raises:
        ConnectionError: The upload failed.
        ValueError: There is no token, or ``repo`` is no name of a repository.
    """
    _check_name(repo)
    if get_token() is None:
        raise ValueError("nobody is logged in to the hub: run hf auth login, or set HF_TOKEN")
    api = HfApi()
    with _one_line(f"nothing was uploaded to {repo}, try again"):
        made = _make(api, repo, private)
        try:
            api.create_commit(
                repo,
                [
                    CommitOperationAdd(name, str(what) if isinstance(what, Path) else what)
                    for name, what in files.items()
                ],
                commit_message=message,
            )
        except BaseException:
            if made:
                with contextlib.suppress(Exception):
                    api.delete_repo(repo)
            raise
    return f"{api.endpoint}/{repo}"


def _make(api: HfApi, repo: str, private: bool) -> bool:
    """Make a repository; return False where it is there already."""
    try:
        api.create_repo(repo, private=private)
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code == 409:
            return False
        raise
    return True


def _check_name(repo: str) -> None:
    user, _, name = repo.partition("/")
    if not user or not name or "/" in name:
        raise ValueError(f"a repository is called USER/REPO, not {repo!r}")


@contextlib.contextmanager
def _one_line(otherwise: str) -> Any:
    """Turn what the hub's library raises into one line that never holds the token."""
    try:
        yield
    except HFValidationError as error:
        raise ValueError(str(error)) from None
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        why = {401: "the token is not valid", 403: "the token may not write there"}.get(status or 0)
        why = why or next(iter(str(error).strip().splitlines()), type(error).__name__)
        token = get_token()
        raise ConnectionError(f"{otherwise}: {why.replace(token, '...') if token else why}") from None
