"""Learning features without labels: what is compared and by how much, what is kept, and that a run goes on."""

import json
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
from linvit.cli.main import main
from linvit.data import PretrainData
from linvit.heads.detection import DetectionModel
from linvit.heads.features import bare
from linvit.heads.segmentation import Segmenter
from linvit.tasks import ClassificationTask, PretrainTask
from linvit.tasks.features import Explained, paired
from linvit.tasks.teacher_cache import TeacherCache
from tests.cli.test_train import metrics, same_run, signal_once
from tests.conftest import file_limit
from tests.tasks.test_classification import trainer

TINY: dict[str, Any] = {"depths": (1, 1, 1, 1), "dims": (4, 4, 16, 32), "layer_scale_init_value": 0.5}
VIT: dict[str, Any] = {"img_size": 48, "patch_size": 16, "embed_dim": 24, "depth": 4, "num_heads": 2}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 20 photos of blobs at several depths."""
    root = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for number in range(20):
        small = Image.fromarray(random.integers(0, 255, (4, 4, 3)).astype(np.uint8))
        path = root / ("flat" if number % 2 else "nested/deep") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        small.resize((60, 50)).save(path)
    return root


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a convolutional classifier that sees 48 pixels, normalised in its own way."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("runs") / "teacher"
    model = timm.create_model("test_efficientnet", num_classes=3)
    config = {"input_size": (3, 48, 48), "mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7)}
    linvit.save_model(model, folder, classes=["a", "b", "c"], input_config=config)
    return folder


def arguments(photos: Path, teacher: Path, out: Path, *more: str) -> list[str]:
    given = {
        "task": "pretrain",
        "data.root": photos,
        "data.img_size": 32,
        "data.batch_size": 4,
        "data.workers": 0,
        "data.val_share": 0.2,
        "model.model_args": json.dumps(TINY | {"drop_path_rate": 0.1}),
        "model.teacher": teacher,
        "model.lr": 3e-3,
        "trainer.accelerator": "cpu",
        "trainer.max_epochs": 3,
        "out": out,
    }
    return ["train", *(f"--{name}={value}" for name, value in given.items()), *more]


ROUGH = ("--model.ema_decay=0.8", "--model.cache=true", "--data.views=2")


@pytest.fixture(scope="module")
def run(photos: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Learn for three epochs."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert main(arguments(photos, teacher, out, *ROUGH)) == 0
    return out


# What is compared


def model(name: str) -> Any:
    return timm.create_model(name, **(TINY if name == "care_s0" else VIT if name.startswith("vit") else {}))


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        ("care_s0", "test_efficientnet", [(4, 4), (8, 8), (16, 16), (32, 32)]),
        ("care_s0", "vit_tiny_patch16_224", [(0, 0), (1, 1), (2, 2), (3, 3)]),
        ("vit_tiny_patch16_224", "care_s0", [(0, 0), (1, 1), (2, 2), (3, 3)]),
        ("vit_tiny_patch16_224", "vit_tiny_patch16_224", [(0, 0), (1, 1), (2, 2), (3, 3)]),
    ],
)
def test_levels_are_paired_by_stride_or_by_depth(student: str, teacher: str, expected: list[tuple[int, int]]) -> None:
    pairs = paired(model(student), model(teacher))
    by_stride = expected[0] == (4, 4)
    assert [(a.stride, b.stride) if by_stride else (a.index, b.index) for a, b in pairs] == expected


def test_explained_share_is_that_of_the_variance() -> None:
    generator = torch.Generator().manual_seed(0)
    target, said = (torch.randn(50, 3, generator=generator) for _ in range(2))
    metric = Explained(2)
    for rows in (slice(0, 20), slice(20, 50)):
        metric.update([said[rows], 0 * said[rows]], [target[rows], target[rows]])
    assert metric.compute().tolist() == pytest.approx([float(1 - ((said - target) ** 2).sum() / (target**2).sum()), 0])


@pytest.mark.parametrize("teacher_size", [48, 32])
def test_loss_is_that_of_standardised_features_of_the_same_crop(
    photos: Path, teacher: Path, teacher_size: int, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    data = PretrainData(str(photos), val_share=0.2, img_size=32, batch_size=4, workers=0, crop_pct=1.0)
    made = PretrainTask(
        model_args=TINY, teacher=str(teacher), teacher_size=teacher_size, levels=2, summary_weight=0.5, lr=1e-9,
        min_lr=0.0, warmup_lr=0.0,
    )  # fmt: skip
    said = trainer(default_root_dir=tmp_path)
    said.fit(made, data)

    # By hand: the photos as both see them, features taken by timm's own means, statistics, loss.
    original = timm.create_model(f"local-dir:{teacher}", pretrained=True).eval()
    student = made.model.backbone.eval()
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (data.input_config()["mean"], data.input_config()["std"]))
    its_mean, its_std = torch.tensor((0.1, 0.2, 0.3)).view(-1, 1, 1), torch.tensor((0.5, 0.6, 0.7)).view(-1, 1, 1)

    def views(batches: Any) -> tuple[torch.Tensor, torch.Tensor]:
        images = torch.cat([batch["image"] for batch in batches])
        assert images.shape[-1] == teacher_size
        theirs = (images * std + mean - its_mean) / its_std
        size = (32, 32)
        ours = F.interpolate(images, size, mode="bicubic", antialias=True) if teacher_size != 32 else images
        return ours, theirs

    def taught(images: torch.Tensor) -> list[torch.Tensor]:
        with torch.no_grad():
            maps = original.forward_intermediates(images, intermediates_only=True)
            summary = original.forward_head(original.forward_features(images), pre_logits=True)
            return [summary, *(F.adaptive_avg_pool2d(x, size) for x, size in zip(maps[-2:], (2, 1), strict=True))]

    moments = []
    for x in taught(views(data.sample(256))[1]):
        x = x.transpose(0, 1).flatten(1)
        moments.append((x.mean(1), x.std(1, correction=0)))
    ours, theirs = views(data.val_dataloader())
    with torch.no_grad():
        last, maps = student.forward_intermediates(ours)
        projected = [made.model.summary(student.forward_head(last, pre_logits=True))]
        projected += [project(x) for project, x in zip(made.model.maps, maps[2:], strict=True)]
    losses = []
    for x, y, (average, deviation) in zip(projected, taught(theirs), moments, strict=True):
        shape = (1, -1) + (1,) * (y.ndim - 2)
        deviation = deviation.clamp(min=1e-3 * deviation.mean())
        losses.append(F.smooth_l1_loss(x, (y - average.view(shape)) / deviation.view(shape)))
    expected = 0.5 * losses[0] + (losses[1] + losses[2]) / 2
    assert float(said.callback_metrics["val/loss"]) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize(
    ("student", "teacher"), [("care_s0", "vit_tiny_patch16_224"), ("vit_tiny_patch16_224", "test_convnext")]
)
def test_tokens_and_maps_teach_and_learn(photos: Path, student: str, teacher: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    args = {"care_s0": TINY, "vit_tiny_patch16_224": VIT}
    config = {"input_size": (3, 48, 48)}
    linvit.save_model(model(teacher).eval(), tmp_path / "teacher", classes=[], input_config=config)
    data = PretrainData(str(photos), val_share=0.2, img_size=48, batch_size=4, workers=0)
    made = PretrainTask(
        name=student, model_args=args[student], teacher=str(tmp_path / "teacher"), lr=5e-3, warmup_epochs=0
    )
    before = [p.detach().clone() for p in made.model.parameters()]
    said = trainer(default_root_dir=tmp_path, max_epochs=6)
    said.fit(made, data)
    assert float(said.callback_metrics["val/explained"]) > 0.02, "more than the mean of everything says"
    moved = [not torch.equal(a, b) for a, b in zip(before, made.model.parameters(), strict=True)]
    assert all(moved), "DDP needs a gradient for everything"
    assert not any("teacher" in name for name in made.state_dict())


# The run and what it is good for


def test_run_folder_is_a_backbone_for_timm_and_every_task(run: Path) -> None:
    ours = linvit.load_model(run)
    described = json.loads((run / "config.json").read_text())
    assert described["num_classes"] == 0
    best = max(float(row["val/explained"]) for row in metrics(run))
    assert described["metrics"]["explained"] == pytest.approx(best, rel=1e-4)
    image = torch.randn(2, 3, 37, 101)
    theirs = timm.create_model(f"local-dir:{run}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(ours(image), theirs(image))
    classifier = timm.create_model(f"local-dir:{run}", pretrained=True, num_classes=7)
    assert classifier(image).shape == (2, 7)

    start = ours.state_dict()
    args = {name: list(value) if isinstance(value, tuple) else value for name, value in TINY.items()}
    detector = DetectionModel(3, backbone="care_s0", backbone_args=args, pretrained=str(run))
    made: list[Any] = [
        ClassificationTask(3, model_args=args, pretrained=str(run)).model,
        bare(detector),
        bare(Segmenter(3, backbone="care_s0", backbone_args=args, pretrained=str(run))),
        bare(Segmenter(3, backbone=str(run), pretrained=True)),
    ]
    for model in made:
        loaded = model.state_dict()
        assert start.keys() <= loaded.keys()
        assert all(torch.equal(loaded[name], tensor) for name, tensor in start.items())


def test_a_backbone_names_no_classes(run: Path, photos: Path, linvit_command: Callable[..., Any]) -> None:
    for command in (("eval", run, "mnist5k"), ("predict", run, photos)):
        said = linvit_command(*command)
        assert said.code == 2
        assert "has no classes" in said.err


def test_stopped_in_an_epoch_it_ends_as_if_it_had_not_stopped(
    run: Path, photos: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        signal_once(patch, PretrainTask, "training_step", 6)
        assert main(arguments(photos, teacher, out, *ROUGH)) == 130
    assert main(["train", "--resume", str(out)]) == 0
    same_run(out, run)


def test_what_is_kept_of_the_teacher_changes_nothing_but_its_rounding(
    run: Path, photos: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(arguments(photos, teacher, tmp_path / "run", "--data.views=2", "--model.ema_decay=0.8")) == 0
    assert not list((tmp_path / "run").glob("*.cache"))
    for ours, theirs in zip(metrics(tmp_path / "run"), metrics(run), strict=True):
        assert float(ours["train/loss"]) == pytest.approx(float(theirs["train/loss"]), rel=1e-3)


def test_the_teacher_is_asked_once_for_a_view(
    photos: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    targets = PretrainTask._targets
    monkeypatch.setattr(
        PretrainTask, "_targets", lambda self, image: asked.append(self.training) or targets(self, image)
    )
    assert main(arguments(photos, teacher, tmp_path / "run", "--model.cache=true", "--data.views=1")) == 0
    assert sum(asked) == 4, "16 photos in batches of 4, in the first of three epochs"
    assert main(arguments(photos, teacher, tmp_path / "new", "--model.cache=true")) == 2, "views must be known"


def test_cache_gives_back_what_is_whole(tmp_path: Path) -> None:
    shapes = [(3,), (2, 2, 2)]
    cache = TeacherCache(tmp_path, {"a": 1}, 5, shapes)
    features = [torch.randn(2, *shape) for shape in shapes]
    assert cache.read([4, 1]) is None
    kept = cache.write([4, 1], features)
    for ours, theirs, given in zip(cache.read([1, 4]) or [], kept, features, strict=True):
        assert torch.equal(ours, theirs.flip(0))
        torch.testing.assert_close(theirs, given, rtol=1e-3, atol=1e-3)
    assert cache.read([1, 2]) is None
    assert TeacherCache(tmp_path, {"a": 1}, 5, shapes).read([1]) is not None
    assert TeacherCache(tmp_path, {"a": 2}, 5, shapes).read([1]) is None, "of other settings"
    content = bytearray(cache.path.read_bytes())
    content[4 * cache._bytes + 9] ^= 1
    cache.path.write_bytes(content)
    assert cache.read([4]) is None, "damaged"
    with file_limit(100), pytest.raises(OSError, match="no space left to write"):
        TeacherCache(tmp_path, {}, 5, shapes).write([4], [x[:1] for x in features])


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (("--model.teacher=no_such_model",), "unknown model 'no_such_model'"),
        (("--model.levels=-1",), "levels must be 0 or more"),
        (("--model.levels=0", "--model.summary_weight=0"), "summary_weight must be above 0 where levels is 0"),
        (("--data.root=nowhere",), "data folder nowhere does not exist"),
        (("--model.pretrained=nowhere",), "no weights at 'nowhere'"),
    ],
)
def test_what_is_wrong_is_one_line(
    photos: Path, teacher: Path, tmp_path: Path, given: tuple[str, ...], error: str, linvit_command: Callable[..., Any]
) -> None:
    said = linvit_command(*arguments(photos, teacher, tmp_path / "run", *given))
    assert said.code == 2
    assert error in said.err.splitlines()[-1]
    assert not (tmp_path / "run" / "model.safetensors").exists()
