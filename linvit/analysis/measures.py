"""What is measured about one attention layer: where it looks, how sharply, how far, and of what rank its map is.

Every function takes a :class:`linvit.analysis.layer.Layer`, as :func:`linvit.analysis.visit_layers` hands it out::

    visit_layers(model, image, lambda layer: (layer.name, attention_entropy(layer)))

Where a measure is a mean over queries, ``most`` bounds how many are looked at, evenly spaced over the grid; the
weights of each are exact.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from linvit.analysis.layer import KeyOnlyLayer, Layer

__all__ = [
    "Rank",
    "attention_distance",
    "attention_entropy",
    "attention_of",
    "attention_rank",
    "attention_received",
    "key_saliency_map",
    "mixing_of",
]

MOST_QUERIES = 1024
MOST_ROWS = 256
CHANNELS = 2


def attention_of(layer: Layer, x: float, y: float) -> Tensor:
    """Return the attention of the pixel ``x, y`` of the image, ``[h, height, width]`` over the keys' grid.

    Each head's map sums to 1 but for what prefix tokens get (and, in linear attention, the normaliser's epsilon).

    Raises:
        ValueError: The pixel lies outside the image.
    """
    query = torch.tensor([layer.query_at(x, y)], device=layer.values.device)
    return layer.as_map(layer.rows(query)[:, 0])


def mixing_of(layer: Layer, x: float, y: float) -> Tensor:
    """Return what the layer mixes into the pixel ``x, y``: ``[height, width]``, attention and local part together.

    The mean over all channels of the weights' sizes. Attention is of a head; a depthwise convolution has weights of
    either sign for every channel; their sum is what each channel's output takes from each token's value.
    """
    query = torch.tensor([layer.query_at(x, y)], device=layer.values.device)
    total = layer.values.new_zeros(layer.num_keys)
    channels = torch.arange(layer.values.shape[1], device=layer.values.device)
    for part in channels.split(max(1, 2**22 // layer.num_keys)):
        total += layer.mixing(query, part)[:, 0].abs().sum(dim=0)
    return layer.as_map(total / len(channels))


def attention_received(layer: Layer) -> Tensor:
    """Return how much attention each position receives, ``[h, height, width]``: the mean over all queries.

    For linear and key-only attention in time linear in the tokens: ``mean_i q_i . k_j / (q_i . sum_j k_j)`` needs the
    mean of the normalised queries alone. For softmax over its rows, a few at a time.
    """
    return layer.as_map(layer.received())


def key_saliency_map(layer: Layer) -> Tensor | None:
    """Return what key-only attention's gate says of each position, ``u . k_j``, ``[h, height, width]``; else None."""
    return layer.as_map(layer.saliency.T) if isinstance(layer, KeyOnlyLayer) else None


def attention_entropy(layer: Layer, most: int = MOST_QUERIES) -> Tensor:
    """Return the entropy of the attention weights in nats, ``[h]``, mean over queries: the lower, the sharper.

    From 0 (all attention on one token) to ``log M`` (the same on all). Rows are normalised first; a row without any
    weight (a query whose features are all zero) is left out. As in Zhai et al., "Stabilizing Transformer Training by
    Preventing Attention Entropy Collapse" (ICML 2023), section 3.
    """
    total, count = layer.values.new_zeros(layer.num_heads), layer.values.new_zeros(layer.num_heads)
    for rows in _rows(layer, most):
        mass = rows.sum(dim=-1, keepdim=True)
        rows = rows / mass.clamp(min=torch.finfo(rows.dtype).tiny)
        total += torch.special.entr(rows).sum(dim=(1, 2))
        count += (mass > 0).sum(dim=(1, 2))
    return total / count.clamp(min=1)


