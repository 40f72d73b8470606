"""FLatten's published files: training checkpoints behind direct links, with a foreign configuration inside."""

import http.server
import sys
import threading
import types
from typing import ClassVar

import pytest
import timm
import torch

import linvit
from linvit.weights import read_state_dict
from tests.golden import load_golden, relative_error

NAME, FILE = "flatten_pvt_v2_b0", "flatten_pvt_v2_b0.pth"


class CfgNode(dict):
    """Built like the node of yacs: a dictionary with attributes. Whatever unpickling runs of it leaves a trace."""

    ran: ClassVar[list[str]] = []

    def __init__(self, entries: dict):
        super().__init__(entries)
        self.__dict__["__immutable__"] = False
        self.__dict__["__deprecated_keys__"] = set()

    def __setstate__(self, state):
        self.ran.append("__setstate__")

    def __setitem__(self, key, value):
        self.ran.append("__setitem__")


@pytest.fixture(scope="module")
def golden():
    return load_golden(NAME)


@pytest.fixture
def yacs(monkeypatch):
    """A module ``yacs.config`` that can be imported, and so could be executed."""
    monkeypatch.setattr(CfgNode, "__module__", "yacs.config")
    package, config = types.ModuleType("yacs"), types.ModuleType("yacs.config")
    config.CfgNode = CfgNode
    monkeypatch.setitem(sys.modules, "yacs", package)
    monkeypatch.setitem(sys.modules, "yacs.config", config)
    CfgNode.ran.clear()


@pytest.fixture
def published(golden, yacs, tmp_path):
    """A file such as the authors publish."""
    path = tmp_path / "served" / FILE
    path.parent.mkdir()
    weights = {name: tensor.float() for name, tensor in golden["weights"].items()}
    config = CfgNode({"MODEL": CfgNode({"TYPE": NAME, "DIMS": [32, 64]}), "AMP": "O1"})
    optimizer = {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]}
    torch.save({"model": weights, "optimizer": optimizer, "config": config, "epoch": 299, "max_accuracy": 71.1}, path)
    return path


@pytest.fixture
def serve(published):
    """Serve the folder of the published file; requests are counted."""
    requests = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(published.parent))

        def do_GET(self):
            requests.append(self.path)
            super().do_GET()

        def log_message(self, *args):
            """Stay quiet."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/{FILE}?dl=1", requests
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path / "hub" / "checkpoints"


def create(url: str, **kwargs) -> torch.nn.Module:
    return timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay={"url": (url, FILE)}, **kwargs).eval()


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_are_read_and_nothing_is_executed(yacs, tmp_path, zipped):
    path = tmp_path / "training.pth"
    content = {"model": {"w": torch.ones(2)}, "config": CfgNode({"A": CfgNode({"b": [1, (2,)]}), "C": "d"})}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert torch.equal(read_state_dict(path)["w"], torch.ones(2))
    assert CfgNode.ran == []
    torch.load(path, weights_only=False)
    assert CfgNode.ran  # the trace works


def test_the_average_of_weights_is_preferred(yacs, tmp_path):
    for key in ("state_dict_ema", "model_ema"):
        content = {"model": {"w": torch.zeros(1)}, key: {"w": torch.ones(1)}, "config": CfgNode({})}
        torch.save(content, tmp_path / "x.pth")
        assert read_state_dict(tmp_path / "x.pth")["w"] == 1


def test_download_then_offline(golden, serve, cache, capfd, monkeypatch):
    monkeypatch.setenv("TQDM_POSITION", "-1")
    url, requests = serve
    model = create(url)
    with torch.no_grad():
        assert relative_error(model(golden["images"].float())[0], golden["logits"]) < 1e-5
    assert "100%" in capfd.readouterr().err  # the progress bar
    assert (cache / FILE).is_file()
    assert CfgNode.ran == []
    create(url)
    assert len(requests) == 1


def test_a_cache_folder_of_ones_own(serve, cache, tmp_path):
    create(serve[0], cache_dir=tmp_path / "mine")
    assert (tmp_path / "mine" / FILE).is_file()
    assert not cache.exists()


def test_a_file_put_by_hand_comes_first(published, cache):
    cache.mkdir(parents=True)
    (cache / FILE).write_bytes(published.read_bytes())
    model = timm.create_model(NAME, pretrained=True, num_classes=7, img_size=160)
    assert model.head.weight.shape == (7, 256)
    assert model.stages[0].blocks[0].attn.positional_encoding.shape == (1, 1600, 32)


def test_no_network_says_what_to_download_and_where_to_put_it(cache):
    with pytest.raises(ConnectionError) as error:
        create("http://127.0.0.1:9/x?dl=1")
    message = str(error.value)
    assert "\n" not in message
    assert f"Download http://127.0.0.1:9/x?dl=1 by hand and save it as {cache / FILE}" in message
    assert message.startswith(NAME)
    assert not list(cache.iterdir())


@pytest.mark.parametrize("damage", ["page", "cut"])
def test_what_is_no_checkpoint_is_not_kept(serve, published, cache, damage):
    content = published.read_bytes()
    published.write_bytes(b"<html>The link has expired.</html>" if damage == "page" else content[: len(content) // 2])
    with pytest.raises(ValueError, match="did not give a complete torch file, and what it gave was removed"):
        create(serve[0])
    assert not list(cache.iterdir())


def test_a_link_that_is_gone(serve, cache):
    with pytest.raises(ConnectionError, match="404"):
        create(serve[0].replace(FILE, "elsewhere.pth"))


def test_models_without_published_weights_say_so():
    with pytest.raises(ValueError, match="flatten_pvt_small: no weights are published for this model"):
        timm.create_model("flatten_pvt_small", pretrained=True)


def test_seven_links():
    links = {}
    for name in linvit.list_models("flatten*"):
        cfg = timm.get_pretrained_cfg(name)
        if cfg.url:
            links[name] = cfg.url
    assert sorted(links) == [
        "flatten_cswin_tiny",
        "flatten_pvt_tiny",
        "flatten_pvt_v2_b0",
        "flatten_swin_base",
        "flatten_swin_base_384",
        "flatten_swin_small",
        "flatten_swin_tiny",
    ]
    assert len({url for url, _ in links.values()}) == len({file for _, file in links.values()}) == 7
    assert all(
        url.startswith("https://cloud.tsinghua.edu.cn/f/") and url.endswith("/?dl=1") for url, _ in links.values()
    )
