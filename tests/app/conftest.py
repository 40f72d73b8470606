"""A page that is served, with two small models."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch

import linvit
from linvit.app.server import make_server
from linvit.app.viewer import Models
from linvit.heads import build as build_dense
from tests.conftest import CLASSES, INPUT


@pytest.fixture(scope="session")
def other_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a ViT whose attention was replaced."""
    torch.manual_seed(1)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=3, embed_dim=32, num_heads=2, num_classes=3)
    folder = tmp_path_factory.mktemp("runs") / "converted"
    linvit.save_model(linvit.linearize(model), folder, classes=CLASSES, input_config=INPUT)
    return folder


@pytest.fixture(scope="session")
def segmenter_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a network for segmentation."""
    model = build_dense("segment", {"name": "fpn", "backbone": "linglo_b0", "num_classes": 3})
    seen = {"short_side": 64, "mean": INPUT["mean"], "std": INPUT["std"], "values": [0, 1, 2], "ignore": [255]}
    folder = tmp_path_factory.mktemp("runs") / "segmenter"
    linvit.save_model(model, folder, classes=CLASSES, input_config=seen)
    return folder


@pytest.fixture(scope="session")
def address(run_folder: Path, other_folder: Path) -> Iterator[str]:
    """Where the page is served."""
    server = make_server(Models([str(run_folder), str(other_folder)], "cpu"))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join(timeout=10)
