"""The page computes in a real browser, from a file and offline, what the model computes, for every task."""

import base64
import io
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform

import linvit
from linvit.analysis import received_map
from linvit.bench.on_device import read_results, write_kit
from linvit.checkpoints import class_names
from linvit.data.images import load_image
from linvit.deploy import export_model, find_format, fuse
from linvit.deploy.formats import web
from linvit.deploy.fusion.looks import WithLooks
from linvit.deploy.job import input_config
from linvit.inference.classification import ClassificationPredictor
from tests.conftest import CLASSES
from tests.deploy.test_dense import detector

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking"]
CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
SOFTWARE_WEBGPU = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"]
IMAGENETTE = Path(os.environ.get("LINVIT_IMAGENETTE", "imagenette128")) / "val"
READ = "text => linvit.predict(new Blob([Uint8Array.from(atob(text), c => c.charCodeAt(0))]))"

NAMES = ["ant", "<!--<script></script>", "a-long-name-that-no-line-of-a-phone-can-hold" * 2]

in_browser = pytest.mark.xdist_group("browser")


@pytest.fixture(scope="module")
def package():
    try:
        return web.runtime_package()
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def launch():
    """Start Chromium with flags."""
    playwright = pytest.importorskip("playwright.sync_api", reason="drives the browser: pip install playwright")
    if BROWSER is None:
        pytest.skip("no Chromium here")
    with playwright.sync_playwright() as driver:
        yield lambda *flags: driver.chromium.launch(executable_path=BROWSER, args=[*FLAGS, *flags])


@pytest.fixture(scope="module")
def browser(launch):
    return launch("--disable-gpu", *CAMERA)


def small_classifier():
    torch.manual_seed(0)
    args = {"depths": (1, 1, 1, 1), "dims": (4, 4, 16, 32), "layer_scale_init_value": 0.5, "num_classes": 3}
    model = timm.create_model("care_s0", **args).eval()
    torch.nn.init.normal_(model.head.fc.weight)  # so that classes differ
    return model


def exported(path, model, **options):
    size = options.pop("img_size", (96, 96))
    export_model(model, path, "web", torch.randn(2, 3, *size), img_size=size, **options)
    return path


