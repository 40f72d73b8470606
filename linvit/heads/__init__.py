"""Networks for dense prediction: a head of detection or segmentation on any backbone of linvit or timm.

A :class:`DenseModel` says in plain values how it is built. :func:`linvit.save_model` writes that beside the weights,
and :func:`linvit.load_model` builds it again.
"""

from typing import Any, ClassVar

from torch import nn

from linvit.checks import said_as
from linvit.registry import TASKS

__all__ = ["DenseModel", "build"]


class DenseModel(nn.Module):
    """A network that can be saved and built again.

    Args:
        **architecture: The arguments of ``build`` that make this network (without weights), as JSON knows them.

    Attributes:
        task: Name of its task, a key of :data:`linvit.registry.TASKS`.
        backbone_name: Name of the submodule that is its :class:`linvit.heads.backbone.Backbone`.
        architecture: As given.
        num_classes: Number of classes.
        pretrained_cfg: ``label_names`` (in the order of the outputs) and what it was trained to see, once known.
    """

    task: ClassVar[str]
    backbone_name: ClassVar[str]

    def __init__(self, **architecture: Any) -> None:
        super().__init__()
        self.architecture = architecture
        self.num_classes = int(architecture["num_classes"])
        self.pretrained_cfg: dict[str, Any] = {}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the backbone's activations in the backward pass instead of keeping them."""
        body: Any = self.get_submodule(f"{self.backbone_name}.body")
        body.model.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """Name the parameters that the backbone exempts from weight decay."""
        backbone: Any = self.get_submodule(self.backbone_name)
        return {f"{self.backbone_name}.{name}" for name in backbone.no_weight_decay()}


def build(task: str, architecture: dict[str, Any]) -> DenseModel:
    """Build the network of a task, without weights.

    Raises:
        ValueError: The task is unknown, or the architecture is not one of its.
    """
    known = [name for name, each in TASKS.items() if each.network]
    if task not in known:
        raise ValueError(f"unknown task {task!r} of a saved model; there is {', '.join(known)}")
    with said_as(f"{architecture} is no architecture for task {task!r}"):
        return TASKS[task].load_network()(**architecture)
