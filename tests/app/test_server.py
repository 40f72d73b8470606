"""What the page's server answers, and what it refuses."""

import http.client
import io
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import linvit
from linvit.app.cost import measure_cost
from linvit.app.uploads import MOST_BYTES, Uploads, read_upload
from linvit.app.viewer import paint
from linvit.heads.detection import DetectionModel
from tests.conftest import CLASSES, INPUT, Said


def call(address: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, Any, Any]:
    """Return the status of an answer, what is in it, and its headers."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
    content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    connection.request("GET" if body is None else "POST", path, content, headers or {})
    answer = connection.getresponse()
    raw = answer.read()
    kind = answer.headers["Content-Type"]
    connection.close()
    return answer.status, json.loads(raw) if kind == "application/json" else raw, answer.headers


def png(size: tuple[int, int] = (40, 30), color: tuple[int, int, int] = (200, 30, 30)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, format="PNG")
    return file.getvalue()


def give(address: str, content: bytes | None = None) -> str:
    status, found, _ = call(address, "/api/image", content or png())
    assert status == 200, found
    return found["image"]


def model_of(address: str, name: str) -> str:
    return next(each["id"] for each in call(address, "/api/start")[1]["models"] if each["name"] == name)


def test_an_image_is_classified_and_looked_into(address: str) -> None:
    image = give(address)
    for name, layers in (("small", 2), ("converted", 3)):
        asked = {"image": image, "model": model_of(address, name)}
        classes = call(address, "/api/predict", asked)[1]["classes"]
        assert {each["class"] for each in classes} == {"ant", "bee", "cat"}
        assert sum(each["probability"] for each in classes) == pytest.approx(1, abs=1e-5)
        for kind in ("mixing", "attention", "received"):
            status, found, _ = call(address, "/api/look", asked | {"x": 20, "y": 15, "kind": kind})
            assert status == 200, found
            assert len(found["layers"]) == layers
            assert all(each["picture"].startswith("data:image/png;base64,") for each in found["layers"])


def test_files_of_the_page_may_fetch_nothing_from_elsewhere(address: str) -> None:
    for path in ("/", "/page.js", "/page.css"):
        status, content, headers = call(address, path)
        assert status == 200
        assert b"http://" not in content
        assert b"https://" not in content
        assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert call(address, "/../server.py")[0] == 404
    assert call(address, "/nothing")[0] == 404


def test_other_sites_are_refused(address: str) -> None:
    for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Host": "evil.example:80"}):
        status, found, _ = call(address, "/api/sample", {"name": "portrait"}, headers)
        assert (status, found["error"]) == (403, "this server answers to its own page alone")
    assert call(address, "/api/start", None, {"Host": "evil.example"})[0] == 403


def animation() -> bytes:
    file = io.BytesIO()
    frames = [Image.new("RGB", (20, 20), (i * 60, 0, 0)) for i in range(3)]
    frames[0].save(file, format="GIF", save_all=True, append_images=frames[1:])
    return file.getvalue()


def huge() -> bytes:
    file = io.BytesIO()
    Image.new("1", (7000, 7000)).save(file, format="PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no image at all", "this is no image that can be read"),
        (png()[:60], "this file"),
        (b"", "the file is empty"),
        (huge(), "the image has 7000 x 7000 pixels; at most 40 million pixels are taken"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "this is no image that can be read"),
    ],
    ids=["text", "truncated", "empty", "huge", "svg"],
)
def test_bad_files_get_one_message_and_the_page_goes_on(address: str, content: bytes, message: str) -> None:
    status, found, _ = call(address, "/api/image", content)
    assert status == 400
    assert message in found["error"]
    assert "\n" not in found["error"]
    assert give(address)


def test_uploads_that_are_too_large_are_not_read(address: str) -> None:
    status, found, _ = call(address, "/api/image", b"", {"Content-Length": str(MOST_BYTES + 1)})
    assert (status, found["error"]) == (413, "the file has 20 MB; at most 20 MB are taken")
    assert call(address, "/api/look", {"image": "x" * 20_000})[0] == 413


def test_animations_show_their_first_frame_and_large_images_are_shrunk() -> None:
    image, note = read_upload(animation())
    assert image.getpixel((0, 0)) == (0, 0, 0)
    assert note == "an animation of 3 frames: its first is shown"
    image, note = read_upload(png((3200, 37)))
    assert image.size == (1600, 18) or image.size == (1600, 19)
    assert "of 3200 x 37 pixels" in note
    assert read_upload(png((1013, 37)))[1] == ""


def test_an_image_belongs_to_who_gave_it(address: str) -> None:
    mine, yours = give(address), give(address, png(color=(0, 0, 250)))
    assert mine != yours
    assert len(mine) >= 20
    seen = Image.open(io.BytesIO(call(address, f"/api/image/{mine}")[1]))
    assert seen.getpixel((0, 0)) == (200, 30, 30)
    assert mine not in json.dumps(call(address, "/api/start")[1])
    status, found, _ = call(address, f"/api/image/{mine[:-1]}")
    assert (status, found["error"]) == (400, "this image is not kept any more: give it again")


def test_old_images_are_dropped() -> None:
    uploads = Uploads(most=2)
    names = [uploads.add(Image.new("RGB", (i, 1))) for i in (1, 2, 3)]
    assert uploads.get(names[2]).width == 3
    with pytest.raises(ValueError, match="not kept any more"):
        uploads.get(names[0])


def test_wrong_models_get_one_message(address: str, tmp_path: Path, run_folder: Path) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"nothing")
    empty = tmp_path / "empty"
    empty.mkdir()
    for path, message in (
        ("nowhere", "there is no run folder or checkpoint file at 'nowhere'"),
        ("", "there is no run folder or checkpoint file at ''"),
        (str(broken), "broken.safetensors"),
        (str(empty), "is no run folder"),
    ):
        status, found, _ = call(address, "/api/model", {"path": path})
        assert status == 400
        assert message in found["error"]
    status, found, _ = call(address, "/api/model", {"path": str(run_folder)})
    assert (status, found["name"]) == (200, "small")
    asked = {"image": give(address), "model": found["id"]}
    assert "classes" in call(address, "/api/predict", asked)[1]


def test_masks_are_shown_where_the_model_is_a_segmenter(address: str, segmenter_folder: Path) -> None:
    status, found, _ = call(address, "/api/model", {"path": str(segmenter_folder)})
    assert (status, found.get("task")) == (200, "segment"), found
    asked = {"image": give(address), "model": found["id"]}
    said = call(address, "/api/predict", asked)[1]
    assert said["picture"].startswith("data:image/png;base64,")
    assert sum(each["share"] for each in said["legend"]) == pytest.approx(1)
    assert all(re.fullmatch("#[0-9a-f]{6}", each["colour"]) for each in said["legend"])
    assert call(address, "/api/look", asked | {"x": 39, "y": 29, "kind": "mixing"})[1]["layers"]


def test_boxes_are_shown_where_the_model_is_a_detector(address: str, tmp_path: Path) -> None:
    small = {"depths": (1, 1, 1, 1), "dims": (4, 8, 16, 32), "layer_scale_init_value": 0.5}
    model = DetectionModel(2, "retinanet", backbone_args=small, size=64, max_size=96, anchor_size=16, channels=8)
    linvit.save_model(model, tmp_path / "run", classes=["cell", "atom"], input_config={})
    status, found, _ = call(address, "/api/model", {"path": str(tmp_path / "run")})
    assert (status, found.get("task")) == (200, "detect"), found
    asked = {"image": give(address), "model": found["id"]}
    said = call(address, "/api/predict", asked)[1]
    assert said["picture"].startswith("data:image/png;base64,")
    assert said["found"] == {"found": "nothing", "best": "-"}
    assert call(address, "/api/look", asked | {"x": 39, "y": 29, "kind": "mixing"})[1]["layers"]


def test_outputs_that_are_not_finite_get_one_message(address: str, tmp_path: Path, run_folder: Path) -> None:
    model = linvit.load_model(run_folder)
    torch.nn.init.uniform_(next(model.parameters()), -1.6e38, 1.6e38)  # finite, and sums of its products are not
    linvit.save_model(model, tmp_path / "run")
    found = call(address, "/api/model", {"path": str(tmp_path / "run")})[1]
    status, said, _ = call(address, "/api/predict", {"image": give(address), "model": found["id"]})
    assert (status, said["error"]) == (400, "the model's outputs are not finite (NaN or infinite)")


@pytest.mark.parametrize(
    ("path", "asked", "message"),
    [
        ("/api/look", {"x": 500, "y": 3, "kind": "mixing"}, "pixel 500,3 lies outside the image"),
        ("/api/look", {"x": 5, "y": 3, "kind": "nothing"}, "kind must be one of mixing, attention, received"),
        ("/api/look", {"x": "5", "y": 3, "kind": "mixing"}, "the request has no number x"),
        ("/api/predict", {"model": "unknown"}, "this model is not loaded any more"),
        ("/api/predict", {"image": 3}, "the request has no image"),
        ("/api/cost", {"size": 100}, "size must be one of 128, 256"),
        ("/api/sample", {"name": "../x"}, "there is no sample '../x'"),
    ],
)
def test_wrong_questions_get_one_message(address: str, path: str, asked: dict[str, Any], message: str) -> None:
    asked = {"image": give(address), "model": model_of(address, "small")} | asked
    status, found, _ = call(address, path, asked)
    assert status == 400
    assert message in found["error"]
    assert call(address, path, b"{")[0] == 400


def test_cost_is_measured() -> None:
    found = measure_cost(128, rounds=1)
    assert found["tokens"] == 64
    assert [row["kind"] for row in found["rows"]] == ["linear", "focused linear", "softmax"]
    assert all(row["milliseconds"] > 0 for row in found["rows"])


def test_maps_lie_over_the_image_where_they_belong() -> None:
    values = np.zeros((2, 2), dtype=np.float32)
    values[1, 0] = 1
    painted = np.asarray(paint(Image.new("RGB", (320, 320)), values, (320, 320))).astype(int)
    assert painted[300, 20].sum() > 200 > painted[20, 300].sum()
    beyond = np.asarray(paint(Image.new("RGB", (320, 240)), values, (320, 320)))
    assert beyond.shape == (240, 320, 3), "what lies beyond the image is cut off"


def test_wrong_arguments_of_the_command_are_one_line(linvit_command: Any, tmp_path: Path) -> None:
    for arguments, message in (
        ([tmp_path / "none"], "none"),
        (["--port", "70000"], "--port must be from 0 to 65535, got 70000"),
    ):
        said: Said = linvit_command("app", "--no-browser", *arguments)
        assert said.code == 2
        assert message in said.err
        assert len(said.err.strip().splitlines()) == 1


def test_a_port_that_is_taken_is_one_line(linvit_command: Any, address: str, run_folder: Path) -> None:
    port = address.rpartition(":")[2]
    said: Said = linvit_command("app", "--no-browser", "--port", port, run_folder)
    assert said.code == 2
    assert f"--port {port} is not to be had (Address already in use): 0 takes any free one" in said.err


def test_models_without_attention_are_refused(linvit_command: Any, tmp_path: Path) -> None:
    model = timm.create_model("test_resnet", num_classes=3)
    linvit.save_model(model, tmp_path / "resnet", classes=CLASSES, input_config=INPUT)
    said: Said = linvit_command("app", "--no-browser", tmp_path / "resnet")
    assert said.code == 2
    assert "has no attention that linvit can look into" in said.err
