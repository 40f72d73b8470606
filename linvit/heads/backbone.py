"""A backbone: feature maps of any linvit or timm model, at the strides that a head needs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import Format
from torch import Tensor, nn

from linvit.checks import did_you_mean
from linvit.models._pretrained import as_tuple, read_state_dict

__all__ = ["Backbone"]

WEIGHTS = "model.safetensors"


class Backbone(nn.Module):
    """Feature maps at chosen strides, channels first.

    Args:
        name: Model by timm's name.
        strides: Strides of the maps to return.
        pretrained: Start from the published weights (true), from those of a classifier's checkpoint file or run folder
            (its path), or from none.
        args: More arguments of the model, such as ``drop_path_rate``.

    Attributes:
        channels: Channels of the maps.
        mean: Mean of red, green and blue, from 0 to 1, that the model's images have subtracted.
        std: Standard deviation that they are divided by.

    Raises:
        FileNotFoundError: ``pretrained`` is a path where no weights are.
        ValueError: There is no such model, an argument does not suit it, it has no maps at these strides, or the
            weights do not fit.
    """

    def __init__(
        self, name: str, strides: Sequence[int], pretrained: bool | str = False, args: dict[str, Any] | None = None
    ) -> None:
        super().__init__()
        if ":" not in name and not timm.is_model(name):
            raise ValueError(f"unknown backbone {name!r}{did_you_mean(name, timm.list_models())}")
        weights = _weights(name, pretrained) if isinstance(pretrained, str) else {"pretrained": pretrained}
        try:
            body: Any = timm.create_model(name, features_only=True, **weights, **(args or {}))
        except (TypeError, AttributeError, RuntimeError) as error:
            raise ValueError(f"backbone {name} cannot be built with {args or {}}: {error}") from error
        body.pretrained_cfg.pop("state_dict", None)  # the weights are in the model now
        offered = body.feature_info.reduction()
        if not set(strides) <= set(offered):
            raise ValueError(
                f"backbone {name} has maps at strides {', '.join(map(str, offered))}, and {list(strides)} are needed"
            )
        self.body = body
        self._chosen = [len(offered) - 1 - offered[::-1].index(stride) for stride in strides]  # the last of each stride
        self._channels_last = Format(getattr(body, "output_fmt", Format.NCHW)) == Format.NHWC
        self.channels = [body.feature_info.channels()[i] for i in self._chosen]
        self.mean: tuple[float, ...] = tuple(body.pretrained_cfg["mean"])
        self.std: tuple[float, ...] = tuple(body.pretrained_cfg["std"])

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the maps ``[B, channels, H / stride, W / stride]`` of images ``[B, 3, H, W]``."""
        maps = self.body(image)
        chosen = [maps[i] for i in self._chosen]
        return [each.permute(0, 3, 1, 2) for each in chosen] if self._channels_last else chosen


def _weights(name: str, place: str) -> dict[str, Any]:
    """Return what timm needs to take the weights from a file or run folder, whatever classes they are for."""
    path = Path(place) / WEIGHTS if Path(place).is_dir() else Path(place)
    if not path.is_file():
        raise FileNotFoundError(f"pretrained: no weights at {str(path)!r} (true takes the published ones)")
    state_dict: dict[str, torch.Tensor] = read_state_dict(path)
    overlay: dict[str, Any] = {"state_dict": state_dict}
    for head in as_tuple(getattr(timm.get_pretrained_cfg(name), "classifier", None))[:1]:
        if f"{head}.weight" in state_dict:
            overlay["num_classes"] = len(state_dict[f"{head}.weight"])
    return {"pretrained": True, "pretrained_cfg_overlay": overlay}
