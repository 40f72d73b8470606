"""Image classification as a Lightning module: any timm model, timm's optimizers, cosine schedule and mixing."""

from pathlib import Path
from typing import Any, Literal

import timm
import torch
from lightning.pytorch.utilities.types import STEP_OUTPUT
from timm.data.mixup import Mixup
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from linvit.checkpoints import WEIGHTS_NAME, load_checkpoint, load_model
from linvit.checks import did_you_mean, require, require_numbers, said_as, some
from linvit.files import saving
from linvit.inference.pictures.metrics import plot_confusion
from linvit.tasks.base import VisionTask, agreed
from linvit.tasks.distillation import Teacher, distillation_loss
from linvit.tasks.run_folder import CONFUSION
from linvit.weights.hub import create_pretrained

MOST_CLASSES_TO_CONFUSE = 1000
"""Above this many classes no confusion matrix is kept: it grows with their square."""


class ClassificationTask(VisionTask):
    """Trains and validates a classifier.

    Batches are dictionaries: ``image [B, 3, H, W]`` float (None: skipped), ``target [B]`` int64 and ``unreadable``,
    the paths of image files that could not be read.

    Logs ``train/loss`` (mean of the epoch), ``train/loss_step``, ``lr``, ``train/images_per_second``, ``val/loss``,
    ``val/top1`` and ``val/top5`` (shares from 0 to 1).

    Args:
        num_classes: Number of classes of the data.
        name: Model to train, any name that timm knows.
        pretrained: Start from the published weights (true), from those of a checkpoint file or run folder (its path),
            or from none.
        model_args: More arguments of the model, such as drop_path_rate.
        smoothing: Label smoothing.
        mixup: Alpha of mixup; 0 for none.
        cutmix: Alpha of CutMix; 0 for none.
        mixup_prob: Probability that a batch is mixed.
        mixup_switch_prob: Probability of CutMix rather than mixup where both are on.
        mixup_mode: Mix all images of a batch alike, in pairs, or each by itself.
        channels_last: Lay out convolutions with the channels last.
        teacher: Model to learn from besides the labels: package:efficientnet_lite0 (comes with linvit), a run folder, a
            checkpoint file, hf-hub:USER/REPO, or a model that timm has weights for; null for none. Models with a second
            head for it (CARE) learn with that one.
        teacher_size: Height and width that the teacher sees; null for what it was trained at.
        distillation: Learn the teacher's choice (hard) or its class probabilities (soft).
        distillation_weight: Weight of the teacher, from 0 to 1; the labels have the rest.
        distillation_temperature: Softens the probabilities of soft distillation.
        **kwargs: The optimizer, its schedule and the average, as for VisionTask.

    Attributes:
        model: The network.
        confusion: ``[classes, classes]`` counts (true, predicted) of the last validation; None before it, and above
            MOST_CLASSES_TO_CONFUSE classes.

    Raises:
        ValueError: An argument is outside its range, or ``name`` is no model.
    """

    one_size = True

    def __init__(
        self,
        num_classes: int,
        name: str = "care_s0",
        pretrained: bool | str = False,
        model_args: dict[str, Any] | None = None,
        smoothing: float = 0.1,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        mixup_prob: float = 1.0,
        mixup_switch_prob: float = 0.5,
        mixup_mode: Literal["batch", "pair", "elem"] = "batch",
        channels_last: bool = True,
        teacher: str | None = None,
        teacher_size: int | None = None,
        distillation: Literal["hard", "soft"] = "hard",
        distillation_weight: float = 0.5,
        distillation_temperature: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require(num_classes >= 2, "num_classes", num_classes, "at least 2")
        require(0 <= distillation_weight <= 1, "distillation_weight", distillation_weight, "from 0 to 1")
        require(distillation_temperature > 0, "distillation_temperature", distillation_temperature, "above 0")
        for key, value in {"mixup": mixup, "cutmix": cutmix}.items():
            require(value >= 0, key, value, "0 or more")
        for key, value in {"mixup_prob": mixup_prob, "mixup_switch_prob": mixup_switch_prob}.items():
            require(0 <= value <= 1, key, value, "from 0 to 1")
        require(0 <= smoothing < 1, "smoothing", smoothing, "from 0 to below 1")
        self.model = self.build(name, num_classes, pretrained, model_args or {})
        if channels_last:
            self.model.to(memory_format=torch.channels_last)
        self.mixing = (
            Mixup(mixup, cutmix, None, mixup_prob, mixup_switch_prob, mixup_mode, True, 0.0, num_classes)
            if mixup or cutmix
            else None
        )
        self.teacher = Teacher(load_model(teacher), teacher_size) if teacher else None
        self.metrics = {"top1": "top-1", "top5": "top-5", "loss": "loss"}
        self.val_loss = MeanMetric()
        self.val_accuracy = MetricCollection(
            {
                f"top{k}": MulticlassAccuracy(num_classes, min(k, num_classes), average="micro", validate_args=False)
                for k in (1, 5)
            }
        )
        self.val_confusion = (
            MulticlassConfusionMatrix(num_classes, validate_args=False)
            if num_classes <= MOST_CLASSES_TO_CONFUSE
            else None
        )
        self.confusion: Tensor | None = None

    def build(self, name: str, num_classes: int, pretrained: bool | str, model_args: dict[str, Any]) -> nn.Module:
        """Build the network to train."""
        return create_network(name, num_classes, pretrained, model_args)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits ``[B, num_classes]`` of images ``[B, 3, H, W]``."""
        if self.hparams["channels_last"]:
            image = image.contiguous(memory_format=torch.channels_last)
        return self.model(image)

    # Training

    def on_fit_start(self) -> None:
        """Acquaint the teacher with the images and classes of the data."""
        if self.teacher is None:
            return
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if data is None:
            raise ValueError("a teacher needs a data module, which says what was done to the images")
        self.teacher.meet(data.input_config(), data.classes, self.device)
        if switch := getattr(self.model, "set_distilled_training", None):
            switch(True)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> STEP_OUTPUT:
        """Return the loss of a batch."""
        self.unreadable.update(dict.fromkeys(batch["unreadable"]))
        if batch["image"] is None:
            return None
        image, target = self._mix(batch["image"], batch["target"])
        hp: Any = self.hparams
        outputs = self(image)
        logits, taught = outputs if isinstance(outputs, tuple) else (outputs, outputs)
        loss = F.cross_entropy(logits.float(), target, label_smoothing=hp.smoothing)
        if self.teacher is not None:
            theirs = self.teacher(image)
            distance = distillation_loss(taught.float(), theirs, hp.distillation, hp.distillation_temperature)
            loss = (1 - hp.distillation_weight) * loss + hp.distillation_weight * distance
        self.log_training(loss, len(image))
        return loss

    def _mix(self, image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Apply mixup or CutMix; the last of an odd number of images stays as it is, as mixing goes by pairs."""
        even = len(image) // 2 * 2
        if self.mixing is None or not even:
            return image, target
        mixed, mixed_target = self.mixing(image[:even], target[:even])
        rest = F.one_hot(target[even:], self.hparams["num_classes"]).to(mixed_target)
        return torch.cat([mixed, image[even:]]), torch.cat([mixed_target, rest])

    # Validation

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Add a batch to the metrics."""
        self.unreadable.update(dict.fromkeys(batch["unreadable"]))
        if batch["image"] is None:
            return
        target = batch["target"]
        logits = self(batch["image"]).float()
        self.val_loss.update(F.cross_entropy(logits, target, reduction="none"))
        self.val_accuracy.update(logits, target)
        if self.val_confusion is not None:
            self.val_confusion.update(logits, target)

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the whole validation."""
        if not agreed(self.trainer, self.val_loss.update_called):
            raise ValueError(f"none of the validation images can be read, {some(self.unreadable, 3)}")
        for key, value in self.val_accuracy.compute().items():
            self.log(f"val/{key}", value, prog_bar=key == "top1")
        self.log("val/loss", self.val_loss.compute())
        self.val_accuracy.reset()
        self.val_loss.reset()
        if self.val_confusion is not None:
            self.confusion = self.val_confusion.compute()
            self.val_confusion.reset()

    def draw(self, folder: Path, classes: list[str]) -> None:
        """Draw the confusion matrix."""
        if self.confusion is not None:
            with saving(folder / CONFUSION):
                plot_confusion(self.confusion.cpu().numpy(), classes, folder / CONFUSION)


def create_network(name: str, num_classes: int, pretrained: bool | str, args: dict[str, Any]) -> nn.Module:
    """Build a model to train.

    Args:
        name: A name that timm knows.
        num_classes: Number of classes; 0 for none.
        pretrained: Start from the published weights (true), from those of a checkpoint file or run folder (its path),
            or from none.
        args: More arguments of the model.

    Raises:
        FileNotFoundError: ``pretrained`` is a path where no weights are.
        ValueError: There is no such model, the arguments do not suit it, or the weights do not fit.
    """
    if ":" not in name and not timm.is_model(name):
        raise ValueError(f"unknown model {name!r}{did_you_mean(name, timm.list_models())}")
    if isinstance(pretrained, str) and (Path(pretrained) / WEIGHTS_NAME).is_file():
        pretrained = str(Path(pretrained) / WEIGHTS_NAME)
    if isinstance(pretrained, str) and not Path(pretrained).is_file():
        raise FileNotFoundError(f"pretrained: no weights at {pretrained!r} (true takes the published ones)")
    if args.get("in_chans", 3) != 3:
        raise ValueError(
            f"model_args: in_chans must be 3, as training reads images in colour, not {args['in_chans']!r}"
        )
    with said_as(f"model_args {args} do not suit {name}"):
        create = create_pretrained if pretrained is True else timm.create_model
        model = create(name, num_classes=num_classes, **args)
        require_numbers(f"model_args of {name}", args, type(model))
    if isinstance(pretrained, str):
        load_checkpoint(model, pretrained)
    return model.train()
