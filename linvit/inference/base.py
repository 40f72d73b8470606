"""What the predictors of all tasks are: a trained network with its preprocessing, on a device, ready for images."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from linvit.checkpoints import class_names
from linvit.checks import require
from linvit.data.parts import HELD_OUT
from linvit.data.preprocessing import check_channels

__all__ = [
    "PRECISIONS",
    "Evaluation",
    "Facts",
    "Prediction",
    "Predictor",
    "Prepared",
    "Report",
    "Rows",
    "Show",
    "check_finite",
    "check_precision",
    "find_device",
    "plainly",
]

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

Facts = Mapping[str, str]
"""A table of two columns: names and values."""

Rows = Sequence[Mapping[str, str]]
"""A table whose columns are the keys of its rows."""

Show = Callable[[Iterable[Any], int, str], Iterable[Any]]
"""Shows how far something that takes long has come: items, how many there are, what is done with them."""


def plainly(items: Iterable[Any], total: int, description: str) -> Iterable[Any]:
    """Show nothing."""
    return items


@dataclass(frozen=True)
class Prepared:
    """An image as the network takes it.

    Attributes:
        pixels: ``[3, h, w]``; with several crops ``[crops, 3, h, w]``.
        size: Height and width of the image, where the result depends on them.
    """

    pixels: Tensor
    size: tuple[int, int] | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        """What images must share to be predicted in one batch."""
        return (*self.pixels.shape, self.size)


class Prediction(ABC):
    """What a network says of one image."""

    @abstractmethod
    def record(self) -> dict[str, Any]:
        """Return it as JSON knows it."""

    @abstractmethod
    def row(self) -> dict[str, str]:
        """Return it as the cells of a table that a person reads."""

    @property
    @abstractmethod
    def columns(self) -> list[str]:
        """Names of the columns of :meth:`csv_rows`, the same for all images."""

    @abstractmethod
    def csv_rows(self) -> list[list[Any]]:
        """Return it as rows; none where nothing was found."""

    @abstractmethod
    def picture(self, image: Image.Image) -> Image.Image:
        """Draw it onto, or beside, the image that it is of."""


@dataclass
class Evaluation(ABC):
    """What an evaluation found; a task adds its metrics."""

    images: int
    seconds: float
    unreadable: list[str] = field(kw_only=True, default_factory=list)

    @property
    def images_per_second(self) -> float:
        """Images per second, loading included."""
        return self.images / self.seconds

    @abstractmethod
    def metrics(self) -> dict[str, Any]:
        """Return the metrics by name: shares of 1, and None where there is nothing to count."""


@dataclass
class Report:
    """What ``linvit eval`` prints.

    Attributes:
        record: For programs, as JSON knows it.
        tables: For people, one after the other.
        unreadable: Files that could not be read, and were left out.
    """

    record: Any
    tables: list[Facts | Rows]
    unreadable: list[str]


P = TypeVar("P", bound=Prediction)
E = TypeVar("E", bound=Evaluation)


class Predictor(ABC, Generic[P, E]):
    """A trained network with its preprocessing, on a device, in a precision, ready for images.

    Args:
        model: The network, as :func:`linvit.load_model` returns it.
        device: "auto" takes the accelerator that torch finds, or else the CPU; or any of torch's device names.
        precision: "float32", or "bfloat16" / "float16" for autocast.
        img_size: Pixels that images are brought to, in the task's own way; None takes the model's setting.

    Attributes:
        batch_size: Images at a time that suit the task.
        classes: Names of the classes, readable where they are ImageNet's.

    Raises:
        ValueError: There is no such device or precision, a setting is outside its range, or the weights are not finite.
    """

    batch_size: ClassVar[int] = 1

    def __init__(
        self, model: nn.Module, device: str = "auto", precision: str = "float32", img_size: int | None = None
    ) -> None:
        check_precision(precision)
        require(img_size is None or img_size >= 1, "img_size", img_size, "at least 1 pixel")
        if hasattr(model, "exported_as"):
            if device not in ("auto", "cpu") or precision != "float32":
                raise ValueError(
                    "an exported file is run on the CPU, in the precision that it was exported in: "
                    f"leave out device and precision, got {device!r} and {precision!r}"
                )
            device = "cpu"
        check_finite(model)
        check_channels(getattr(model, "in_chans", 3))
        self.device = find_device(device)
        self.precision = precision
        self.classes = class_names(model, readable=True)
        # Channels-last is the fastest layout of these models on CPUs and GPUs alike.
        self.model: Any = model.eval().to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    # Images

    @abstractmethod
    def examples(self) -> list[tuple[str, Image.Image]]:
        """Return twelve or so images of the embedded data, with what to call them."""

    @abstractmethod
    def prepare(self, image: Image.Image) -> Prepared:
        """Preprocess an RGB image of any size, on the CPU; threads may do that beside the network."""

    def outputs(self, images: Any, size: tuple[int, int] | None = None) -> Any:
        """Compute what the network says of preprocessed images, on the device; the task says in which form.

        Args:
            images: ``[B, 3, h, w]``, or a list of ``[3, h, w]`` where the task takes images of several sizes.
            size: Height and width that maps of the result are to have, for tasks that have such.

        Raises:
            ValueError: A result is not finite.
        """
        dtype = PRECISIONS[self.precision]
        with torch.inference_mode(), torch.autocast(self.device.type, dtype, enabled=dtype is not torch.float32):
            return self._outputs(images, size)

    @abstractmethod
    def _outputs(self, images: Any, size: tuple[int, int] | None) -> Any:
        """Compute the outputs."""

    @abstractmethod
    def predict_batch(self, images: Sequence[Prepared]) -> list[P]:
        """Predict images that share their :attr:`Prepared.key`."""

    def predict(self, images: Sequence[Image.Image]) -> list[P]:
        """Predict RGB images of any size, those that the network sees in one size together."""
        prepared = [self.prepare(image) for image in images]
        groups: dict[Any, list[int]] = {}
        for index, each in enumerate(prepared):
            groups.setdefault(each.key, []).append(index)
        found: dict[int, P] = {}
        for indices in groups.values():
            predictions = self.predict_batch([prepared[index] for index in indices])
            found |= zip(indices, predictions, strict=True)
        return [found[index] for index in range(len(images))]

    def _check_outputs(self, outputs: Tensor) -> None:
        if not outputs.isfinite().all():
            instead = "" if self.precision == "float32" else f"; {self.precision} may be too narrow: try float32"
            raise ValueError(f"the model's outputs are not finite (NaN or infinite){instead}")

    # Data sets

    @abstractmethod
    def load(
        self,
        data: str,
        split: str | None = None,
        batch_size: int | None = None,
        workers: int = 0,
        strict: bool = False,
        share: float = HELD_OUT,
    ) -> DataLoader[Any]:
        """Open data to evaluate on: a folder in the layout of the task, or embedded data by its name.

        Args:
            data: The folder or name.
            split: Which part of it; None for the held-out one.
            batch_size: Images at a time; None for :attr:`batch_size`.
            workers: Processes that load images.
            strict: Raise on an unreadable image instead of leaving it out.
            share: Share of the images that training held out, where the data have no held-out part.

        Raises:
            OSError: The folder is missing, or a file.
            ValueError: It does not have the layout, or has classes that the model does not know.
        """

    def evaluate(self, loader: DataLoader[Any], show: Show = plainly, what: str = "evaluating") -> E:
        """Compare predictions with the truth of a loader of :meth:`load`.

        Args:
            loader: The data.
            show: Shows how far it has come.
            what: What it is called then.

        Raises:
            ValueError: Not one image could be read.
        """
        counts = self._counts(loader)
        unreadable: list[str] = []
        images = 0
        start = time.perf_counter()
        for batch in show(loader, len(loader), what):
            unreadable += batch["unreadable"]
            if batch["image"] is None or len(batch["image"]) == 0:
                continue
            images += len(batch["image"])
            counts.add(batch)
        seconds = time.perf_counter() - start
        if images == 0:
            raise ValueError(f"none of the {len(unreadable)} images could be read: {', '.join(unreadable[:3])}")
        evaluation: E = counts.result(images, seconds)
        evaluation.unreadable = unreadable
        return evaluation

    @abstractmethod
    def _counts(self, loader: DataLoader[Any]) -> Any:
        """Return what counts: ``add(batch)`` for each batch with images, ``result(images, seconds)`` at the end."""


def check_precision(precision: str) -> None:
    """Raise a ValueError unless the precision is one of ``PRECISIONS``."""
    require(precision in PRECISIONS, "precision", precision, f"one of {', '.join(PRECISIONS)}")


def check_finite(model: nn.Module) -> None:
    """Raise a ValueError that names the first weight or statistic that is not finite."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(
                f"the model's {name} is not finite (NaN or infinite): its training diverged, or the file is damaged"
            )


def find_device(name: str) -> torch.device:
    """Return the device of a name, where "auto" is the accelerator that torch finds, or else the CPU.

    Raises:
        ValueError: It is not here.
    """
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} is not here: give auto, cpu, or an accelerator that torch finds") from error
    return device
