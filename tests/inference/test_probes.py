"""kNN and linear probe: equal to an independent count, of any model and stage, with what they cost."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch.nn import functional as F

import linvit
from linvit.heads.segmentation import Segmenter
from linvit.inference import probes
from linvit.inference.probes import fit_linear, knn_votes, linear_probe
from tests.conftest import COLORS, INPUT


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of noisy colours: 20 images each to know, 10 to judge; one of each part is unreadable."""
    root = tmp_path_factory.mktemp("colours")
    random = np.random.default_rng(0)
    for part, count in (("train", 20), ("val", 10)):
        for name, color in COLORS.items():
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(random.normal(color, 120, (36, 40, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{number}.png")
        (root / part / "cat" / "broken.png").write_text("no image")
    return root


@pytest.mark.parametrize("stage", [None, 2, -1])
def test_knn_is_an_independent_count(
    run_folder: Path, colours: Path, stage: int | None, linvit_command: Callable[..., Any]
) -> None:
    given = ["eval", run_folder, colours, "--knn", "--neighbours", 5, "--workers", 0, "--json"]
    said = linvit_command(*given, *([] if stage is None else ["--stage", stage])).json

    model: Any = timm.create_model(f"local-dir:{run_folder}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    known, asked = {}, {}
    for part, found in (("train", known), ("val", asked)):
        for path in sorted((colours / part).glob("*/[0-9]*.png")):
            image = transform(Image.open(path))[None]
            with torch.no_grad():
                x = model.forward_intermediates(image, intermediates_only=True)[stage].mean((2, 3)) if stage else (
                    model.forward_head(model.forward_features(image), pre_logits=True))  # fmt: skip
            found[path] = F.normalize(x[0].double(), dim=0).numpy()
    right = 0
    for path, x in asked.items():
        nearest = sorted(((float(x @ y), other.parent.name) for other, y in known.items()), reverse=True)[:5]
        votes: dict[str, float] = {}
        for similarity, name in nearest:
            votes[name] = votes.get(name, 0) + np.exp(similarity / 0.07)
        right += max(votes, key=lambda name: votes[name]) == path.parent.name

    assert said["knn"]["top1"] == pytest.approx(right / 30)
    assert said["images"] == {"train": 60, "val": 30}
    assert len(said["unreadable"]) == 2
    assert said["width"] == (64 if stage == 2 else 512)
    assert said["feature_bytes"] == 90 * said["width"] * 4
    assert said["knn"]["top1"] > 1 / 3


def test_votes_do_not_depend_on_how_many_are_held_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    bank, queries = torch.randn(50, 8, generator=generator), torch.randn(20, 8, generator=generator)
    targets = torch.arange(50) % 3
    whole = knn_votes(bank, targets, queries, 3)
    monkeypatch.setattr(probes, "CHUNK", 150)
    torch.testing.assert_close(knn_votes(bank, targets, queries, 3), whole)
    few = knn_votes(bank[:2], targets[:2], queries, 3)
    assert torch.equal((few > 0).sum(1), torch.full((20,), 2)), "all vote where there are fewer than 20"
    for k, temperature in ((0, 0.07), (20, 0.0)):
        with pytest.raises(ValueError, match="must be above 0"):
            knn_votes(bank, targets, queries, 3, k, temperature)


def test_linear_classifiers_are_those_of_plain_sgd() -> None:
    generator = torch.Generator().manual_seed(0)
    x, targets = torch.randn(40, 6, generator=generator), torch.arange(40) % 4
    found = fit_linear(x, targets, 4, [0.1, 1.0], epochs=3, batch_size=16, seed=5)
    for index, lr in enumerate((0.1, 1.0)):
        layer = torch.nn.Linear(6, 4)
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
        sgd = torch.optim.SGD(layer.parameters(), lr / 7**0.5, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, 9)
        order = torch.Generator().manual_seed(5)
        for _ in range(3):
            for chosen in torch.randperm(40, generator=order).split(16):
                sgd.zero_grad()
                F.cross_entropy(layer(x[chosen]), targets[chosen]).backward()
                sgd.step()
                schedule.step()
        torch.testing.assert_close(found[index, :6], layer.weight.detach().T, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found[index, 6], layer.bias.detach(), rtol=1e-4, atol=1e-6)


def test_linear_probe_chooses_its_rate_without_the_queries() -> None:
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(400) % 4
    x = torch.randn(400, 16, generator=generator) + 2 * F.one_hot(targets, 16)
    found = linear_probe(100 * x[:300] + 7, targets[:300], 100 * x[300:] + 7, 4, (1e-6, 0.1, 1e4))
    assert found.held_out_top1[found.lr] == max(found.held_out_top1.values()) > min(found.held_out_top1.values())
    assert float((found.logits.argmax(1) == targets[300:]).float().mean()) > 0.75
    other = linear_probe(100 * x[:300] + 7, targets[:300], x[300:301] * 0, 4, (1e-6, 0.1, 1e4))
    assert (other.lr, other.held_out_top1) == (found.lr, found.held_out_top1)


def test_any_model_is_judged_and_says_what_it_cost(
    colours: Path, tmp_path: Path, linvit_command: Callable[..., Any]
) -> None:
    torch.manual_seed(0)
    segmenter = Segmenter(3, backbone="test_convnext")
    masks = INPUT | {"values": [0, 1, 2], "ignore": [], "short_side": None}
    linvit.save_model(segmenter, tmp_path / "segment", classes=["a", "b", "c"], input_config=masks)
    backbone = timm.create_model("test_vit", num_classes=0, img_size=32)
    linvit.save_model(backbone, tmp_path / "backbone", classes=[], input_config=INPUT)
    for folder in ("segment", "backbone"):
        said = linvit_command("eval", tmp_path / folder, colours, "--knn", "--linear", "--img-size", 32, "--workers", 0)
        assert said.code == 0, said.err
        for word in ("kNN top-1", "linear top-1", "of features", "s for the features", "60 known images, 30 held out"):
            assert word in said.out, word


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (("--knn", "--stage", 9), "stage must be from 0 to 3"),
        (("--stage", 1), "--stage is for --knn and --linear"),
        (("--knn", "--per-class", "x.csv"), "unrecognized arguments: --per-class"),
    ],
)
def test_what_is_wrong_is_one_line(
    run_folder: Path, colours: Path, given: tuple[Any, ...], error: str, linvit_command: Callable[..., Any]
) -> None:
    said = linvit_command("eval", run_folder, colours, *given)
    assert said.code == 2
    assert error in said.err
