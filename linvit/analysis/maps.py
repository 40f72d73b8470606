"""One picture of where a model looks, made from its layers."""

import torch.nn.functional as F
from torch import Tensor, nn

from linvit.analysis.measures import attention_received
from linvit.analysis.views import check_image, visit_layers

__all__ = ["received_map"]

LEAST_CELLS = 5
FINEST = 4


def received_map(model: nn.Module, image: Tensor, least: int = 12, layer: str | None = None) -> Tensor:
    """Return how much attention each position of an image receives in one layer, mean over queries and heads.

    On a small image a map has few positions: CARE's third stage sees 48 pixels as 3 x 3. So the image is moved by parts
    of a patch and looked at again, 2 or 4 times along each side, until the map has ``least`` positions a side; each
    look is exact, and together they are a map as fine as that. Pixels that move in repeat the border.

    Args:
        model: As for :func:`linvit.analysis.visit_layers`.
        image: A preprocessed image ``[1, C, H, W]``.
        least: Positions a side, above which the image is looked at once; 1 looks once always.
        layer: Name of the layer; by default the last that has at least 5 positions.

    Returns:
        ``[height, width]``, float32, which sums to 1 (to less, where prefix tokens receive some).

    Raises:
        ValueError: The model has no such layer, or no attention that is known.
    """
    check_image(image)

    def look(pixels: Tensor) -> list[tuple[str, Tensor]]:
        return visit_layers(model, pixels, lambda seen: (seen.name, attention_received(seen).mean(dim=0).float()))

    found = look(image)
    names = [name for name, seen in found]
    if layer is not None and layer not in names:
        raise ValueError(f"no attention layer is called {layer!r}; there are {', '.join(names)}")
    chosen = names.index(layer) if layer is not None else len(found) - 1
    if layer is None:
        chosen = next((i for i in reversed(range(len(found))) if found[i][1].numel() >= LEAST_CELLS), chosen)
    coarse = found[chosen][1]
    strides = [side / cells for side, cells in zip(image.shape[-2:], coarse.shape, strict=True)]
    looks = 1
    while looks < FINEST and min(coarse.shape) * looks < least and all(s % (4 * looks) == 0 for s in strides):
        looks *= 2
    if looks == 1:
        return coarse
    fine = coarse.new_zeros(coarse.shape[0] * looks, coarse.shape[1] * looks)
    down, right = ([int((i + 0.5) * s / looks - s / 2) for i in range(looks)] for s in strides)
    for i, y in enumerate(down):
        for j, x in enumerate(right):
            fine[i::looks, j::looks] = look(_moved(image, y, x))[chosen][1]
    return fine / looks**2


def _moved(image: Tensor, y: int, x: int) -> Tensor:
    """Return the image that begins at row y and column x of this one, which may be negative."""
    height, width = image.shape[-2:]
    wider = F.pad(image, (max(-x, 0), max(x, 0), max(-y, 0), max(y, 0)), mode="replicate")
    top, left = max(y, 0), max(x, 0)
    return wider[..., top : top + height, left : left + width]
