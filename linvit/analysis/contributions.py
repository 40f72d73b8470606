"""How much each of CARE's channel groups contributes, block by block."""

from typing import Any

import torch
from torch import Tensor, nn

from linvit.analysis.views import check_image
from linvit.attention import CareTokenMixer
from linvit.models.care import CareBlock

__all__ = ["GROUPS", "care_contributions"]

GROUPS = ("memory", "global", "local 3x3", "local 7x7")


@torch.no_grad()
def care_contributions(model: nn.Module, image: Tensor) -> list[dict[str, Any]]:
    """Return how much each group that a CARE block mixes contributes to what the block adds: one group left out.

    A block's dual interaction takes four groups of channels: the memory, and what the token mixer made of the global
    and the two local groups (CVPR 2025, section 3.2). A group's contribution is how much the block's result changes
    when the group is replaced by its mean over the map: ``|f(x) - f(x without it)| / |f(x)|``, Euclidean norms. The
    mean stays, so that what is measured is what the group says about positions. Groups interact: the four need not
    sum to 1.

    Args:
        model: A CARE model; it is run in evaluation mode and left as it was.
        image: A preprocessed image ``[1, C, H, W]``.

    Returns:
        For each block its name, the ``grid`` of its map, ``mixer`` ("attention" or "convolution", what mixes the global
        group) and ``contributions`` by the names of :data:`GROUPS`.

    Raises:
        ValueError: This is no CARE model, or not one image.
    """
    check_image(image)
    blocks = [(name, module) for name, module in model.named_modules() if has_groups(module)]
    if not blocks:
        raise ValueError(f"{type(model).__name__} has no groups of channels; CARE models have")
    found: list[dict[str, Any]] = []

    def hook(block: CareBlock, name: str, args: tuple[Tensor, Tensor], output: Tensor) -> None:
        groups = [args[0], *args[1].chunk(3, dim=1)]
        contributions = {}
        for i, group in enumerate(GROUPS):
            replaced = [g.mean(dim=(2, 3), keepdim=True).expand_as(g) if i == j else g for j, g in enumerate(groups)]
            without = block.inter_layer.forward(replaced[0], torch.cat(replaced[1:], dim=1))
            change = (_scaled(block, output) - _scaled(block, without)).norm()
            contributions[group] = (change / _scaled(block, output).norm().clamp(min=1e-12)).item()
        mixer = "attention" if block.token_mixer.num_heads else "convolution"
        found.append({"name": name, "grid": list(output.shape[-2:]), "mixer": mixer, "contributions": contributions})

    handles = [
        block.inter_layer.register_forward_hook(lambda module, args, output, b=block, n=name: hook(b, n, args, output))
        for name, block in blocks
    ]
    training = model.training
    try:
        model.eval()(image)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return found


def has_groups(module: nn.Module) -> bool:
    """Tell whether a module is a block with the groups of :data:`GROUPS`."""
    return isinstance(module, CareBlock) and isinstance(module.token_mixer, CareTokenMixer) and module.split[0] > 0


def _scaled(block: CareBlock, result: Tensor) -> Tensor:
    """Return what a block adds to its input."""
    return result.float() if block.gamma is None else (result * block.gamma.view(-1, 1, 1)).float()
