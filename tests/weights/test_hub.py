"""One resolver for models: published weights without a network, packaged ones, none on request, and broken ones."""

import socket
import time
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants, hf_hub_download

import linvit
from linvit.weights import hub
from linvit.weights.hub import check_reachable
from tests.conftest import CLASSES, INPUT
from tests.hub import serve_hub

NAME = "swin_tiny_patch4_window7_224"


def use_endpoint(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A hub that nobody answers for, and an empty cache."""
    use_endpoint(monkeypatch, "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("spec", [NAME, "hf-hub:timm/resnet18.a1_in1k"])
@pytest.mark.parametrize("command", ["eval", "predict"])
def test_without_a_network_it_is_one_line(linvit_command, offline, command: str, spec: str) -> None:
    said = linvit_command(command, spec, "mnist5k")
    assert said.code == 2
    assert said.err.startswith(f"linvit: error: {spec}: the published weights are not on this machine, and http://127")
    assert said.err.count("\n") == 1


def test_training_from_published_weights_says_so_too(linvit_command, offline, tmp_path: Path) -> None:
    said = linvit_command("train", f"--model.name={NAME}", "--model.pretrained=true", f"--out={tmp_path / 'run'}")
    assert said.code == 2
    assert "the published weights are not on this machine" in said.err
    assert said.err.count("\n") == 1


def test_what_is_in_the_cache_needs_no_hub(offline, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with serve_hub("user/repo", {"config.json": b"{}"}) as endpoint:
        use_endpoint(monkeypatch, endpoint)
        check_reachable("it", "user/repo", ["config.json"])
        hf_hub_download("user/repo", "config.json")
    use_endpoint(monkeypatch, "http://127.0.0.1:9")
    check_reachable("it", "user/repo", ["config.json"])
    check_reachable("it", "user/repo@main", ["other", "config.json"])
    start = time.perf_counter()
    with pytest.raises(ConnectionError, match="it: the published weights are not on this machine"):
        check_reachable("it", "user/repo", ["other"])
    assert time.perf_counter() - start < 10


def test_a_hub_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "PATIENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        use_endpoint(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(ConnectionError, match="cannot be reached"):
            check_reachable("it", "user/absent", ["config.json"])


def test_a_name_is_one_model_in_every_command(linvit_command, offline) -> None:
    packaged = linvit.load_model("package:efficientnet_lite0")
    assert packaged.pretrained_cfg["mean"] == (127 / 255,) * 3
    said = linvit_command("predict", "efficientnet_lite0", "mnist5k")  # timm's, which is another
    assert (said.code, "or package:efficientnet_lite0, whose weights come with linvit" in said.err) == (2, True)
    said = linvit_command("predict", "package:efficientnet_lite0", "mnist5k", "--json", "--top", "1")
    assert (said.code, len(said.json)) == (0, 12)
    said = linvit_command("predict", "package:resnet", "mnist5k")
    assert (said.code, "packaged are package:efficientnet_lite0" in said.err) == (2, True)


def test_random_weights_are_there_on_request(linvit_command, run_folder: Path) -> None:
    said = linvit_command("predict", "linglo_b0", "mnist5k")
    assert said.code == 2
    assert "for random weights: --untrained" in said.err
    first, second = (linvit.load_model("test_efficientnet", untrained=True).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert linvit_command("predict", "test_efficientnet", "mnist5k", "--untrained", "--json").code == 0
    said = linvit_command("predict", run_folder, "mnist5k", "--untrained")
    assert (said.code, "untrained is for registered names" in said.err) == (2, True)


@pytest.mark.parametrize("command", [["predict", "mnist5k"], ["eval", "mnist5k"], ["export", "--to", "onnx"]])
def test_weights_that_are_not_finite_are_named(linvit_command, tmp_path: Path, command: list[str]) -> None:
    model = timm.create_model("test_efficientnet", num_classes=3)
    model.state_dict()["conv_stem.weight"][0, 0] = float("nan")
    linvit.save_model(model, tmp_path, classes=CLASSES, input_config=INPUT)
    said = linvit_command(command[0], tmp_path, *command[1:])
    assert said.code == 2
    assert "conv_stem.weight is not finite" in said.err
    assert said.err.count("\n") == 1


def test_outputs_that_are_not_finite_are_an_error(linvit_command, tmp_path: Path) -> None:
    model = timm.create_model("test_efficientnet", num_classes=3)
    torch.nn.init.constant_(model.conv_stem.weight, 3e38)  # finite, and its products are not
    linvit.save_model(model, tmp_path, classes=CLASSES, input_config=INPUT)
    said = linvit_command("predict", tmp_path, "mnist5k")
    assert (said.code, "the model's outputs are not finite" in said.err) == (2, True), said.err
