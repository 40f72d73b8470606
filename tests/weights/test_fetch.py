"""Published weights: fetched, kept, checked; and one clear line where they cannot be."""

import io
import re

import huggingface_hub.constants
import pytest
import timm
import torch

from tests.golden import load_golden, relative_error
from tests.hub import serve_hub

REPO = "YuanZ1995/CARE-Transformer"


@pytest.fixture(scope="module")
def golden():
    return load_golden("care_s0")


@pytest.fixture(scope="module")
def published(golden) -> bytes:
    """The bytes of a file such as the authors publish."""
    buffer = io.BytesIO()
    weights = {k: v.float() if v.is_floating_point() else v for k, v in golden["weights"].items()}
    torch.save({"model": weights, "epoch": 299}, buffer)
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    """Empty caches of our own, and no way to the real hub."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setenv("TQDM_POSITION", "-1")  # show progress bars although this is no terminal
    use_endpoint(monkeypatch, "http://127.0.0.1:9")  # nothing listens there
    return tmp_path


def use_endpoint(monkeypatch, endpoint: str) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(
        huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )


@pytest.mark.parametrize("filename", ["CARETrans_S0.pth.tar", "care_s0_224.pth"])
def test_fetches_by_name_or_by_size_then_works_offline(monkeypatch, capfd, golden, published, filename):
    files = {filename: published, "CARETrans_S1.pth.tar": b"another model", "README.md": b"# CARE S0"}
    with serve_hub(REPO, files) as endpoint:
        use_endpoint(monkeypatch, endpoint)
        model = timm.create_model("care_s0", pretrained=True).eval()
    assert filename in capfd.readouterr().err  # the progress bar
    with torch.no_grad():
        assert relative_error(model(golden["images"].float())[0], golden["logits"]) < 1e-5
    assert "state_dict" not in model.pretrained_cfg

    use_endpoint(monkeypatch, "http://127.0.0.1:9")
    again = timm.create_model("care_s0", pretrained=True)
    assert torch.equal(again.head.fc.weight, model.head.fc.weight)


def test_a_file_put_by_hand_comes_first(caches, golden, published):
    folder = caches / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "CARETrans_S0.pth.tar").write_bytes(published)
    model = timm.create_model("care_s0", pretrained=True, num_classes=10, in_chans=1)
    expected = golden["weights"]["stem.0.weight"].sum(dim=1, keepdim=True).float()
    torch.testing.assert_close(model.stem[0].weight, expected)
    assert model.head.fc.weight.shape == (10, 1024)
    features = timm.create_model("care_s0", pretrained=True, features_only=True)
    torch.testing.assert_close(features.stem_0.weight, golden["weights"]["stem.0.weight"].float())


def test_no_network_says_what_to_download_and_where_to_put_it(caches):
    with pytest.raises(ConnectionError) as error:
        timm.create_model("care_s0", pretrained=True)
    message = str(error.value)
    assert "\n" not in message
    assert f"whose name carries S0 from https://huggingface.co/{REPO} by hand" in message
    assert str(caches / "hub" / "checkpoints" / "CARETrans_S0.pth.tar") in message


def test_a_repository_without_the_file_says_what_it_holds(monkeypatch):
    with serve_hub(REPO, {"README.md": b"S0", "CARETrans_S2.pth.tar": b""}) as endpoint:
        use_endpoint(monkeypatch, endpoint)
        with pytest.raises(ConnectionError, match=r"no weights file that carries S0 among README.md, CARETrans_S2"):
            timm.create_model("care_s0", pretrained=True)


def test_a_damaged_transfer_is_removed(monkeypatch, caches, published):
    name = "CARETrans_S0.pth.tar"
    with serve_hub(REPO, {name: published[:-9] + b"tampered!"}, announced={name: published}) as endpoint:
        use_endpoint(monkeypatch, endpoint)
        with pytest.raises(ValueError, match=r"SHA-256 differs"):
            timm.create_model("care_s0", pretrained=True)
    assert not list((caches / "hf").rglob(f"snapshots/*/{name}"))


def test_a_published_file_of_another_model_is_refused(caches, published):
    folder = caches / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "CARETrans_S2.pth.tar").write_bytes(published)
    with pytest.raises(ValueError, match=r"does not fit care_s2, nothing was loaded: \d+ missing: stages.0.blocks.2"):
        timm.create_model("care_s2", pretrained=True)


def test_pretrained_cfg_overlay_takes_a_file(tmp_path, golden, published):
    path = tmp_path / "mine.pth"
    path.write_bytes(published)
    model = timm.create_model("care_s0", pretrained=True, pretrained_cfg_overlay={"file": str(path)})
    torch.testing.assert_close(model.head.fc.bias, golden["weights"]["head.fc.bias"].float())
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "absent.pth"))):
        timm.create_model("care_s0", pretrained=True, pretrained_cfg_overlay={"file": str(tmp_path / "absent.pth")})
