"""Quantization-aware training as a Lightning module: a trained classifier learns to live with 8 bits everywhere."""

from typing import Any, Literal

from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import nn

from linvit.checkpoints import class_names, load_model
from linvit.checks import require
from linvit.deploy.quantization import QuantizedModel, quantize
from linvit.tasks.classification import ClassificationTask

__all__ = ["QuantizeTask"]


class QuantizeTask(ClassificationTask):
    """Trains a classifier on with the rounding of 8-bit arithmetic in it; the original teaches it.

    Weights, activations and all between are rounded as ``linvit export --precision int8-full`` does it, by torchao's
    PT2E, and what comes out is exported with exactly the ranges that were trained. The network is the fused one, so
    that there is no BatchNorm. Ranges follow the images for a share of the training and then stay.

    Args:
        num_classes: Number of classes of the data.
        name: The original: a run folder, a checkpoint file, hf-hub:USER/REPO, or a registered name, which takes the
            published weights.
        img_size: Height and width in pixels of the images that the result takes.
        follow: Share of the training, from 0 to 1, in which ranges follow the images.
        teacher: Model to learn from besides the labels; null for the original.
        distillation: Learn the teacher's class probabilities (soft) or its choice (hard).
        distillation_weight: Weight of the teacher, from 0 to 1; the labels have the rest.
        channels_last: Lay out convolutions with the channels last.
        **kwargs: As for ClassificationTask; ``pretrained`` and ``model_args`` change nothing.

    Raises:
        ValueError: An argument is outside its range, or the original tells other classes apart than the data has.
    """

    one_size = False  # it was never measured compiled
    model: QuantizedModel

    def __init__(
        self,
        num_classes: int,
        name: str = "care_s0",
        img_size: int = 224,
        follow: float = 0.5,
        teacher: str | None = None,
        distillation: Literal["hard", "soft"] = "soft",
        distillation_weight: float = 0.5,
        channels_last: bool = False,
        **kwargs: Any,
    ) -> None:
        require(0 <= follow <= 1, "follow", follow, "from 0 to 1")
        self.img_size = img_size  # for build, before there is anything else
        super().__init__(
            num_classes,
            name=name,
            teacher=(teacher or name) if distillation_weight else None,
            distillation=distillation,
            distillation_weight=distillation_weight,
            channels_last=channels_last,
            **kwargs,
        )

    def build(self, name: str, num_classes: int, pretrained: bool | str, model_args: dict[str, Any]) -> nn.Module:
        """Load the original and put the rounding into it."""
        original: Any = load_model(name)
        if isinstance(original, QuantizedModel):
            raise ValueError(f"{name} was trained in 8 bits already: give the run folder of its original")
        if original.num_classes != num_classes:
            raise ValueError(
                f"the original tells {original.num_classes} classes apart, the data has {num_classes}: train it on "
                "the data first"
            )
        return quantize(original, (self.img_size, self.img_size)).train()

    def on_fit_start(self) -> None:
        """Compare the classes, and acquaint the teacher with them and the images."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        known = class_names(self.model)
        if data is not None and self.model.pretrained_cfg.get("label_names") and known != list(data.classes):
            raise ValueError(f"the original's classes are {', '.join(known[:3])} ..., the data's are others")
        super().on_fit_start()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set the learning rates; leave the ranges as they are when their share of the training is over."""
        super().on_train_batch_start(batch, batch_idx)
        if (
            not self.model.frozen
            and self.global_step >= self.hparams["follow"] * self.trainer.estimated_stepping_batches
        ):
            self.model.freeze()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> STEP_OUTPUT:
        """Return the loss of a batch; the first one sets the ranges."""
        if self.global_step == 0 and batch_idx == 0 and batch["image"] is not None:
            self.model.calibrate(batch["image"])
            self.model.train()
        return super().training_step(batch, batch_idx)
