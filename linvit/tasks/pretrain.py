"""Learning features without labels: a backbone learns to see what a larger, trained model sees.

What is compared: the teacher's pooled features and its maps, each standardised channel by channel to mean 0 and
variance 1 over the training images, with what a small projector makes of the student's (smooth L1). Pooled features
beside maps: AM-RADIO (Ranzinger et al., CVPR 2024, section 3). Standardised channels, without which the largest ones of
a teacher decide: PHI-S (Ranzinger et al., 2024, arXiv 2410.01680, section 2). Smooth L1, which a ViT's few outliers do
not rule: Feature Distillation (Wei et al., 2022, arXiv 2205.14141, section 3).
"""

import logging
import math
from typing import Any

import torch
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric

from linvit.checkpoints import load_model
from linvit.checks import require, some
from linvit.data.loading import progress
from linvit.heads.features import bare, width
from linvit.tasks.base import VisionTask, agreed
from linvit.tasks.classification import create_network
from linvit.tasks.distillation import resized
from linvit.tasks.features import Explained, FeatureTeacher, Student, paired, pooled
from linvit.tasks.teacher_cache import TeacherCache

log = logging.getLogger("linvit")

__all__ = ["PretrainTask"]

SAMPLE = 256
"""Training images that the mean and deviation of the teacher's channels are taken from."""


