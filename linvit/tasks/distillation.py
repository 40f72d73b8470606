"""Learning from another model: any teacher, its own preprocessing respected, its classes matched by name."""

from collections.abc import Sequence
from typing import Any

import torch
from timm.data import resolve_input_data_config
from torch import Tensor, nn
from torch.nn import functional as F

from linvit.checkpoints import class_names

__all__ = ["Onlooker", "Teacher", "distillation_loss", "resized"]


class Onlooker:
    """A frozen model that sees what another one sees, the way it was trained to see.

    It is no module, so that it is neither trained nor kept with its student.

    Args:
        model: A trained model made by timm; see :func:`linvit.load_model`.
        size: Height and width that it is to see; None for what it was trained at.
    """

    def __init__(self, model: nn.Module, size: int | None = None) -> None:
        self.model = model.eval().requires_grad_(False)
        self.size = (size, size) if size else tuple(resolve_input_data_config(model)["input_size"][1:])

    def look(self, input_config: dict[str, Any], device: torch.device) -> None:
        """Get to know the images.

        Args:
            input_config: What the student's images went through: ``mean`` and ``std``, under timm's names.
            device: Where the batches are.
        """
        ours_mean, ours_std, mean, std = (
            torch.tensor(config[key], device=device).view(-1, 1, 1)
            for config in (input_config, resolve_input_data_config(self.model))
            for key in ("mean", "std")
        )
        self._scale, self._shift = ours_std / std, (ours_mean - mean) / std
        self.model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def view(self, image: Tensor) -> Tensor:
        """Bring the student's images ``[B, 3, H, W]`` to its own size and normalisation."""
        return resized(image * self._scale + self._shift, self.size)


def resized(image: Tensor, size: Sequence[int]) -> Tensor:
    """Bring images ``[B, C, H, W]`` to a height and width, where they have others."""
    if image.shape[2:] == tuple(size):
        return image
    return F.interpolate(image, tuple(size), mode="bicubic", antialias=True, align_corners=False)


class Teacher(Onlooker):
    """A frozen classifier."""

    def meet(self, input_config: dict[str, Any], classes: Sequence[str], device: torch.device) -> None:
        """Get to know the student.

        Args:
            input_config: What the student's images went through: ``mean`` and ``std``, under timm's names.
            classes: Class names of the student, in the order of its logits.
            device: Where the batches are.

        Raises:
            ValueError: The teacher does not know the student's classes.
        """
        self.look(input_config, device)
        self._columns = _columns(self.model, classes).to(device)

    @torch.no_grad()
    def __call__(self, image: Tensor) -> Tensor:
        """Return logits ``[B, classes]`` for the student's classes from the student's images ``[B, 3, H, W]``."""
        return self.model(self.view(image))[:, self._columns].float()


def _columns(model: Any, classes: Sequence[str]) -> Tensor:
    names = class_names(model)
    index = {name: column for column, name in enumerate(names)}
    if set(classes) <= index.keys():
        return torch.tensor([index[name] for name in classes])
    if len(names) == len(classes) and not model.pretrained_cfg.get("label_names"):
        return torch.arange(len(classes))  # a teacher without names of its own
    unknown = [name for name in classes if name not in index]
    raise ValueError(
        f"the teacher's {len(names)} classes lack {len(unknown)} of the data's {len(classes)}, such as {unknown[0]!r}: "
        "a teacher for ImageNet needs folders that are named like n01440764; any other one was trained on such folders"
    )


def distillation_loss(student: Tensor, teacher: Tensor, kind: str, temperature: float) -> Tensor:
    """Return how far a student's logits are from its teacher's; both ``[B, classes]``.

    "hard" takes the teacher's choice as the label (Touvron et al., 2021, which CARE uses); "soft" the divergence of the
    class probabilities at a temperature, times its square (Hinton et al., 2015).
    """
    if kind == "hard":
        return F.cross_entropy(student, teacher.argmax(dim=1))
    ours, theirs = ((logits / temperature).log_softmax(dim=1) for logits in (student, teacher))
    return F.kl_div(ours, theirs, reduction="batchmean", log_target=True) * temperature**2