def attention_distance(layer: Layer, most: int = MOST_QUERIES) -> Tensor:
    """Return how far the attention looks, in pixels of the image, ``[h]``: the mean distance of keys from their query.

    Distances are between the centres of patches, weighted by attention, prefix tokens left out, mean over queries
    (Dosovitskiy et al., ICLR 2021, appendix D.7).
    """
    device = layer.values.device
    queries, keys = _centres(layer.grid, layer.strides, device), _centres(layer.key_grid, layer.key_strides, device)
    total, count = layer.values.new_zeros(layer.num_heads), 0
    for part in layer.chunks(layer.sample(most)):
        rows = layer.rows(part)[..., layer.prefix :]
        rows = rows / rows.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)
        distance = torch.cdist(queries[part - layer.prefix], keys).to(rows.dtype)
        total += (rows * distance).sum(dim=(1, 2))
        count += len(part)
    return total / count


@dataclass(frozen=True)
class Rank:
    """The rank of a map ``[full, M]``: numerical and effective, means over heads or channels."""

    numerical: float
    effective: float
    full: int  # the highest that it could be


def attention_rank(
    layer: Layer, mixed: bool = False, most: int = MOST_ROWS, channels: int = CHANNELS, tolerance: float | None = None
) -> Rank:
    """Return the rank of a layer's map, mean over heads.

    Linear attention's weights are products of features of d channels, so that their rank is at most d, however many
    tokens there are; FLatten's depthwise convolution is there to restore it (ICCV 2023, section 4.3: the output is
    ``(A + M_dwc) V``).

    Args:
        layer: The layer.
        mixed: Measure what is mixed, ``A + L``, instead of the attention ``A`` alone. A depthwise convolution differs
            from channel to channel, so this is a mean over channels, of which ``channels`` are taken of each head (and
            as many in proportion of those that no head attends for), evenly spaced.
        most: Rows of the map that are taken, evenly spaced queries; where the grid has no more, the map is whole.
        channels: See above.
        tolerance: Singular values above this share of the largest count; by default the larger side of the map times
            float32's epsilon, as ``torch.linalg.matrix_rank`` has it.

    Returns:
        Numerical rank, and effective rank: the exponential of the entropy of the singular values that are normalised
        to sum to 1 (Roy and Vetterli, "The effective rank", EUSIPCO 2007).
    """
    queries = layer.sample(most)
    if tolerance is None:
        tolerance = max(len(queries), layer.num_keys) * torch.finfo(torch.float32).eps
    count = layer.num_heads
    chosen = None
    if mixed:
        C = layer.values.shape[1]
        attending = int((layer.head_of >= 0).sum())
        count = max(1, layer.num_heads * channels * C // attending)
        chosen = (torch.arange(count, device=queries.device) * C) // count
    ranks = []
    for i in range(count):
        singular = _singular_values(layer, queries, i if chosen is None else chosen[i : i + 1])
        share = singular / singular.sum().clamp(min=torch.finfo(singular.dtype).tiny)
        effective = torch.special.entr(share).sum().exp()
        ranks.append(((singular > tolerance * singular[0]).sum().item(), effective.item()))
    numerical, effective = (sum(each) / count for each in zip(*ranks, strict=True))
    return Rank(numerical, effective, min(len(queries), layer.num_keys))


def _singular_values(layer: Layer, queries: Tensor, which: int | Tensor) -> Tensor:
    """Return the singular values of a head's rows (an integer) or of a channel's mixing, largest first, in float64."""
    step = max(1, 2**22 // layer.num_keys)
    parts = []
    for part in queries.split(step):
        rows = layer.rows(part)[which] if isinstance(which, int) else layer.mixing(part, which)[0]
        parts.append(rows.double())
    rows = torch.cat(parts)
    if rows.shape[1] > 2 * rows.shape[0]:  # the triangular factor has the same singular values
        rows = torch.linalg.qr(rows.T, mode="r").R
    return torch.linalg.svdvals(rows)


def _rows(layer: Layer, most: int) -> Iterator[Tensor]:
    for part in layer.chunks(layer.sample(most)):
        yield layer.rows(part)


def _centres(grid: tuple[int, int], strides: tuple[float, float], device: torch.device) -> Tensor:
    """Return the centres of patches in pixels, ``[cells, 2]``."""
    rows, columns = (
        (torch.arange(count, device=device, dtype=torch.float64) + 0.5) * stride
        for count, stride in zip(grid, strides, strict=True)
    )
    return torch.cartesian_prod(rows, columns)