@pytest.fixture(scope="module")
def small_page(package, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "model.html"
    return exported(path, small_classifier(), classes=NAMES)


def opened(browser, path, hash="", width=360):
    """Open a page without a network, and wait until the model is loaded or what the hash asks for is done."""
    context = browser.new_context(viewport={"width": width, "height": 740}, offline=True)
    page = context.new_page()
    page.set_default_timeout(120_000)
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.goto(f"{path.as_uri()}{hash}")
    if hash:
        page.wait_for_selector("#selftest:not(:empty)", state="attached")
    else:
        page.get_by_text("Ready.").wait_for()
    return page


def said(page):
    return json.loads(page.text_content("#selftest"))


def photo_of(size, mode="RGB"):
    file = io.BytesIO()
    web.sample_image().resize(size).convert(mode).save(file, "PNG")
    return file.getvalue()


def wait_for_result(page):
    page.get_by_text("for this image on this device, in WebAssembly").wait_for()
    assert page.locator("#results .row").count() == 3
    assert page.locator("#view").is_visible()
    assert not page.locator("#error").is_visible()
    assert not page.errors


@in_browser
def test_page_equals_the_model_on_its_sample_and_on_photos(small_page, browser):
    model = small_classifier()
    transform = create_transform(**input_config(model, (96, 96)))
    page = opened(browser, small_page, "#selftest")
    found = said(page)
    assert found["classes"] == NAMES
    assert found["runtime"] == "WebAssembly"
    assert found["ms"] > 0
    sample = transform(web.sample_image()).unsqueeze(0)
    with torch.no_grad():
        torch.testing.assert_close(torch.tensor([found["logits"]]), model(sample), rtol=1e-4, atol=1e-5)
    assert len(found["looks"]) == 36
    assert sum(found["looks"]) == pytest.approx(1, abs=1e-4)
    generator = torch.Generator().manual_seed(0)
    for width, height in ((37, 101), (500, 375), (96, 96)):
        pixels = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
        photo = Image.fromarray(pixels.numpy())
        file = io.BytesIO()
        photo.save(file, "PNG")
        found = page.evaluate(READ, base64.b64encode(file.getvalue()).decode())
        with torch.no_grad():
            expected = model(transform(photo).unsqueeze(0))
        torch.testing.assert_close(torch.tensor([found["outputs"]["logits"]]), expected, rtol=1e-4, atol=1e-5)
    page.set_input_files("#file", files=[{"name": "no.png", "mimeType": "image/png", "buffer": b"no image"}])
    page.get_by_text("this file is no image that the browser can read").wait_for()
    page.set_input_files("#file", files=[{"name": "a.png", "mimeType": "image/png", "buffer": photo_of((64, 48))}])
    wait_for_result(page)


@pytest.mark.slow
@in_browser
def test_camera(small_page, browser):
    page = opened(browser, small_page)
    page.get_by_text("Take a photo").click()
    page.locator("#viewfinder").wait_for()
    page.keyboard.press("Escape")
    page.locator("#viewfinder").wait_for(state="hidden")
    assert page.text_content("#status") == "Ready."
    page.get_by_text("Take a photo").click()
    page.get_by_role("button", name="Take the photo").click()
    wait_for_result(page)
    assert page.evaluate("document.getElementById('video').srcObject.getTracks().every(t => t.readyState == 'ended')")
    page.evaluate("() => { navigator.mediaDevices.getUserMedia = async () => { throw new Error('there is none') } }")
    page.get_by_text("Take a photo").click()
    page.get_by_text("the camera cannot be used: there is none").wait_for()


@pytest.mark.slow
@in_browser
def test_paste_and_drop(small_page, browser, tmp_path):
    page = opened(browser, small_page)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    copy = """async (text) => {
        const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
        await navigator.clipboard.write([new ClipboardItem({ "image/png": new Blob([bytes], { type: "image/png" }) })]);
    }"""
    page.evaluate(copy, base64.b64encode(photo_of((64, 48))).decode())
    page.keyboard.press("Control+V")
    page.locator("canvas[width='64']").wait_for()
    wait_for_result(page)

    (tmp_path / "photo.png").write_bytes(photo_of((120, 90)))
    (tmp_path / "notes.txt").write_text("no image")
    devtools = page.context.new_cdp_session(page)

    def drop(name):
        for type in ("dragEnter", "dragOver", "drop"):
            data = {"items": [], "files": [str(tmp_path / name)], "dragOperationsMask": 1}
            devtools.send("Input.dispatchDragEvent", {"type": type, "x": 100, "y": 100, "data": data})

    drop("photo.png")
    page.locator("canvas[width='120']").wait_for()
    wait_for_result(page)
    drop("notes.txt")
    page.get_by_text("this file is no image that the browser can read").wait_for()


@pytest.mark.slow
@in_browser
def test_keyboard_alone(small_page, browser, tmp_path):
    (tmp_path / "photo.png").write_bytes(photo_of((64, 48)))
    page = opened(browser, small_page)
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
    chooser.value.set_files(tmp_path / "photo.png")
    wait_for_result(page)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.locator("#viewfinder").wait_for()
    page.keyboard.press("Enter")
    page.locator("canvas:not([width='64'])").wait_for()
    wait_for_result(page)
    picture = "document.getElementById('view').toDataURL()"
    with_map = page.evaluate(picture)
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    assert not page.get_by_role("checkbox").is_checked()
    assert page.evaluate(picture) != with_map


@pytest.mark.slow
@in_browser
def test_narrow_screen_and_no_connection(small_page, browser):
    page = opened(browser, small_page, width=320)
    page.set_input_files("#file", files=[{"name": "a.png", "mimeType": "image/png", "buffer": photo_of((900, 200))}])
    wait_for_result(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    page.context.set_offline(False)
    tried = """new Promise((done) => {
        document.addEventListener("securitypolicyviolation", (event) => done(event.violatedDirective));
        fetch("http://127.0.0.1:9/").catch(() => {});
    })"""
    assert page.evaluate(tried) == "connect-src"


@pytest.mark.slow
@in_browser
def test_measures_on_the_device(small_page, browser, tmp_path):
    write_kit("browser", [small_page], tmp_path / "kit")
    page = opened(browser, tmp_path / "kit" / "model.html")
    page.evaluate("location.hash = '#measure'")  # as typed behind the address of the open page
    with page.expect_download() as download:
        page.get_by_text("download result.json").click()
    download.value.save_as(tmp_path / "result.json")
    (time,) = read_results([tmp_path / "result.json"])
    assert (time.file, time.runtime, time.threads) == ("model.html", "onnxruntime-web, WebAssembly", 1)
    assert "Chrome/" in time.device
    assert len(time.seconds) == 30


@pytest.mark.slow
@in_browser
@pytest.mark.skipif(not IMAGENETTE.is_dir(), reason="LINVIT_IMAGENETTE names no folder")
def test_a_hundred_photos_as_predict(package, browser, tmp_path):
    config = {"input_size": (3, 96, 96), "mean": (0.5,) * 3, "std": (0.25,) * 3}
    config |= {"interpolation": "bicubic", "crop_pct": 0.9}
    linvit.save_model(small_classifier(), tmp_path / "run", classes=CLASSES, input_config=config)
    model = linvit.load_model(tmp_path / "run")
    page = opened(browser, exported(tmp_path / "model.html", model, classes=CLASSES))
    predictor = ClassificationPredictor(model, device="cpu")
    differences, classes = [], set()
    for path in sorted(IMAGENETTE.glob("*/*"))[::39][:100]:
        found = page.evaluate(READ, base64.b64encode(path.read_bytes()).decode())
        (expected,) = predictor.predict([load_image(path)])
        probabilities = torch.tensor(found["outputs"]["logits"]).softmax(0)
        assert probabilities.argmax() == expected.probabilities.argmax(), path
        differences.append((probabilities - expected.probabilities).abs().max().item())
        classes.add(probabilities.argmax().item())
    print(f"largest difference of probabilities on {len(differences)} photos: {max(differences):.1e}")
    assert len(differences) == 100
    assert len(classes) > 1
    assert max(differences) < 1e-5


@pytest.mark.slow
@in_browser
def test_webgpu_where_it_computes_the_same(package, browser, launch, tmp_path):
    model = small_classifier()
    path = exported(tmp_path / "model.html", model, img_size=(64, 64), classes=CLASSES, webgpu=True)
    wrong = tmp_path / "wrong.html"  # as if no difference were small enough
    wrong.write_text(path.read_text().replace("TOLERANCE = 1e-3", "TOLERANCE = -1"))
    with torch.no_grad():
        expected = model(create_transform(**input_config(model, (64, 64)))(web.sample_image()).unsqueeze(0))
    software = launch(*SOFTWARE_WEBGPU)
    for used, file, runtime in (
        (software, path, "WebGPU"),
        (software, wrong, "WebAssembly"),
        (browser, path, "WebAssembly"),
    ):
        page = opened(used, file, "#selftest")
        assert said(page)["runtime"] == runtime
        assert page.text_content("#status").endswith(f"in {runtime}")
        torch.testing.assert_close(torch.tensor([said(page)["logits"]]), expected, rtol=1e-4, atol=1e-5)
        assert not page.errors


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "most"),
    [({}, 40), ({"webgpu": True}, 40), ({"precision": "int8", "calibration": torch.randn(2, 3, 224, 224)}, 20)],
    ids=["float32", "webgpu", "int8"],
)
def test_size_of_care_s0(package, tmp_path, options, most):
    torch.manual_seed(0)
    path = exported(tmp_path / "model.html", timm.create_model("care_s0"), img_size=(224, 224), bound=1, **options)
    print(f"{path.stat().st_size / 1e6:.1f} MB")
    assert path.stat().st_size <= most * 1e6


