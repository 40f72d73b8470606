"""Sharing models: cards that tell what they should and no more; uploads that are whole or not there."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
import yaml

import linvit
from linvit.heads.segmentation import Segmenter
from linvit.hub import model_card
from tests.conftest import INPUT
from tests.hub_server import TOKEN, Hub, serve

REPO = "someone/care-insects"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub on this machine, where somebody is logged in."""
    with serve() as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.endpoint)
        template = f"{hub.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", hub.endpoint)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


@pytest.fixture
def run(run_folder: Path, tmp_path: Path) -> Path:
    """A run folder with settings that name this machine."""
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder)
    settings = {
        "task": "classify",
        "model": {
            "opt": "adamw",
            "lr": 0.001,
            "pretrained": "/home/secret/run",
            "teacher": "package:efficientnet_lite0",
        },
        "data": {"root": "/home/secret/photos", "img_size": 32},
        "trainer": {"max_epochs": 7},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    (folder / "last.ckpt").write_bytes(b"secret")
    return folder


def test_what_is_pushed_is_what_is_pulled(hub: Hub, run: Path, linvit_command: Callable[..., Any]) -> None:
    said = linvit_command("push", run, REPO, "--yes", "--license", "apache-2.0", "--json")
    assert said.code == 0, said.err
    assert said.json["model"] == f"hf-hub:{REPO}"
    there = hub.repositories[REPO]
    assert there["model.safetensors"] == (run / "model.safetensors").read_bytes()
    assert set(there) == {"model.safetensors", "config.json", "README.md"}
    assert json.loads(there["config.json"])["pretrained_cfg"]["license"] == "apache-2.0"
    assert b"secret" not in b"".join(there.values())
    assert TOKEN not in said.out + said.err

    ours, theirs = linvit.load_model(run), linvit.load_model(f"hf-hub:{REPO}")
    by_timm = timm.create_model(f"hf-hub:{REPO}", pretrained=True)
    for name, tensor in ours.state_dict().items():
        assert torch.equal(theirs.state_dict()[name], tensor)
        assert torch.equal(by_timm.state_dict()[name], tensor)
    assert theirs.pretrained_cfg["label_names"] == ["ant", "bee", "cat"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("failing", "status", "why"),
    [
        ("/commit/", 403, "may not write"),
        ("/objects/batch", 400, ""),
        ("/lfs/", 403, ""),
        ("/api/repos", 401, "not valid"),
    ],
)
def test_a_failed_upload_leaves_nothing_and_can_be_repeated(
    hub: Hub, run: Path, linvit_command: Callable[..., Any], failing: str, status: int, why: str
) -> None:
    hub.failing, hub.status = failing, status
    said = linvit_command("push", run, REPO, "--yes")
    assert said.code == 2
    (line,) = [line for line in said.err.splitlines() if line.startswith("linvit: error")]
    assert f"nothing was uploaded to {REPO}, try again" in line
    assert why in line
    assert TOKEN not in said.out + said.err
    assert hub.repositories == {}
    hub.failing = None
    assert linvit_command("push", run, REPO, "--yes").code == 0
    assert hub.repositories[REPO]["model.safetensors"] == (run / "model.safetensors").read_bytes()


def test_a_failed_upload_leaves_what_was_there(hub: Hub, run: Path, linvit_command: Callable[..., Any]) -> None:
    assert linvit_command("push", run, REPO, "--yes").code == 0
    before = dict(hub.repositories[REPO])
    (run / "README.md").write_text("---\nlicense: mit\n---\nmy own card\n")
    hub.failing = "/commit/"
    assert linvit_command("push", run, REPO, "--yes").code == 2
    assert hub.repositories[REPO] == before
    hub.failing = None
    assert linvit_command("push", run, REPO, "--yes").code == 0
    assert hub.repositories[REPO]["README.md"].endswith(b"my own card\n")
    assert hub.commits == 2


def test_it_asks_or_is_told(
    hub: Hub, run: Path, linvit_command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = linvit_command("push", run, REPO)
    assert (said.code, hub.repositories) == (2, {})
    assert "give --yes" in said.err
    for answer, code in (("\n", 2), ("no\n", 2), ("y\n", 0)):

        class Terminal:
            @staticmethod
            def isatty() -> bool:
                return True

            @staticmethod
            def readline(answer: str = answer) -> str:
                return answer

        monkeypatch.setattr("sys.stdin", Terminal())
        said = linvit_command("push", run, REPO)
        assert said.code == code
        assert bool(hub.repositories) == (code == 0)
        assert "model.safetensors" in said.err
        assert f"new repository {REPO} (public)" in said.err


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (("nowhere", REPO), "nowhere"),
        (("RUN", "noslash"), "called USER/REPO, not 'noslash'"),
        (("RUN", "some one/care"), "some one/care"),
    ],
)
def test_what_is_wrong_is_one_line(
    hub: Hub, run: Path, linvit_command: Callable[..., Any], given: tuple[str, str], error: str
) -> None:
    said = linvit_command("push", run if given[0] == "RUN" else given[0], given[1], "--yes")
    assert said.code == 2
    assert error in said.err.splitlines()[-1]
    assert hub.repositories == {}


