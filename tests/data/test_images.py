"""Every kind of image file becomes upright 8-bit RGB, every other file one clear line."""

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from linvit.data.images import IMAGE_EXTENSIONS, UnreadableImage, find_images, image_size, load_image

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def pixels(path: Path) -> np.ndarray:
    image = load_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


def write(path: Path, values: np.ndarray | list, mode: str | None = None, **options: Any) -> Path:
    image = Image.fromarray(np.asarray(values))
    assert mode in (None, image.mode)
    image.save(path, **options)
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    upright = np.array([[10, 20, 30], [40, 50, 60]], dtype=np.uint8)
    stored = {  # The tag tells which sides of the upright picture the first stored row and column are.
        1: upright,  # top, left
        2: upright[:, ::-1],  # top, right
        3: upright[::-1, ::-1],  # bottom, right
        4: upright[::-1],  # bottom, left
        5: upright.T,  # left, top
        6: upright.T[::-1],  # right, top
        7: upright.T[::-1, ::-1],  # right, bottom
        8: upright.T[:, ::-1],  # left, bottom
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = write(tmp_path / "a.png", np.ascontiguousarray(stored), exif=exif)
    assert pixels(path)[..., 0].tolist() == upright.tolist()


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_broken_exif_does_not_cost_the_pixels(tmp_path: Path, name: str) -> None:
    Image.new("RGB", (8, 8), (200, 200, 200)).save(tmp_path / name, exif=b"Exif\0\0garbage that is no TIFF header")
    assert abs(pixels(tmp_path / name).astype(int) - 200).max() <= 2


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_sixteen_bit_gray_is_scaled(tmp_path: Path, name: str) -> None:
    values = np.array([[0, 257, 1000, 32768, 65535]], dtype=np.uint16)
    path = write(tmp_path / name, values, "I;16")
    assert pixels(path)[0].tolist() == [[v] * 3 for v in (0, 1, 4, 128, 255)]


def test_big_endian_sixteen_bit_gray_is_scaled(tmp_path: Path) -> None:
    data = np.array([[0, 1000, 65535]], dtype=">u2").tobytes()
    Image.frombytes("I;16B", (3, 1), data).save(tmp_path / "a.tif")
    assert pixels(tmp_path / "a.tif")[0, :, 0].tolist() == [0, 4, 255]


def test_sixteen_bits_in_thirty_two_are_scaled(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", np.array([[0, 257, 32768, 65535]], dtype=np.int32), "I")
    assert pixels(path)[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.array([[0, 70000]], dtype=np.int32), "beyond 0 to 65535"),
        (np.array([[-1, 7]], dtype=np.int32), "beyond 0 to 65535"),
        (np.array([[0.0, 0.5]], dtype=np.float32), "floating-point"),
    ],
)
def test_gray_without_a_known_range_is_refused(tmp_path: Path, values: np.ndarray, reason: str) -> None:
    with pytest.raises(UnreadableImage, match=reason):
        load_image(write(tmp_path / "a.tif", values))


def test_transparent_pixels_become_white(tmp_path: Path) -> None:
    rgba = np.array([[[*RED, 255], [*RED, 0], [*BLUE, 51]]], dtype=np.uint8)
    assert pixels(write(tmp_path / "a.png", rgba, "RGBA"))[0].tolist() == [list(RED), list(WHITE), [204, 204, 255]]
    gray = np.array([[[7, 255], [7, 0]]], dtype=np.uint8)
    assert pixels(write(tmp_path / "b.png", gray, "LA"))[0].tolist() == [[7] * 3, list(WHITE)]


@pytest.mark.parametrize("transparency", [1, bytes([255, 0, 255])], ids=["one entry", "table"])
def test_palette_with_transparency(tmp_path: Path, transparency: int | bytes) -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([*RED, *GREEN, *BLUE])
    image.putdata([0, 1, 2])
    image.save(tmp_path / "a.png", transparency=transparency)
    assert pixels(tmp_path / "a.png")[0].tolist() == [list(RED), list(WHITE), list(BLUE)]


def test_palette_gif_takes_the_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (5, 4), colour) for colour in (RED, GREEN)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert np.unique(pixels(tmp_path / "a.gif").reshape(-1, 3), axis=0).tolist() == [list(RED)]


