"""What makes timm's test file ask for linvit's models: a pytest plugin, for ``python -m tests.timm_own`` alone.

The file takes its models from ``timm.list_models``, which is replaced before the file is imported. Its filters name
timm's own families, by wildcards and by modules. A family of linvit answers to the filters of its host: flatten_deit is
among those without a spatial output where ``deit*`` is. All families have what the lists of modules ask for.
"""

import fnmatch
import json
import os
from collections.abc import Iterable
from pathlib import Path

import pytest
import timm
import torch

import linvit  # noqa: F401 -- registers the models

MODELS = os.environ["LINVIT_TIMM_MODELS"].split(",")
RESULTS = Path(os.environ["LINVIT_TIMM_RESULTS"])


def _listed(
    filter: str | Iterable[str] = "",
    module: str | Iterable[str] = "",
    pretrained: bool = False,
    exclude_filters: str | Iterable[str] = "",
    name_matches_cfg: bool = False,
    include_tags: bool | None = None,
) -> list[str]:
    """Stand for ``timm.list_models``."""
    with_tags = pretrained if include_tags is None else include_tags
    names = []
    for model in MODELS:
        host = model.removeprefix("flatten_")
        if (filter and not _matches(host, filter)) or _matches(host, exclude_filters):
            continue
        if pretrained and not timm.is_model_pretrained(model):
            continue
        names.append(timm.get_pretrained_cfg(model).tag if with_tags else "")
        names[-1] = f"{model}.{names[-1]}" if names[-1] else model
    return names


def _matches(name: str, patterns: str | Iterable[str]) -> bool:
    patterns = [patterns] if isinstance(patterns, str) else patterns
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns if pattern)


timm.list_models = _listed


def _model(item: pytest.Item) -> str:
    """Return the model of a test, "" for a test of one of timm's own models or layers."""
    call = getattr(item, "callspec", None)
    return str(call.params.get("model_name", "")).split(".")[0] if call else ""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    ours = [item for item in items if _model(item) in MODELS]
    config.hook.pytest_deselected(items=[item for item in items if item not in ours])
    items[:] = ours
    for item in ours:  # timm's limits in seconds are for a machine with nothing else to do
        item.own_markers = [mark for mark in item.own_markers if mark.name != "timeout"]


@pytest.fixture(autouse=True)
def _published_weights(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put drawn weights where a published file is looked for first: of loading, no value of a weight is tested."""
    if "pretrained" not in request.node.name:
        return
    name = _model(request.node)
    cfg = timm.get_pretrained_cfg(name)
    published = cfg.url[1] if isinstance(cfg.url, tuple | list) else cfg.hf_hub_filename
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(timm.create_model(name).state_dict(), folder / published)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    report = yield
    if report.when == "call" or not report.passed:
        if report.when == "teardown" and report.passed:
            return report
        reason = ""
        if report.skipped:
            reason = report.longrepr[2].removeprefix("Skipped: ")
        elif report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            reason = (crash.message if crash else str(report.longrepr)).strip().splitlines()[0]
        test = item.name.split("[")[0]
        with RESULTS.open("a") as file:
            line = {"model": _model(item), "test": test, "outcome": report.outcome, "reason": reason}
            file.write(json.dumps(line) + "\n")
    return report
