"""Maps that are fine enough to look at, on small images too."""

from collections.abc import Callable
from itertools import product

import torch.nn.functional as F
from torch import Tensor, nn

from linvit.analysis.layer import Layer
from linvit.analysis.measures import attention_received
from linvit.analysis.views import check_image, visit_layers

__all__ = ["fine_maps", "received_map"]

LEAST_CELLS = 5
FINEST = 4


def fine_maps(
    model: nn.Module, image: Tensor, look: Callable[[Layer, int, int], Tensor], least: int = 7, only: str | None = None
) -> list[tuple[Layer, Tensor]]:
    """Return maps of every attention layer, of ``least`` positions a side where the image can be looked at again.

    On a small image a map has few positions: CARE's third stage sees 48 pixels as 3 x 3. So the image is moved by parts
    of a patch and looked at again, 2 or 4 times along each side; each look is exact, and together they are a map as
    fine as that. Pixels that move in repeat the border.

    Args:
        model: As for :func:`linvit.analysis.visit_layers`.
        image: A preprocessed image ``[1, C, H, W]``.
        look: Returns the maps ``[..., height, width]`` of a layer over its keys; besides the layer it is told the
            column and the row that the image begins at in this look.
        least: Positions a side, below which the image is looked at again; 1 looks once.
        only: Name of the one layer to look at; None looks at all.

    Returns:
        For each layer, in order, the layer as it was at the first look, and its maps.
    """
    check_image(image)
    found = _look_once(model, image, lambda layer: only in (None, layer.name), lambda layer: look(layer, 0, 0))
    fine = []
    for layer, maps in found:
        count = _looks(layer, least)
        fine.append(
            maps if count == 1 else maps.new_zeros(*maps.shape[:-2], *(side * count for side in maps.shape[-2:]))
        )
    for strides in dict.fromkeys(layer.key_strides for layer, _ in found if _looks(layer, least) > 1):
        alike = [i for i, (layer, _) in enumerate(found) if layer.key_strides == strides]
        names = {found[i][0].name for i in alike}
        count = _looks(found[alike[0]][0], least)
        down, right = ([int((i + 0.5) * stride / count - stride / 2) for i in range(count)] for stride in strides)
        for (i, y), (j, x) in product(enumerate(down), enumerate(right)):
            again = _look_once(model, _moved(image, y, x), lambda seen: seen.name in names, _at(look, x, y))  # noqa: B023
            for index, (_, maps) in zip(alike, again, strict=True):
                fine[index][..., i::count, j::count] = maps
    return [(layer, maps) for (layer, _), maps in zip(found, fine, strict=True)]


def _at(look: Callable[[Layer, int, int], Tensor], x: int, y: int) -> Callable[[Layer], Tensor]:
    return lambda layer: look(layer, x, y)


def _look_once(
    model: nn.Module, image: Tensor, chosen: Callable[[Layer], bool], look: Callable[[Layer], Tensor]
) -> list[tuple[Layer, Tensor]]:
    seen = visit_layers(model, image, lambda layer: (layer, look(layer).float()) if chosen(layer) else None)
    return [each for each in seen if each is not None]


def _looks(layer: Layer, least: int) -> int:
    """Return how often to look along each side: whole pixels apart, and the same for layers of one stride."""
    looks = 1
    while (
        looks < FINEST
        and min(layer.key_grid) * looks < least
        and all(stride % (4 * looks) == 0 for stride in layer.key_strides)
    ):
        looks *= 2
    return looks


def received_map(model: nn.Module, image: Tensor, least: int = 7, layer: str | None = None) -> Tensor:
    """Return how much attention each position of an image receives in one layer, mean over queries and heads.

    Args:
        model: As for :func:`linvit.analysis.visit_layers`.
        image: A preprocessed image ``[1, C, H, W]``.
        least: Positions a side, as for :func:`fine_maps`.
        layer: Name of the layer; by default the last that has at least 5 positions.

    Returns:
        ``[height, width]``, float32, which sums to 1.

    Raises:
        ValueError: The model has no such layer, or no attention that is known.
    """
    shapes = dict(visit_layers(model, image, lambda seen: (seen.name, seen.key_grid)))
    if layer is not None and layer not in shapes:
        raise ValueError(f"no attention layer is called {layer!r}; there are {', '.join(shapes)}")
    enough = [name for name, (height, width) in shapes.items() if height * width >= LEAST_CELLS]
    only = layer or (enough or list(shapes))[-1]
    ((_, received),) = fine_maps(model, image, lambda seen, x, y: attention_received(seen).mean(dim=0), least, only)
    return received / received.sum().clamp(min=1e-12)


def _moved(image: Tensor, y: int, x: int) -> Tensor:
    """Return the image that begins at row y and column x of this one, which may be negative."""
    height, width = image.shape[-2:]
    wider = F.pad(image, (max(-x, 0), max(x, 0), max(-y, 0), max(y, 0)), mode="replicate")
    top, left = max(y, 0), max(x, 0)
    return wider[..., top : top + height, left : left + width]
