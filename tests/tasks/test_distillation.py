"""Learning from a teacher: what it sees, which classes it means, and what its loss is."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from lightning import Trainer
from PIL import Image
from torch.nn import functional as F

from linvit.checkpoints import load_model
from linvit.data import ClassificationData
from linvit.tasks import ClassificationTask
from linvit.tasks.distillation import Teacher, distillation_loss

WNIDS = ["n01440764", "n02102040"]
STUDENT = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}


class Recorder(torch.nn.Module):
    """Answers with the mean colour of what it sees."""

    def __init__(self, classes: int = 3, **config: Any) -> None:
        super().__init__()
        self.num_classes = classes
        self.pretrained_cfg = {"input_size": (3, 8, 8), "mean": (0.0,) * 3, "std": (1.0,) * 3} | config

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.seen = image
        return torch.cat([image.mean((2, 3)), torch.zeros(len(image), self.num_classes - 3)], dim=1)


def met(model: torch.nn.Module, classes: list[str], size: int | None = None) -> Teacher:
    teacher = Teacher(model, size)
    teacher.meet(STUDENT, classes, torch.device("cpu"))
    return teacher


def test_the_teacher_sees_the_image_as_it_was_trained_to() -> None:
    image = torch.rand(2, 3, 8, 8)
    student = (image - torch.tensor(STUDENT["mean"]).view(-1, 1, 1)) / torch.tensor(STUDENT["std"]).view(-1, 1, 1)
    model = Recorder(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
    met(model, ["0", "1", "2"])(student)
    expected = (image - torch.tensor([0.1, 0.2, 0.3]).view(-1, 1, 1)) / torch.tensor([0.5, 0.25, 2.0]).view(-1, 1, 1)
    torch.testing.assert_close(model.seen, expected)
    for size, sides in ((None, (8, 8)), (12, (12, 12))):
        met(model, ["0", "1", "2"], size)(torch.randn(1, 3, 5, 7))
        assert model.seen.shape[2:] == sides


def test_classes_are_matched_by_name() -> None:
    named = Recorder(label_names=["cat", "ant", "bee"])
    logits = met(named, ["ant", "bee"])(torch.zeros(1, 3, 8, 8))
    all_logits = met(Recorder(), ["x", "y", "z"])(torch.zeros(1, 3, 8, 8))
    torch.testing.assert_close(logits, all_logits[:, [1, 2]])
    with pytest.raises(ValueError, match=r"the teacher's 3 classes lack 1 of the data's 2, such as 'yak'"):
        met(named, ["ant", "yak"])


def test_a_teacher_for_imagenet_knows_folders_by_their_wnid() -> None:
    imagenet = Recorder(1000)
    assert met(imagenet, WNIDS)._columns.tolist() == [0, 217]
    with pytest.raises(ValueError, match="needs folders that are named like n01440764"):
        met(imagenet, ["tench"])


def test_losses_are_those_of_the_papers() -> None:
    student, teacher = torch.randn(2, 4, 5, dtype=torch.float64)
    hard = -student.log_softmax(1)[range(4), teacher.argmax(1)].mean()
    torch.testing.assert_close(distillation_loss(student, teacher, "hard", 3.0), hard)
    p, q = (teacher / 3).softmax(1), (student / 3).softmax(1)
    soft = 9 * (p * (p.log() - q.log())).sum(1).mean()
    torch.testing.assert_close(distillation_loss(student, teacher, "soft", 3.0), soft)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for part in ("train", "val"):
        for name in WNIDS:
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(4):
                values = random.integers(0, 256, (32, 32, 3)).astype(np.uint8)
                Image.fromarray(values).save(tmp_path / part / name / f"{number}.png")
    return tmp_path


def test_cares_second_head_learns_from_the_teacher_and_the_first_from_the_labels(photos: Path) -> None:
    torch.manual_seed(0)
    small = {"depths": (1, 1, 1, 1), "dims": (4, 4, 16, 32)}
    task = ClassificationTask(
        2, name="care_s0", model_args=small, smoothing=0.0, teacher="package:efficientnet_lite0", teacher_size=32
    )
    data = ClassificationData(str(photos), img_size=32, batch_size=8, workers=0)
    heard: dict[str, Any] = {}
    step = task.training_step

    def training_step(batch: Any, batch_idx: int) -> Any:
        heard["loss"] = step(batch, batch_idx)
        with torch.no_grad():
            head, second = task.model(batch["image"])
            choice = task.teacher(batch["image"]).argmax(1)
            labels = F.cross_entropy(head, batch["target"])
            heard["expected"] = (labels + F.cross_entropy(second, choice)) / 2
        return heard["loss"]

    task.training_step = training_step  # type: ignore[method-assign]
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    Trainer(accelerator="cpu", max_epochs=1, num_sanity_val_steps=0, **quiet).fit(task, data)  # type: ignore[arg-type]
    torch.testing.assert_close(heard["loss"], heard["expected"])
    assert not any("teacher" in name for name in task.state_dict()), "the teacher is not kept"
    assert not any(parameter.requires_grad for parameter in task.teacher.model.parameters())


def test_a_teacher_may_be_a_run_folder_or_nothing_at_all(run_folder: Path) -> None:
    assert load_model(str(run_folder)).num_classes == 3  # type: ignore[comparison-overlap]
    with pytest.raises(ValueError, match=r"unknown model 'regnety_160\.deit': .*; did you mean regnety_160"):
        load_model("regnety_160.deit")


def test_the_packaged_teacher_is_the_published_network() -> None:
    model: Any = load_model("package:efficientnet_lite0")
    assert isinstance(model, timm.models.EfficientNet)
    config = timm.data.resolve_model_data_config(model)
    pixels = torch.tensor([0.0, 127.0, 255.0]) / 255
    torch.testing.assert_close((pixels - config["mean"][0]) / config["std"][0], torch.tensor([-127 / 128, 0.0, 1.0]))
