"""A backbone: feature maps of any linvit or timm model, at the strides that a head needs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
from timm.models._features import FeatureGetterNet
from torch import Tensor, nn
from torch.nn import functional as F

from linvit.checks import did_you_mean, require_numbers, said_as
from linvit.linearization import Described, rebuild
from linvit.weights import prepare_state_dict, read_state_dict
from linvit.weights.description import CONFIG_NAME, read_description
from linvit.weights.hub import create_pretrained

__all__ = ["Backbone"]

WEIGHTS = "model.safetensors"


class Backbone(nn.Module):
    """Feature maps at chosen strides, channels first.

    A model whose blocks all work at one stride (ViT, DeiT) gives maps from evenly spaced blocks, brought to the strides
    by bilinear interpolation.

    Args:
        name: Model by timm's name, or the run folder of a classifier, whose attention may have been replaced.
        strides: Strides of the maps to return, rising.
        pretrained: Start from the published weights or those of the run folder (true), from those of a classifier's
            checkpoint file or run folder (its path), or from none.
        args: More arguments of the model, such as ``drop_path_rate``.
        replaced: Attention to replace, as :func:`linvit.linearization.describe` says it.

    Attributes:
        channels: Channels of the maps.
        mean: Mean of red, green and blue, from 0 to 1, that the model's images have subtracted.
        std: Standard deviation that they are divided by.
        architecture: What builds it again without any folder: ``backbone`` (its name), ``backbone_args``, ``replaced``.

    Raises:
        FileNotFoundError: ``pretrained`` is a path where no weights are.
        ValueError: There is no such model, an argument does not suit it, it has no maps at these strides, or the
            weights do not fit.
    """

    def __init__(
        self,
        name: str,
        strides: Sequence[int],
        pretrained: bool | str = False,
        args: dict[str, Any] | None = None,
        replaced: Sequence[Described] = (),
    ) -> None:
        super().__init__()
        weights = pretrained if isinstance(pretrained, str) else None
        args = args or {}
        if (Path(name) / CONFIG_NAME).is_file():
            weights = name if pretrained is True else weights
            name, known, replaced = _saved(Path(name))
            args = known | args
        model = _create(name, args, pretrained is True and weights is None)
        if replaced:
            rebuild(model, replaced)
        if weights is not None:
            model.load_state_dict(prepare_state_dict(read_state_dict(_file(weights)), model))
        self.architecture: dict[str, Any] = {
            "backbone": name,
            "backbone_args": args,
            "replaced": list(replaced),
        }
        self.strides = tuple(strides)
        self.body = FeatureGetterNet(model, tuple(_levels(name, model, self.strides)))
        self.channels: list[int] = self.body.feature_info.channels()
        self.mean: tuple[float, ...] = tuple(model.pretrained_cfg["mean"])
        self.std: tuple[float, ...] = tuple(model.pretrained_cfg["std"])

    def no_weight_decay(self) -> set[str]:
        """Name the parameters that the model exempts from weight decay."""
        model: Any = self.body.model
        return {f"body.model.{name}" for name in getattr(model, "no_weight_decay", set)()}

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the maps ``[B, channels, H / stride, W / stride]`` of images ``[B, 3, H, W]``, sizes rounded up."""
        sizes = [(-(-image.shape[2] // stride), -(-image.shape[3] // stride)) for stride in self.strides]
        return [_resize(x, size) for x, size in zip(self.body(image), sizes, strict=True)]


def _create(name: str, args: dict[str, Any], pretrained: bool) -> Any:
    if ":" not in name and not timm.is_model(name):
        raise ValueError(f"unknown backbone {name!r}{did_you_mean(name, timm.list_models())}")
    if args.get("in_chans", 3) != 3:
        raise ValueError(f"backbone_args: in_chans must be 3, as images are read in colour, not {args['in_chans']!r}")
    with said_as(f"backbone {name} cannot be built with {args}"):
        create = create_pretrained if pretrained else timm.create_model
        model = create(name, num_classes=0, **args)
        require_numbers(f"backbone_args of {name}", args, type(model))
    if not hasattr(model, "forward_intermediates"):
        raise ValueError(f"{name} cannot be a backbone: it gives no intermediate maps")
    return model


def _saved(folder: Path) -> tuple[str, dict[str, Any], Sequence[Described]]:
    """Read how a saved classifier is built: name, arguments, replaced attention."""
    described = read_description(folder)
    if "task" in described:
        raise ValueError(f"{folder} cannot be a backbone: it holds no classifier")
    args = {name: value for name, value in described.get("model_args", {}).items() if name != "num_classes"}
    return described["architecture"], args, described.get("linearize", [])


def _file(place: str) -> Path:
    path = Path(place) / WEIGHTS if Path(place).is_dir() else Path(place)
    if not path.is_file():
        raise FileNotFoundError(f"pretrained: no weights at {str(path)!r} (true takes the published ones)")
    return path


def _levels(name: str, model: Any, strides: Sequence[int]) -> list[int]:
    """Choose the maps: the last at each stride, or evenly spaced ones where there is one stride alone."""
    offered = [info["reduction"] for info in model.feature_info]
    if len(set(offered)) == 1:
        return [(number * len(offered)) // len(strides) - 1 for number in range(1, len(strides) + 1)]
    if not set(strides) <= set(offered):
        raise ValueError(
            f"backbone {name} has maps at strides {', '.join(map(str, offered))}, and {list(strides)} are needed"
        )
    return [len(offered) - 1 - offered[::-1].index(stride) for stride in strides]


def _resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    return x if x.shape[2:] == size else F.interpolate(x, size, mode="bilinear", align_corners=False)
