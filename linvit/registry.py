"""The tasks, by name, in one place: what trains, loads, predicts, evaluates and exports the models of each.

Everything is named here as ``module:object`` and imported when it is asked for.
"""

import pkgutil
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from linvit.data.module import VisionData
    from linvit.deploy.dense import ExportView
    from linvit.heads import DenseModel
    from linvit.inference.base import Predictor, Report
    from linvit.tasks.base import VisionTask

__all__ = ["TASKS", "Link", "Task", "load_exported", "load_quantization"]


@dataclass(frozen=True)
class Link:
    """A setting of a training that is not the user's to give, because it follows from another.

    Attributes:
        source: The other: ``data.NAME`` is an attribute of the data module, ``model.NAME`` a setting.
        target: The setting.
        compute: Makes its value of the other's; by default they are the same.
    """

    source: str
    target: str
    compute: Callable[[Any], Any] | None = None

    def apply(self, parser: Any) -> None:
        """Make it so in a parser of Lightning's."""
        when = "instantiate" if self.source.startswith("data.") else "parse"
        parser.link_arguments(self.source, self.target, compute_fn=self.compute, apply_on=when)


@dataclass(frozen=True)
class Task:
    """A task.

    Attributes:
        title: The field's name of it.
        training: The Lightning module, a :class:`linvit.tasks.base.VisionTask`.
        data: The Lightning data module, a :class:`linvit.data.module.VisionData`.
        predictor: What uses a trained model, a :class:`linvit.inference.base.Predictor`.
        evaluation: The function behind ``linvit eval``; returns a :class:`linvit.inference.base.Report`.
        network: Builds a network from its description, without weights; none where timm builds it.
        export: What of a network goes into a file, a :class:`linvit.deploy.dense.ExportView`; none for all of it.
        examples: Embedded data whose images the commands take by this name.
        named_by: Settings of the training that the default run folder is named by.
        links: What settings follow from others.
    """

    title: str
    training: str
    data: str
    predictor: str
    evaluation: str
    network: str | None = None
    export: str | None = None
    examples: str = "mnist5k"
    named_by: tuple[str, ...] = ("name",)
    links: tuple[Link, ...] = ()

    def load_training(self) -> "tuple[type[VisionTask], type[VisionData]]":
        """Import the Lightning module and the data module."""
        return pkgutil.resolve_name(self.training), pkgutil.resolve_name(self.data)

    def load_predictor(self) -> "type[Predictor[Any, Any]]":
        """Import the predictor."""
        return pkgutil.resolve_name(self.predictor)

    def load_evaluation(self) -> "Callable[..., Report]":
        """Import the evaluation."""
        return pkgutil.resolve_name(self.evaluation)

    def load_network(self) -> "Callable[..., DenseModel]":
        """Import the builder of the network.

        Raises:
            ValueError: timm builds them.
        """
        return _resolved(self.network, self.title)

    def load_export(self) -> "type[ExportView]":
        """Import the view that is exported.

        Raises:
            ValueError: The models are exported as they are.
        """
        return _resolved(self.export, self.title)

    def run_name(self, settings: Namespace) -> str:
        """Return what a run with these settings of the training is called."""
        return "-".join(str(getattr(settings, name)) for name in self.named_by)


def _resolved(name: str | None, title: str) -> Any:
    if name is None:
        raise ValueError(f"models for {title} are timm's: built and exported as they are")
    return pkgutil.resolve_name(name)


def load_quantization() -> Callable[..., Any]:
    """Import what rebuilds a model that was trained in 8 bits from its description."""
    return pkgutil.resolve_name("linvit.deploy.quantization:rebuild")


def load_exported() -> Callable[..., Any]:
    """Import what opens an exported file as a model, and leaves other files to others."""
    return pkgutil.resolve_name("linvit.deploy.exported:open_exported")


def _has_masks(name: str) -> bool:
    return name == "mask_rcnn"


_CLASSIFY = Task(
    title="classification",
    training="linvit.tasks.classification:ClassificationTask",
    data="linvit.data.classification:ClassificationData",
    predictor="linvit.inference.classification:ClassificationPredictor",
    evaluation="linvit.inference.reports.classification:evaluate",
)

TASKS = {
    "classify": _CLASSIFY,
    "linearize": replace(_CLASSIFY, training="linvit.tasks.linearize:LinearizeTask"),
    "quantize": replace(
        _CLASSIFY,
        training="linvit.tasks.quantize:QuantizeTask",
        links=(Link("data.img_size", "model.img_size"),),
    ),
    "pretrain": replace(
        _CLASSIFY,
        training="linvit.tasks.pretrain:PretrainTask",
        data="linvit.data.pretraining:PretrainData",
    ),
    "detect": Task(
        title="detection",
        training="linvit.tasks.detection:DetectionTask",
        data="linvit.data.detection:DetectionData",
        predictor="linvit.inference.detection:DetectionPredictor",
        evaluation="linvit.inference.reports.detection:evaluate",
        network="linvit.heads.detection:build",
        export="linvit.deploy.dense:DetectionView",
        examples="digit-scenes",
        named_by=("name", "backbone"),
        links=(
            Link("data.size", "model.size"),
            Link("data.max_size", "model.max_size"),
            Link("model.name", "data.masks", _has_masks),
        ),
    ),
    "segment": Task(
        title="segmentation",
        training="linvit.tasks.segmentation:SegmentationTask",
        data="linvit.data.segmentation:SegmentationData",
        predictor="linvit.inference.segmentation:SegmentationPredictor",
        evaluation="linvit.inference.reports.segmentation:evaluate",
        network="linvit.heads.segmentation:build",
        export="linvit.deploy.dense:SegmentationView",
        examples="digit-scenes",
        named_by=("name", "backbone"),
    ),
}
"""By the name that ``linvit train --task`` takes and a saved model says."""
