"""Conversion to linear attention as a Lightning module: the original teaches the converted model."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor, nn

from linvit.checkpoints import CONFIG_NAME, conversion
from linvit.linearization import linearize
from linvit.tasks.classification import ClassificationTask
from linvit.tasks.distillation import distillation_loss


class LinearizeTask(ClassificationTask):
    """Puts linear attention into a trained classifier and trains it on, with the original as its teacher.

    The loss is a weighted sum: cross-entropy with the labels; the divergence of the class probabilities from the
    original's; and the distance of what each replaced attention adds to its block from what the original adds there,
    relative to the latter's size, mean over the attentions.

    Logs ``train/logit_loss`` and ``train/attention_loss`` besides what ClassificationTask logs; ``train/loss`` is the
    cross-entropy alone.

    Args:
        num_classes: Number of classes of the data.
        name: The original: a run folder, or a ViT, DeiT, PVTv2 or Swin by timm's name.
        pretrained: Convert the trained original (true; a path takes the weights from there), or an untrained one.
        attention: What to put in: focused, linear (elu + 1), relu, key_only, or softmax to compare with.
        stages: Stages to replace (blocks in a ViT), counted from 0; null for all.
        label_weight: Weight of the cross-entropy with the labels.
        logit_weight: Weight of the divergence from the original's class probabilities; 0 for none.
        attention_weight: Weight of the distance from the original's attention outputs; 0 for none.
        temperature: Softens both class probabilities before they are compared.
        **kwargs: As for ClassificationTask.

    Raises:
        ValueError: An argument is outside its range, the model cannot be converted, or the original cannot teach.
    """

    one_size = False  # hooks on every attention break the graph: never measured compiled

    def __init__(
        self,
        num_classes: int,
        name: str = "vit_tiny_patch16_224",
        pretrained: bool | str = True,
        attention: str = "focused",
        stages: Sequence[int] | None = None,
        label_weight: float = 1.0,
        logit_weight: float = 1.0,
        attention_weight: float = 1.0,
        temperature: float = 1.0,
        **kwargs: Any,
    ) -> None:
        weights = {"label_weight": label_weight, "logit_weight": logit_weight, "attention_weight": attention_weight}
        for key, value in weights.items():
            if value < 0:
                raise ValueError(f"{key} must be 0 or more, not {value!r}")
        if not any(weights.values()):
            raise ValueError(f"there is nothing to learn from: {', '.join(weights)} are all 0")
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0, not {temperature!r}")
        if (Path(name) / CONFIG_NAME).is_file():
            if conversion(Path(name)):
                raise ValueError(f"{name} is converted already: give the run folder of its original")
            name = f"local-dir:{name}"
        super().__init__(num_classes, name=name, pretrained=pretrained, **kwargs)
        # In a tuple, so that it is no part of this module: it is neither trained nor kept.
        self._original: tuple[nn.Module, ...] = ()
        if logit_weight or attention_weight:
            _check_teacher(self.model, num_classes, bool(pretrained), bool(logit_weight))
            self._original = (deepcopy(self.model).eval().requires_grad_(False),)
        converted: Any = linearize(self.model, attention, stages)
        self._replaced: list[str] = [row.module for row in converted.linearized]

    def on_fit_start(self) -> None:
        """Bring the original to where the batches are."""
        super().on_fit_start()
        for original in self._original:
            original.to(self.device)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> STEP_OUTPUT:
        """Return the loss of a batch."""
        hp: Any = self.hparams
        with _listening(self.model, self._replaced) as ours:
            loss: Any = super().training_step(batch, batch_idx)
        if loss is None or not self._original:
            return loss
        original = self._original[0]
        with torch.no_grad(), _listening(original, self._replaced) as theirs:
            original(ours.image)
        logit_loss = distillation_loss(ours.logits.float(), theirs.logits.float(), "soft", hp.temperature)
        attention_loss = _distance(ours.attention, theirs.attention)
        size = len(ours.image)
        self.log_dict(
            {"train/logit_loss": logit_loss, "train/attention_loss": attention_loss},
            on_step=False,
            on_epoch=True,
            batch_size=size,
            sync_dist=True,
        )
        return hp.label_weight * loss + hp.logit_weight * logit_loss + hp.attention_weight * attention_loss


@dataclass
class _Heard:
    """What went through a model: images, logits, and the output of each attention, by name."""

    image: Tensor = field(default_factory=lambda: torch.empty(0))
    logits: Tensor = field(default_factory=lambda: torch.empty(0))
    attention: dict[str, Tensor] = field(default_factory=dict)


@contextmanager
def _listening(model: nn.Module, attentions: list[str]) -> Iterator[_Heard]:
    """Hear what goes through a model within this block.

    An attention's output is taken where its block adds it, before stochastic depth: there it is a map of all tokens
    in every host, in Swin too, whose attention itself returns windows.
    """
    heard = _Heard()

    def hear_attention(name: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        heard.attention[name] = args[0]

    def hear_model(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        heard.image, heard.logits = args[0], output

    handles = [model.register_forward_hook(hear_model)]
    for name in attentions:
        drop_path = model.get_submodule(f"{name.rpartition('.')[0]}.drop_path1")
        handles.append(drop_path.register_forward_pre_hook(partial(hear_attention, name)))
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()


def _distance(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> Tensor:
    """Return the mean over the attentions of ``|ours - theirs|^2 / |theirs|^2``, so that all count alike."""
    shares = []
    for name, target in theirs.items():
        target = target.float()
        error = ours[name].float().reshape_as(target) - target  # a map may be flat on one side
        shares.append(error.square().mean() / target.square().mean().clamp(min=1e-12))
    return torch.stack(shares).mean()


def _check_teacher(model: nn.Module, num_classes: int, pretrained: bool, by_logits: bool) -> None:
    if not pretrained:
        raise ValueError("an untrained original teaches nothing: set logit_weight and attention_weight to 0")
    known: Any = model.pretrained_cfg["num_classes"]  # type: ignore[index]
    if by_logits and known != num_classes:
        raise ValueError(
            f"the original tells {known} classes apart, the data has {num_classes}: train it on the data first, "
            "or set logit_weight to 0"
        )