@pytest.mark.slow
@in_browser
def test_boxes_and_masks(package, browser, tmp_path):
    from linvit.heads.segmentation import Segmenter

    torch.manual_seed(0)
    backbone = {"depths": (1, 1, 1, 1), "dims": (4, 8, 16, 32), "layer_scale_init_value": 0.5}
    decoder = {"pyramid_channels": 32, "segmentation_channels": 32}
    segmenter = Segmenter(3, backbone_args=backbone, decoder_args=decoder).eval()
    segmenter.pretrained_cfg = {"mean": [0.5] * 3, "std": [0.25] * 3, "short_side": None}
    for name, model, outputs in (
        ("boxes", detector("retinanet"), ("boxes", "scores")),
        ("masks", segmenter, ("logits",)),
    ):
        path = exported(tmp_path / f"{name}.html", model, img_size=(64, 96), classes=["a", "b", "c", "d"])
        page = opened(browser, path, "#selftest")
        sample = create_transform(**input_config(model, (64, 96)))(web.sample_image()).unsqueeze(0)
        expected = find_format("web").load(path)(sample)
        for key, values in zip(outputs, expected, strict=True):
            torch.testing.assert_close(torch.tensor(said(page)[key]), values.flatten(), rtol=1e-3, atol=1e-3)
        assert f"show the {name}" in page.text_content("#what")
        assert page.locator("#results .row").count()
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
    with pytest.raises(ValueError, match="WebGPU computes float32 alone: leave out --webgpu, or --precision"):
        export_model(
            model,
            tmp_path / "m.html",
            "web",
            images,
            precision="int8",
            calibration=images,
            img_size=(32, 32),
            webgpu=True,
        )
    with pytest.raises(ValueError, match="knows no WebGPU: leave out --webgpu"):
        export_model(model, tmp_path / "m.onnx", "onnx", images, img_size=(32, 32), webgpu=True)
    assert not list(tmp_path.iterdir())