class PretrainTask(VisionTask):
    """Trains a backbone to see what a teacher sees, without labels.

    Batches are dictionaries: ``image [B, 3, H, W]`` float (None: skipped), ``target [B]``, the images' numbers, and
    ``unreadable``, the paths of image files that could not be read. Both models see the same crops, each at its own
    size and normalisation. What is kept is the student alone, without its projectors: a timm model without classes.

    Logs what VisionTask logs, ``val/loss``, and ``val/explained``: the share of the variance of the teacher's features,
    on held-out images, that the student's explain (mean over what is compared, each also by itself, such as
    ``val/explained_summary``); a student that says the mean of everything has 0.

    Args:
        num_classes: 0, as nothing is known of classes.
        name: Model to train, any name that timm knows.
        pretrained: Start from the published weights (true), from those of a checkpoint file or run folder (its path),
            or from none.
        model_args: More arguments of the model, such as drop_path_rate.
        teacher: Model to learn from: package:efficientnet_lite0 (comes with linvit), a run folder, a checkpoint file,
            hf-hub:USER/REPO, or a model that timm has weights for, such as vit_small_patch14_dinov2.
        teacher_size: Height and width that the teacher sees; null for what it was trained at.
        levels: How many of the student's maps learn, counted from the coarsest; null for all, 0 for none.
        summary_weight: Weight of the pooled features against the maps, which together weigh 1.
        cache: Keep the teacher's features in the run folder instead of computing them in each epoch; data.views must
            say how many different crops of an image there are.
        channels_last: Lay out convolutions with the channels last.
        **kwargs: The optimizer, its schedule and the average, as for VisionTask.

    Attributes:
        model: The student with its projectors.

    Raises:
        ValueError: An argument is outside its range, or there is no such model or teacher.
    """

    model: Student

    def __init__(
        self,
        num_classes: int = 0,
        name: str = "care_s0",
        pretrained: bool | str = False,
        model_args: dict[str, Any] | None = None,
        teacher: str = "package:efficientnet_lite0",
        teacher_size: int | None = None,
        levels: int | None = None,
        summary_weight: float = 1.0,
        cache: bool = False,
        channels_last: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require(num_classes == 0, "num_classes", num_classes, "0")
        require(teacher_size is None or teacher_size >= 1, "teacher_size", teacher_size, "1 or more, or null")
        require(levels is None or levels >= 0, "levels", levels, "0 or more, or null")
        require(summary_weight >= 0, "summary_weight", summary_weight, "0 or more")
        require(levels != 0 or summary_weight > 0, "summary_weight", summary_weight, "above 0 where levels is 0")
        original = bare(load_model(teacher))
        student = bare(create_network(name, 0, pretrained, model_args or {}))
        pairs = paired(student, original)
        pairs = pairs[max(0, len(pairs) - levels) :] if levels is not None else pairs
        # In a tuple, so that it is no part of this module: it is neither trained nor kept.
        self._teacher = (FeatureTeacher(original, [theirs.index for _, theirs in pairs], teacher_size),)
        self.model = Student(student, pairs, width(original))
        if channels_last:
            self.model.to(memory_format=torch.channels_last)
        one_stride = len({ours.stride for ours, _ in pairs}) < len(pairs)
        maps = [f"block{ours.index}" if one_stride else f"stride{ours.stride}" for ours, _ in pairs]
        self.compared = ["summary", *maps]
        self.metrics = {"explained": "explained", "loss": "loss"}
        self.val_loss = MeanMetric()
        self.val_explained = Explained(len(self.compared))
        self._moments: list[tuple[Tensor, Tensor]] = []  # of the teacher's channels; no buffers, which are averaged
        self._cache: TeacherCache | None = None

    def kept(self) -> nn.Module:
        """Return what is kept: the student without its projectors."""
        return self.model.backbone

    # Before the training

    def setup(self, stage: str) -> None:
        """Have the images cropped at the teacher's size where that is the greater one."""
        super().setup(stage)
        data = self._data()
        if self.hparams["cache"] and data.views is None:
            raise ValueError("cache needs crops that come again: set data.views, such as --data.views 4")
        data.see_at(max(self._teacher[0].size))

    def on_fit_start(self) -> None:
        """Measure the teacher's channels, unless the run that is resumed did."""
        data, teacher = self._data(), self._teacher[0]
        config = data.input_config()
        self._size: tuple[int, int] = config["input_size"][1:]
        teacher.look(config, self.device)
        with self._as_trained():
            self._grids = self._common_grids(torch.zeros(1, 3, data.crop, data.crop, device=self.device))
            if not self._moments:
                self._moments = self._measured()
        self._moments = [(mean.to(self.device), std.to(self.device)) for mean, std in self._moments]
        if self.trainer.is_global_zero:
            summary, *maps = (len(mean) for mean, _ in self._moments)
            compared = [f"{summary} pooled"]
            compared += [f"{channels} channels at {h}x{w}" for channels, (h, w) in zip(maps, self._grids, strict=True)]
            sizes = ["x".join(map(str, size)) for size in (teacher.size, self._size)]
            log.info(f"the teacher sees {sizes[0]}, the student {sizes[1]}; compared: {', '.join(compared)}")
        if self.hparams["cache"]:
            self._cache = self._open_cache()

    def _as_trained(self) -> Any:
        return self.trainer.precision_plugin.forward_context()

    @torch.no_grad()
    def _common_grids(self, image: Tensor) -> list[tuple[int, int]]:
        """Return the height and width of each pair of maps: the coarser of the two."""
        sizes = [tuple(theirs.shape[2:]) for theirs in self._teacher[0](image)[1:]]
        training = self.model.training
        said = self.model.eval()(self._student_view(image), sizes)
        self.model.train(training)
        return [tuple(ours.shape[2:]) for ours in said[1:]]

    def _measured(self) -> list[tuple[Tensor, Tensor]]:
        """Return mean and deviation ``[C]`` of the teacher's channels; the first device says them for all."""
        found: list[tuple[Tensor, Tensor]] = []
        if self.trainer.is_global_zero:
            sums: list[list[Tensor]] = []
            data = self._data()
            batches = math.ceil(min(SAMPLE, len(data.train_set)) / min(data.batch_size, 32))
            for batch in progress(data.sample(SAMPLE), batches, "measuring the teacher"):
                self.unreadable.update(dict.fromkeys(batch["unreadable"]))
                if batch["image"] is not None:
                    sums.append([_moments_of(each) for each in self._heard(batch["image"].to(self.device))])
            if not sums:
                raise ValueError(f"none of the images to learn from can be read, {some(self.unreadable, 3)}")
            for each in zip(*sums, strict=True):
                count, total, square = torch.stack(each).sum(dim=0).chunk(3)
                mean = total / count
                std = (square / count - mean.square()).clamp(min=0).sqrt()
                found.append((mean.float().cpu(), std.clamp(min=float(1e-3 * std.mean()) + 1e-12).float().cpu()))
        return self.trainer.strategy.broadcast(found)

    def _open_cache(self) -> TeacherCache:
        data: Any = self._data()
        settings = {
            "teacher": [self.hparams["teacher"], self._teacher[0].size, self.compared],
            "images": [data.root, data.source, len(data.train_set), data.views, data.seed, repr(data.train_transform)],
            "precision": str(self.trainer.precision),
        }
        shapes: list[tuple[int, ...]] = [(len(self._moments[0][0]),)]
        shapes += [(len(mean), *grid) for (mean, _), grid in zip(self._moments[1:], self._grids, strict=True)]
        cache = TeacherCache(self.trainer.default_root_dir, settings, len(data.train_set) * data.views, shapes)
        if self.trainer.is_global_zero:
            log.info(f"the teacher's features are kept in {cache.path}, up to {cache.size / 1e9:.2f} GB")
        return cache

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what was measured of the teacher."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["teacher_moments"] = [(mean.cpu(), std.cpu()) for mean, std in self._moments]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with it."""
        super().on_load_checkpoint(checkpoint)
        self._moments = [(mean.to(self.device), std.to(self.device)) for mean, std in checkpoint["teacher_moments"]]

    # Training

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> STEP_OUTPUT:
        """Return the loss of a batch."""
        self.unreadable.update(dict.fromkeys(batch["unreadable"]))
        if batch["image"] is None:
            return None
        if self._cache is None:
            targets = self._targets(batch["image"])
        else:
            views = self._data().views
            keys = (batch["target"] * views + self.current_epoch % views).tolist()
            known = self._cache.read(keys)
            # What is computed goes through the cache as well, so that it is the same as what is read later.
            targets = known or self._cache.write(keys, self._targets(batch["image"]))
            targets = [target.to(self.device) for target in targets]
        loss = self._loss(self._said(batch["image"]), targets)
        self.log_training(loss, len(batch["image"]))
        return loss

    def _student_view(self, image: Tensor) -> Tensor:
        image = resized(image, self._size)
        return image.contiguous(memory_format=torch.channels_last) if self.hparams["channels_last"] else image

    def _said(self, image: Tensor) -> list[Tensor]:
        return self.model(self._student_view(image), self._grids)

    def _heard(self, image: Tensor) -> list[Tensor]:
        """Return the teacher's features, its maps on the grids that they share with the student's."""
        summary, *maps = self._teacher[0](image)
        return [summary, *(pooled(x, grid) for x, grid in zip(maps, self._grids, strict=True))]

    def _targets(self, image: Tensor) -> list[Tensor]:
        """Return the teacher's features, standardised."""
        return [
            (x - _as(mean, x)) / _as(std, x) for x, (mean, std) in zip(self._heard(image), self._moments, strict=True)
        ]

    def _loss(self, said: list[Tensor], targets: list[Tensor]) -> Tensor:
        weight: float = self.hparams["summary_weight"]
        summary, *maps = (F.smooth_l1_loss(x.float(), y) for x, y in zip(said, targets, strict=True))
        return weight * summary + (torch.stack(maps).mean() if maps else 0.0)

    # Validation

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Add a batch to the metrics."""
        self.unreadable.update(dict.fromkeys(batch["unreadable"]))
        if batch["image"] is None:
            return
        said, targets = self._said(batch["image"]), self._targets(batch["image"])
        self.val_loss.update(self._loss(said, targets), weight=len(batch["image"]))
        self.val_explained.update(said, targets)

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the whole validation."""
        if not agreed(self.trainer, self.val_loss.update_called):
            raise ValueError(f"none of the validation images can be read, {some(self.unreadable, 3)}")
        explained = self.val_explained.compute()
        self.log("val/explained", explained.mean(), prog_bar=True)
        for name, value in zip(self.compared, explained, strict=True):
            self.log(f"val/explained_{name}", value)
        self.log("val/loss", self.val_loss.compute())
        self.val_loss.reset()
        self.val_explained.reset()

    def _data(self) -> Any:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if data is None:
            raise ValueError("pretraining needs a data module, which says what was done to the images")
        return data


def _as(channels: Tensor, x: Tensor) -> Tensor:
    return channels.view(1, -1, *[1] * (x.ndim - 2))


def _moments_of(x: Tensor) -> Tensor:
    """Return count, sum and sum of squares of each channel, one after the other, in float64."""
    flat = x.transpose(0, 1).flatten(1).double()
    count = torch.full_like(flat[:, 0], flat.shape[1])
    return torch.cat([count, flat.sum(1), flat.square().sum(1)])