def test_cmyk_colours(tmp_path: Path) -> None:
    inks = {"white": (0, 0, 0, 0), "red": (0, 255, 255, 0), "black": (0, 0, 0, 255), "cyan": (255, 0, 0, 0)}
    wanted = {"white": WHITE, "red": RED, "black": (0, 0, 0), "cyan": (0, 255, 255)}
    for name, ink in inks.items():
        Image.new("CMYK", (8, 8), ink).save(tmp_path / f"{name}.jpg", quality=100)
        assert abs(pixels(tmp_path / f"{name}.jpg").astype(int) - wanted[name]).max() <= 3, name


@pytest.mark.parametrize(("mode", "value"), [("1", 255), ("L", 77), ("RGB", 77), ("P", 3), ("CMYK", 0), ("RGBA", 0)])
@pytest.mark.parametrize("size", [(1, 1), (37, 1013)])
def test_any_mode_and_size(tmp_path: Path, mode: str, value: int, size: tuple[int, int]) -> None:
    path = tmp_path / "a.tif"
    Image.new(mode, size, value).save(path)
    assert load_image(path).size == size
    assert load_image(path).mode == "RGB"


def test_unreadable_files_are_named_with_the_reason(tmp_path: Path) -> None:
    noise = np.random.RandomState(0).randint(0, 256, (64, 64, 3)).astype(np.uint8)
    whole = write(tmp_path / "whole.jpg", noise).read_bytes()
    (tmp_path / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "head.jpg").write_bytes(whole[:30])
    (tmp_path / "text.jpg").write_text("this is no image\n" * 20)
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "folder.jpg").mkdir()
    png = write(tmp_path / "whole.png", noise).read_bytes()
    (tmp_path / "truncated.png").write_bytes(png[: len(png) // 2])
    (tmp_path / "damaged.png").write_bytes(png[:60] + b"\0" * 40 + png[100:])
    reasons = {
        "truncated.jpg": "truncated",
        "head.jpg": "",
        "text.jpg": "not an image",
        "empty.jpg": "empty",
        "folder.jpg": "Is a directory",
        "truncated.png": "truncated",
        "damaged.png": "",
        "missing.jpg": "No such file",
    }
    for name, reason in reasons.items():
        with pytest.raises(UnreadableImage) as caught:
            load_image(tmp_path / name)
        message = str(caught.value)
        assert message.startswith(f"cannot read image {tmp_path / name}: "), message
        assert reason in message
        assert len(message.splitlines()) == 1
        assert message.count(str(tmp_path)) == 1


def test_unreadable_image_survives_workers() -> None:
    line = "cannot read image x.jpg: empty"
    trace = (
        f"Caught UnreadableImage in worker.\nTraceback:\n  File 'a.py'\nlinvit.data.images.UnreadableImage: {line}\n"
    )
    assert str(UnreadableImage(trace)) == line
    assert str(pickle.loads(pickle.dumps(UnreadableImage(line)))) == line


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ["b.JPG", "a.png", "sub/deep/c.jpeg", "sub/notes.txt", ".hidden.png", ".cache/d.png", "img[1].png"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def names(root: Path, found: list[Path]) -> list[str]:
    return [str(path.relative_to(root)) for path in found]


def test_find_images_in_folders_globs_and_files(photos: Path) -> None:
    everything = ["a.png", "b.JPG", "img[1].png", "sub/deep/c.jpeg"]
    assert names(photos, find_images([str(photos)])) == everything
    assert names(photos, find_images([f"{photos}/*"])) == everything
    assert names(photos, find_images([f"{photos}/**"])) == everything
    assert names(photos, find_images([f"{photos}/*.png"])) == ["a.png", "img[1].png"]
    assert names(photos, find_images([f"{photos}/**/*.jpeg"])) == ["sub/deep/c.jpeg"]
    assert names(photos, find_images([f"{photos}/img[1].png"])) == ["img[1].png"]
    assert names(photos, find_images([f"{photos}/sub/notes.txt"])) == ["sub/notes.txt"], (
        "a named file is taken as it is"
    )


def test_find_images_names_each_image_once(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos)
    arguments = ["b.JPG", str(photos / "b.JPG"), "./sub/../b.JPG", "*.JPG", "a.png"]
    assert find_images(arguments) == [Path("a.png"), Path("b.JPG")]


@pytest.mark.parametrize("argument", ["nothing.jpg", "*.bmp", "sub/deep/deeper", "bare"])
def test_find_images_names_the_argument_without_images(
    photos: Path, argument: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos)
    (photos / "bare").mkdir()
    with pytest.raises(FileNotFoundError) as caught:
        find_images(["a.png", argument])
    assert f"'{argument}'" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_linked_folders_are_searched(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    (other / "linked").symlink_to(photos / "sub")
    assert names(other, find_images([str(other)])) == ["linked/deep/c.jpeg"]


def test_extensions_are_what_pillow_opens() -> None:
    heic = {".heic", ".heif", ".hif"}  # read by a library of its own
    assert set(IMAGE_EXTENSIONS) - heic <= set(Image.registered_extensions())


def test_reading_images_does_not_import_lightning() -> None:
    code = "import sys, linvit.data.images; sys.exit('lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("least_side", "size"),
    [(None, (1600, 1200)), (1200, (1600, 1200)), (600, (800, 600)), (500, (800, 600)), (9, (200, 150))],
)
def test_large_photos_may_be_decoded_smaller(tmp_path: Path, least_side: int | None, size: tuple[int, int]) -> None:
    image = Image.linear_gradient("L").resize((1600, 1200)).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    image.save(tmp_path / "photo.jpg", exif=exif)
    image.save(tmp_path / "photo.png")
    found = load_image(tmp_path / "photo.jpg", least_side=least_side)
    assert found.size == size[::-1]
    whole = load_image(tmp_path / "photo.jpg").resize(found.size, Image.Resampling.BOX)
    assert np.abs(np.asarray(found, dtype=int) - np.asarray(whole)).max() <= 3
    assert load_image(tmp_path / "photo.png", least_side=least_side).size == (1600, 1200)
    assert load_image("photo", (tmp_path / "photo.jpg").read_bytes(), least_side).size == found.size


def write_heic(path: Path) -> Path:
    pillow_heif = pytest.importorskip("pillow_heif", reason='HEIC needs: pip install "linvit[heic]"')
    pixels = np.zeros((40, 60, 3), dtype=np.uint8)
    pixels[:, :30] = (200, 40, 40)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, as phones write it
    pillow_heif.from_pillow(Image.fromarray(pixels)).save(path, exif=exif.tobytes(), quality=95)
    return path


def test_photos_of_phones_are_read_upright(tmp_path: Path) -> None:
    path = write_heic(tmp_path / "IMG_0001.HEIC")
    disguised = path.with_suffix(".jpg")  # as some programs send them
    disguised.write_bytes(path.read_bytes())
    for each in find_images([str(tmp_path)]):
        image = load_image(each)
        assert (image.mode, image.size) == ("RGB", (40, 60))
        top, bottom = np.asarray(image)[10, 20], np.asarray(image)[50, 20]
        assert abs(top.astype(int) - (200, 40, 40)).max() < 12
        assert bottom.max() < 12
        assert image_size(each, upright=True) == (40, 60)
    assert load_image("in/an/archive", path.read_bytes()).size == (40, 60)


def test_without_its_library_a_heic_file_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_heic(tmp_path / "a.heic")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name != "HEIF"])
    with pytest.raises(UnreadableImage, match=r'a\.heic: it is HEIC, which needs: pip install "linvit\[heic\]"$'):
        load_image(path)


def test_jpeg_2000_is_found_and_read(tmp_path: Path) -> None:
    for name in ("a.jp2", "b.J2K"):
        Image.new("RGB", (20, 10), (10, 200, 30)).save(tmp_path / name, "JPEG2000")
    found = find_images([str(tmp_path)])
    assert [path.name for path in found] == ["a.jp2", "b.J2K"]
    assert all(load_image(path).getpixel((3, 3)) == (10, 200, 30) for path in found)


def test_links_that_lead_back_end(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "up").symlink_to(tmp_path)
    (tmp_path.parent / f"{tmp_path.name}-other").mkdir()
    other = tmp_path.parent / f"{tmp_path.name}-other"
    Image.new("RGB", (2, 2)).save(other / "b.png")
    (tmp_path / "linked").symlink_to(other)
    assert [path.name for path in find_images([str(tmp_path)])] == ["a.png", "b.png"]


def test_a_pipe_is_no_image(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(UnreadableImage, match=r"a\.png is a pipe or a device, not a file"):
        load_image(tmp_path / "a.png")
    assert image_size(tmp_path / "a.png") is None
