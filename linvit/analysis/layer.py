"""One attention layer of a model on one image, seen through its weights: by rows or sums, never as an N x N matrix.

A layer mixes tokens: for query i and channel c of head h, ``out_ic = gain_ic sum_j A_hij v_jc + sum_j L_cij v_jc``.
``A`` are the attention weights, ``L`` is the local part that some mechanisms add (a depthwise convolution of the
values, a neighbourhood), and the gain is 1 but where a gate weighs the attention. All that :mod:`linvit.analysis`
measures is written against this class; what is behind a mechanism stands in :mod:`linvit.analysis.views`.
"""

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["ConvolutionPart", "KeyOnlyLayer", "Layer", "LinearLayer", "SoftmaxLayer", "WindowLayer", "strides_of"]

BUDGET = 2**22
"""Most weights that are held at a time, 16 MB in float32."""


class ConvolutionPart:
    """A depthwise convolution of the values on the grid, as weights between tokens.

    Args:
        kernel: ``[C, k, k]``, odd k; it meets zeros outside the grid.
        bias: ``[C]``.
        grid: Height and width.
        prefix: Tokens before the grid, which stay out.
        window: Height and width of windows that the convolution does not look beyond; None for none.
    """

    def __init__(
        self, kernel: Tensor, bias: Tensor, grid: tuple[int, int], prefix: int = 0, window: list[int] | None = None
    ):
        self.kernel, self.bias, self.grid, self.prefix = kernel, bias, grid, prefix
        self.window = window or list(grid)

    def __call__(self, queries: Tensor, channels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weights ``[c, n, K]`` of some channels and the tokens ``[n, K]`` they are of, -1 for none."""
        side = self.kernel.shape[-1]
        index, inside = _neighbours(queries - self.prefix, self.grid, side, self.window)
        index = torch.where(inside & (queries >= self.prefix).unsqueeze(1), index + self.prefix, -1)
        return self.kernel[channels].flatten(1).unsqueeze(1).expand(-1, len(queries), -1), index


def _neighbours(cells: Tensor, grid: tuple[int, int], side: int, window: list[int]) -> tuple[Tensor, Tensor]:
    """Return the cells ``[n, side * side]`` around some cells of a grid, and which lie inside it and their window."""
    offset = torch.arange(side, device=cells.device) - side // 2
    row, column = cells.unsqueeze(1) // grid[1], cells.unsqueeze(1) % grid[1]
    rows = row + offset.repeat_interleave(side)
    columns = column + offset.repeat(side)
    inside = (rows >= 0) & (rows < grid[0]) & (columns >= 0) & (columns < grid[1])
    inside &= (rows // window[0] == row // window[0]) & (columns // window[1] == column // window[1])
    return rows * grid[1] + columns, inside


class Layer:
    """The weights of one attention layer on one image.

    Attributes:
        name: Where it stands in the model, as ``model.get_submodule`` takes it.
        mechanism: What it is called, such as "focused" or "softmax".
        grid: Height and width of the queries' grid.
        key_grid: That of the keys, which is coarser where they are reduced (PVTv2).
        prefix: Tokens before both grids (class token, registers).
        num_heads: Heads h that attend.
        values: ``[M, C]``, what is mixed.
        head_of: ``[C]``, the head of each channel; -1 for channels that no head attends for (CARE's local groups).
        image_size: Height and width of the image, in pixels.
        reductions: The strides of the model's maps, as far as it says.
    """

    def __init__(
        self,
        mechanism: str,
        grid: tuple[int, int],
        num_heads: int,
        values: Tensor,
        prefix: int = 0,
        key_grid: tuple[int, int] | None = None,
        head_of: Tensor | None = None,
        local: ConvolutionPart | None = None,
    ):
        self.name = ""
        self.image_size = (0, 0)
        self.reductions: tuple[int, ...] = ()
        self.mechanism = mechanism
        self.grid = grid
        self.key_grid = key_grid or grid
        self.num_heads = num_heads
        self.values = values
        self.prefix = prefix
        self._convolution = local
        width = values.shape[1] // num_heads
        self.head_of = torch.arange(num_heads).repeat_interleave(width) if head_of is None else head_of

    @property
    def num_queries(self) -> int:
        """Tokens N that attend."""
        return self.prefix + self.grid[0] * self.grid[1]

    @property
    def num_keys(self) -> int:
        """Tokens M that are attended to."""
        return self.prefix + self.key_grid[0] * self.key_grid[1]

    @property
    def has_local(self) -> bool:
        """Whether something local is added to the attention."""
        return self._convolution is not None

    @property
    def bias(self) -> Tensor:
        """What the local part adds to every token, ``[C]``."""
        return self.values.new_zeros(()) if self._convolution is None else self._convolution.bias

    def rows(self, queries: Tensor) -> Tensor:
        """Return the attention weights ``[h, n, M]`` of some queries ``[n]``, exactly those that the layer uses."""
        raise NotImplementedError

    def received(self) -> Tensor:
        """Return how much each token is attended to, ``[h, M]``: the mean of its weight over all queries."""
        total = self.values.new_zeros(self.num_heads, self.num_keys)
        for part in self.chunks(torch.arange(self.num_queries, device=self.values.device)):
            total += self.rows(part).sum(dim=1)
        return total / self.num_queries

    def local(self, queries: Tensor, channels: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return the local weights ``[c, n, K]`` of some channels and their tokens ``[n, K]``, -1 for none."""
        return None if self._convolution is None else self._convolution(queries, channels)

    def gain(self, queries: Tensor, channels: Tensor) -> Tensor:
        """Return what the attention is weighed by, ``[c, n]``."""
        return self.values.new_ones(len(channels), len(queries))

    def mixing(self, queries: Tensor, channels: Tensor) -> Tensor:
        """Return the rows ``[c, n, M]`` of what the layer mixes on some channels: attention and local part together.

        ``out_ic = sum_j mixing_cij v_jc + bias_c`` is what the layer hands to its output projection.
        """
        rows, heads = self.rows(queries), self.head_of.to(channels.device)[channels]
        mixed = rows[heads.clamp(min=0)] * ((heads >= 0).unsqueeze(1) * self.gain(queries, channels)).unsqueeze(-1)
        local = self.local(queries, channels)
        if local is not None:
            weights, index = local
            weights = weights.masked_fill(index < 0, 0).to(mixed.dtype)
            mixed.scatter_add_(2, index.clamp(min=0).expand_as(weights), weights)
        return mixed

    def chunks(self, queries: Tensor) -> Iterator[Tensor]:
        """Split queries so that the rows of each part stay within :data:`BUDGET`."""
        return iter(queries.split(max(1, BUDGET // (self.num_heads * self.num_keys))))

    def sample(self, most: int) -> Tensor:
        """Return at most so many queries of the grid, evenly spaced; all of them where there are no more."""
        cells = self.grid[0] * self.grid[1]
        count = min(cells, most)
        return self.prefix + (torch.arange(count, device=self.values.device) * cells) // count

    @property
    def strides(self) -> tuple[float, float]:
        """Height and width of a query's patch, in pixels."""
        return strides_of(self.image_size, self.grid, self.reductions)

    @property
    def key_strides(self) -> tuple[float, float]:
        """Height and width of a key's patch, in pixels."""
        return strides_of(self.image_size, self.key_grid, self.reductions)

    def query_at(self, x: float, y: float) -> int:
        """Return the query whose patch a pixel of the image lies in.

        Raises:
            ValueError: The pixel lies outside the image.
        """
        height, width = self.image_size
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(f"pixel {x:g},{y:g} lies outside the image as the model sees it, {width}x{height} pixels")
        row, column = int(y // self.strides[0]), int(x // self.strides[1])
        return self.prefix + row * self.grid[1] + column

    def as_map(self, weights: Tensor) -> Tensor:
        """Arrange weights over keys ``[..., M]`` as maps ``[..., height, width]``, without the prefix tokens."""
        return weights[..., self.prefix :].unflatten(-1, self.key_grid)


class LinearLayer(Layer):
    """Linear attention: ``A_ij = q_i . k_j / (M (q_i . mean_j k_j + eps))`` of non-negative features.

    Args:
        q: ``[h, N, d]``.
        k: ``[h, M, d]``.
        eps: Added to the normaliser, as the layer does.
        **kwargs: As for :class:`Layer`.
    """

    def __init__(self, mechanism: str, q: Tensor, k: Tensor, values: Tensor, eps: float = 1e-6, **kwargs):
        super().__init__(mechanism, num_heads=q.shape[0], values=values, **kwargs)
        self.q = q / (q @ k.mean(dim=1).unsqueeze(-1) + eps)  # the normaliser belongs to the query
        self.k = k / k.shape[1]

    def rows(self, queries: Tensor) -> Tensor:
        """See :meth:`Layer.rows`; n x M products of d numbers."""
        return self.q[:, queries] @ self.k.transpose(1, 2)

    def received(self) -> Tensor:
        """See :meth:`Layer.received`; in linear time, since the queries can be averaged first."""
        return (self.k @ self.q.mean(dim=1).unsqueeze(-1)).squeeze(-1)


class SoftmaxLayer(Layer):
    """Softmax attention over all keys: ``A_i = softmax(q_i k^T)``, the scale being in the queries.

    Args:
        q: ``[h, N, d]``.
        k: ``[h, M, d]``.
        **kwargs: As for :class:`Layer`.
    """

    def __init__(self, mechanism: str, q: Tensor, k: Tensor, values: Tensor, **kwargs):
        super().__init__(mechanism, num_heads=q.shape[0], values=values, **kwargs)
        self.q, self.k = q, k

    def rows(self, queries: Tensor) -> Tensor:
        """See :meth:`Layer.rows`."""
        return (self.q[:, queries] @ self.k.transpose(1, 2)).softmax(dim=-1)


class KeyOnlyLayer(Layer):
    """Key-only attention: one row of weights, ``softmax(saliency)``, for all queries.

    Args:
        saliency: ``[N, h]``.
        values: ``[N, C]``.
        gates: ``[N, C]`` of the "gate" interaction, whose local part is the token itself.
        kernel_size: Side of the neighbourhood of "local_global"; 0 has none.
        **kwargs: As for :class:`Layer`.
    """

    def __init__(self, saliency: Tensor, values: Tensor, gates: Tensor | None = None, kernel_size: int = 0, **kwargs):
        super().__init__("key_only", num_heads=saliency.shape[1], values=values, **kwargs)
        self.saliency, self.gates, self.kernel_size = saliency, gates, kernel_size

    @property
    def has_local(self) -> bool:
        """See :attr:`Layer.has_local`."""
        return self.gates is not None or self.kernel_size > 0

    def rows(self, queries: Tensor) -> Tensor:
        """See :meth:`Layer.rows`."""
        return self.received().unsqueeze(1).expand(-1, len(queries), -1)

    def received(self) -> Tensor:
        """See :meth:`Layer.received`."""
        return self.saliency.softmax(dim=0).T

    def gain(self, queries: Tensor, channels: Tensor) -> Tensor:
        """See :meth:`Layer.gain`."""
        if self.gates is None:
            return super().gain(queries, channels)
        return self.gates[queries][:, channels].T

    def local(self, queries: Tensor, channels: Tensor) -> tuple[Tensor, Tensor] | None:
        """See :meth:`Layer.local`; a token has its own value ("gate"), or averages over its neighbourhood."""
        if self.gates is not None:
            return self.values.new_ones(len(channels), len(queries), 1), queries.unsqueeze(1)
        if self.kernel_size == 0:
            return None
        index, inside = _neighbours(queries - self.prefix, self.grid, self.kernel_size, list(self.grid))
        index = torch.where(inside, index + self.prefix, -1)
        alone = F.pad(queries.unsqueeze(1), (0, index.shape[1] - 1), value=-1)  # a prefix token has no neighbours
        index = torch.where((queries < self.prefix).unsqueeze(1), alone, index)
        logits = self.saliency[index.clamp(min=0)].masked_fill((index < 0).unsqueeze(-1), -torch.inf)  # [n, K, h]
        return logits.softmax(dim=1).permute(2, 0, 1)[self.head_of[channels]], index


class WindowLayer(Layer):
    """Softmax attention inside windows; heads may be cut into windows of different shapes (CSwin's stripes).

    Args:
        branches: For each shape of windows: queries (scaled) and keys ``[h', windows, n, d]``; the token of each place
            ``[windows, n]``, -1 for padding; what is added to the logits, broadcast to ``[h', windows, n, n]``,
            or None. The heads of the branches come one after the other.
        values: ``[N, C]``.
        locals: The local part of each branch's channels, which come one after the other, too.
        **kwargs: As for :class:`Layer`.
    """

    def __init__(
        self,
        mechanism: str,
        branches: list[tuple[Tensor, Tensor, Tensor, Tensor | None]],
        values: Tensor,
        locals: list[ConvolutionPart] | None = None,
        **kwargs,
    ):
        super().__init__(mechanism, num_heads=sum(b[0].shape[0] for b in branches), values=values, **kwargs)
        self.branches, self.locals = branches, locals or []

    @property
    def has_local(self) -> bool:
        """See :attr:`Layer.has_local`."""
        return bool(self.locals)

    @property
    def bias(self) -> Tensor:
        """See :attr:`Layer.bias`."""
        return torch.cat([part.bias for part in self.locals]) if self.locals else super().bias

    def rows(self, queries: Tensor) -> Tensor:
        """See :meth:`Layer.rows`."""
        out = []
        for q, k, index, bias in self.branches:
            rows = q.new_zeros(q.shape[0], len(queries), self.num_keys + 1)  # the last takes what padding gets
            place = torch.full((self.num_keys + 1,), -1, device=q.device)
            place[index.flatten()] = torch.arange(index.numel(), device=q.device)
            places = place[queries]
            for window in (places // index.shape[1]).unique().tolist():
                chosen = (places // index.shape[1] == window).nonzero().squeeze(1)
                weights = _window_weights(q, k, bias, window, places[chosen] % index.shape[1])
                rows[:, chosen.unsqueeze(1), index[window].unsqueeze(0)] = weights
            out.append(rows[..., :-1])
        return torch.cat(out)

    def received(self) -> Tensor:
        """See :meth:`Layer.received`; window by window."""
        out = []
        for q, k, index, bias in self.branches:
            total = q.new_zeros(q.shape[0], self.num_keys + 1)
            for window in range(len(index)):
                real = (index[window] >= 0).nonzero().squeeze(1)
                for part in real.split(max(1, BUDGET // (q.shape[0] * index.shape[1]))):
                    weights = _window_weights(q, k, bias, window, part)
                    total[:, index[window]] += weights.sum(dim=1)
            out.append(total[:, :-1] / self.num_queries)
        return torch.cat(out)

    def local(self, queries: Tensor, channels: Tensor) -> tuple[Tensor, Tensor] | None:
        """See :meth:`Layer.local`; channels of one branch at a time."""
        if not self.locals:
            return None
        width = self.values.shape[1] // len(self.locals)
        parts = [self.locals[c // width](queries, channels[i : i + 1] % width) for i, c in enumerate(channels.tolist())]
        # Stripes of different shapes end at different places: what one branch does not see has no weight.
        weights = torch.stack([weight[0].masked_fill(index < 0, 0) for weight, index in parts])
        return weights, torch.stack([index for _, index in parts]).amax(dim=0)


def strides_of(size: tuple[int, int], grid: tuple[int, int], reductions: Iterable[int]) -> tuple[float, float]:
    """Return height and width of the patches that a grid divides an image of a size into, in pixels.

    Models pad images to whole patches, so that the last may reach beyond: one of the model's known ``reductions`` is
    taken where it makes this grid.
    """
    for reduction in reductions:
        if all(-(-side // reduction) == cells for side, cells in zip(size, grid, strict=True)):
            return reduction, reduction
    return size[0] / grid[0], size[1] / grid[1]


def _window_weights(q: Tensor, k: Tensor, bias: Tensor | None, window: int, places: Tensor) -> Tensor:
    logits = q[:, window, places] @ k[:, window].transpose(1, 2)
    if bias is not None:
        logits = logits + bias[:, window if bias.shape[1] > 1 else 0, places]
    return logits.softmax(dim=-1)
