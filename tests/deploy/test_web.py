"""The page computes in a real browser, from a file and offline, what the model computes, for every task."""

import base64
import io
import json
import shutil
import subprocess

import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform

import linvit
from linvit.analysis import received_map
from linvit.checkpoints import class_names
from linvit.deploy import export_model, find_format, fuse
from linvit.deploy.formats import web
from linvit.deploy.fusion.looks import WithLooks
from linvit.deploy.job import input_config
from tests.conftest import CLASSES
from tests.deploy.test_dense import detector

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]


@pytest.fixture(scope="module")
def package():
    try:
        return web.runtime_package()
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="drives the browser: pip install playwright")
    if BROWSER is None:
        pytest.skip("no Chromium here")
    with playwright.sync_playwright() as driver:
        yield driver.chromium.launch(executable_path=BROWSER, args=FLAGS)


def opened(browser, path):
    """Open a page on a narrow screen without a network and wait for its test of itself."""
    context = browser.new_context(viewport={"width": 360, "height": 740}, offline=True)
    page = context.new_page()
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.goto(f"{path.as_uri()}#selftest")
    page.wait_for_selector("#selftest:not(:empty)", state="attached", timeout=120_000)
    return page


@pytest.mark.xdist_group("browser")
def test_page_equals_the_model_on_its_sample_and_on_photos(package, browser, tmp_path):
    torch.manual_seed(0)
    args = {"depths": (1, 1, 1, 1), "dims": (4, 4, 16, 32), "layer_scale_init_value": 0.5, "num_classes": 3}
    model = timm.create_model("care_s0", **args).eval()
    path = tmp_path / "model.html"
    images = torch.randn(2, 3, 96, 96)
    export = export_model(model, path, "web", images, img_size=(96, 96), classes=CLASSES)
    assert export.check.max_error < 1e-4
    config = input_config(model, (96, 96))
    transform = create_transform(**config)
    page = opened(browser, path)
    said = json.loads(page.text_content("#selftest"))
    assert said["classes"] == CLASSES
    assert said["ms"] > 0
    sample = transform(web.sample_image()).unsqueeze(0)
    with torch.no_grad():
        torch.testing.assert_close(torch.tensor([said["logits"]]), model(sample), rtol=1e-4, atol=1e-5)
    assert len(said["looks"]) == 36
    assert sum(said["looks"]) == pytest.approx(1, abs=1e-4)
    generator = torch.Generator().manual_seed(0)
    for width, height in ((37, 101), (500, 375), (96, 96)):
        pixels = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
        photo = Image.fromarray(pixels.numpy())
        file = io.BytesIO()
        photo.save(file, "PNG")
        content = base64.b64encode(file.getvalue()).decode()
        found = page.evaluate(
            "text => linvit.predict(new Blob([Uint8Array.from(atob(text), c => c.charCodeAt(0))]))", content
        )
        with torch.no_grad():
            expected = model(transform(photo).unsqueeze(0))
        torch.testing.assert_close(torch.tensor([found["outputs"]["logits"]]), expected, rtol=1e-4, atol=1e-5)
    page.set_input_files("#file", files=[{"name": "no.png", "mimeType": "image/png", "buffer": b"no image"}])
    page.wait_for_selector("#error:not([hidden])")
    assert page.text_content("#error") == "this file is no image that the browser can read"
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert not page.errors


@pytest.mark.slow
@pytest.mark.xdist_group("browser")
def test_boxes_and_masks(package, browser, tmp_path):
    from linvit.heads.segmentation import Segmenter

    torch.manual_seed(0)
    backbone = {"depths": (1, 1, 1, 1), "dims": (4, 8, 16, 32), "layer_scale_init_value": 0.5}
    decoder = {"pyramid_channels": 32, "segmentation_channels": 32}
    segmenter = Segmenter(3, backbone_args=backbone, decoder_args=decoder).eval()
    segmenter.pretrained_cfg = {"mean": [0.5] * 3, "std": [0.25] * 3, "short_side": None}
    for name, model, outputs in (("boxes", detector("retinanet"), 2), ("masks", segmenter, 1)):
        path = tmp_path / f"{name}.html"
        export_model(model, path, "web", torch.randn(1, 3, 64, 96), img_size=(64, 96), classes=["a", "b", "c", "d"])
        page = opened(browser, path)
        said = json.loads(page.text_content("#selftest"))
        sample = create_transform(**input_config(model, (64, 96)))(web.sample_image()).unsqueeze(0)
        expected = find_format("web").load(path)(sample)
        assert len(expected) == outputs
        for key, values in zip([k for k in said if k not in ("ms", "classes")], expected, strict=True):
            torch.testing.assert_close(torch.tensor(said[key]), values.flatten(), rtol=1e-3, atol=1e-3)
        assert f"show the {name}" in page.text_content("#what")
        assert page.query_selector_all("#results .row")
        assert not page.errors


@pytest.mark.parametrize("name", ["care_s0", "linglo_b0"])
def test_where_it_looks_is_what_analysis_says(name):
    small = {
        "care_s0": {"depths": (1, 1, 1, 1), "dims": (4, 4, 16, 32)},
        "linglo_b0": {"depths": (2, 2, 2, 2), "embed_dims": (8, 16, 40, 64)},
    }
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3, **small[name]).eval()
    image = torch.randn(1, 3, 160, 160)
    looks = WithLooks(fuse(model), image)
    logits, shares = looks(image)
    torch.testing.assert_close(logits, model(image), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(shares.sum(), torch.tensor(1.0))
    expected = received_map(model, image, least=1)
    torch.testing.assert_close(shares[0] / shares.sum(), expected / expected.sum(), rtol=1e-3, atol=1e-6)


def test_runtime_is_checked_and_says_how_to_get_it_by_hand(tmp_path, monkeypatch):
    monkeypatch.setenv("LINVIT_ONNXRUNTIME_WEB", str(tmp_path / "none.tgz"))
    with pytest.raises(FileNotFoundError, match="LINVIT_ONNXRUNTIME_WEB: there is no file"):
        web.runtime_package()
    (tmp_path / "none.tgz").write_bytes(b"something else")
    with pytest.raises(ValueError, match="or is damaged: remove it"):
        web.runtime_package()
    monkeypatch.delenv("LINVIT_ONNXRUNTIME_WEB")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"npm is not installed: fetch it with .npm pack onnxruntime-web@1\.30"):
        web.runtime_package()
    monkeypatch.setattr(shutil, "which", lambda name: "npm")
    failed = subprocess.CompletedProcess([], 1)
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: failed)
    with pytest.raises(FileNotFoundError, match=r"npm could not fetch onnxruntime-web: .* put onnxruntime-web-1\.30"):
        web.runtime_package()


def test_what_a_page_cannot_show_is_one_line(run_folder, tmp_path):
    model = linvit.load_model(run_folder)
    images = torch.randn(2, 3, 32, 32)
    with pytest.raises(ValueError, match="leave out --with-preprocessing and --features"):
        export_model(model, tmp_path / "m.html", "web", images, features=True, img_size=(32, 32))
    with pytest.raises(ValueError, match="not center to 32x64"):
        export_model(model, tmp_path / "m.html", "web", images, img_size=(32, 64), classes=class_names(model))
    assert not list(tmp_path.iterdir())