def test_without_a_token_it_says_how_to_get_one(
    hub: Hub, run: Path, linvit_command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("linvit.hub.get_token", lambda: None)
    said = linvit_command("push", run, REPO, "--yes")
    assert (said.code, hub.repositories) == (2, {})
    assert "hf auth login" in said.err


def test_card_tells_how_to_load_the_model_and_nothing_of_this_machine(
    run: Path, linvit_command: Callable[..., Any]
) -> None:
    assert linvit_command("card", run, "--repo", REPO, "--license", "mit").code == 0
    text = (run / "README.md").read_text()
    _, header, body = text.split("---\n", 2)
    known = {"library_name": "timm", "pipeline_tag": "image-classification", "license": "mit"}
    assert known.items() <= yaml.safe_load(header).items()
    for word in (f"linvit eval hf-hub:{REPO} DATA", "care_s0", "3 classes", "0.5, 0.5, 0.5", "weights of the author's",
                 "| teacher | package:efficientnet_lite0 |", "| epochs | 7 |") :  # fmt: skip
        assert (word in body) == (not word.startswith("linvit eval")), word
    assert "secret" not in text
    for block in re.findall(r"```python\n(.*?)```", body, flags=re.DOTALL):
        exec(block.replace(f"hf-hub:{REPO}", f"local-dir:{run}" if "timm" in block else str(run)), {})
    assert linvit_command("card", run).code == 2, "there is one already"
    assert linvit_command("card", run, "--force").code == 0


def test_cards_of_other_tasks_and_of_backbones(tmp_path: Path) -> None:
    metrics = {"miou": 0.5, "loss": 1.25, "epoch": 3}
    segmenter = Segmenter(3, backbone="test_convnext")
    masks = INPUT | {"values": [0, 1, 2], "ignore": [], "short_side": None}
    linvit.save_model(segmenter, tmp_path / "s", classes=["a", "b", "c"], input_config=masks, metrics=metrics)
    text = model_card(tmp_path / "s", REPO)
    for word in ("library_name: linvit", "image-segmentation", "| miou | 50.00% |", "| loss | 1.2500 |",
                 f"linvit eval hf-hub:{REPO} DATA", "None was chosen") :  # fmt: skip
        assert word in text, word
    assert "timm.create_model" not in text
    backbone = timm.create_model("test_vit", num_classes=0)
    linvit.save_model(backbone, tmp_path / "b", classes=[], input_config=INPUT, metrics={"explained": 0.25})
    text = model_card(tmp_path / "b", REPO)
    for word in ("image-feature-extraction", "| explained | 25.00% |", "DATA --knn", "without classes"):
        assert word in text, word
