"""Each measure against the explicit matrix, in float64."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from linvit.analysis import (
    attention_distance,
    attention_entropy,
    attention_of,
    attention_rank,
    attention_received,
    key_saliency_map,
    mixing_of,
    received_map,
    visit_layers,
)
from linvit.analysis.layer import ConvolutionPart, Layer, LinearLayer, SoftmaxLayer
from linvit.ops import linear_attention_reference
from tests.analysis.test_layers import SMALL, build, converted, explicit

EXACT = {"atol": 1e-6, "rtol": 1e-6}


@pytest.fixture(scope="module", params=["deit", "pvt_v2", "care", "cswin", "linglo", "timm_pvt_v2", "timm_vit"])
def layers(request: pytest.FixtureRequest) -> list[Layer]:
    name, arguments, size = SMALL[request.param]
    image = torch.randn(1, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return visit_layers(build(name, arguments), image, lambda layer: layer)


def matrix(layer: Layer) -> Tensor:
    """Return the explicit ``[h, N, M]``."""
    return layer.rows(torch.arange(layer.num_queries))


def each(layers: list[Layer], check: Callable[[Layer, Tensor], None]) -> None:
    for layer in layers:
        check(layer, matrix(layer))


def test_attention_of_a_pixel(layers: list[Layer]) -> None:
    def check(layer: Layer, weights: Tensor) -> None:
        down, right = layer.strides
        for row, column in ((0, 0), (layer.grid[0] - 1, layer.grid[1] // 2)):
            x, y = column * right, row * down
            query = layer.prefix + row * layer.grid[1] + column
            expected = layer.as_map(weights[:, query])
            torch.testing.assert_close(attention_of(layer, x, y), expected, **EXACT)
            mixed = layer.as_map(explicit(layer)[:, query].abs().mean(dim=0))
            torch.testing.assert_close(mixing_of(layer, x, y), mixed, **EXACT)

    each(layers, check)


def test_attention_received(layers: list[Layer]) -> None:
    each(layers, lambda layer, weights: torch.testing.assert_close(
        attention_received(layer), layer.as_map(weights.mean(dim=1)), **EXACT))  # fmt: skip


def test_entropy(layers: list[Layer]) -> None:
    def check(layer: Layer, weights: Tensor) -> None:
        rows = weights[:, layer.prefix :]
        rows = rows / rows.sum(-1, keepdim=True)
        expected = -(rows * rows.clamp(min=1e-300).log()).sum(-1).mean(1)
        torch.testing.assert_close(attention_entropy(layer), expected, **EXACT)
        assert (expected <= math.log(layer.num_keys) + 1e-9).all()

    each(layers, check)


def test_distance(layers: list[Layer]) -> None:
    def check(layer: Layer, weights: Tensor) -> None:
        keys, queries = centres(layer.key_grid, layer.key_strides), centres(layer.grid, layer.strides)
        rows = weights[:, layer.prefix :, layer.prefix :]
        rows = rows / rows.sum(-1, keepdim=True)
        expected = (rows * (queries[:, None] - keys).norm(dim=-1)).sum(-1).mean(1)
        torch.testing.assert_close(attention_distance(layer), expected, **EXACT)

    each(layers, check)


def centres(grid: tuple[int, int], strides: tuple[float, float]) -> Tensor:
    points = [
        ((row + 0.5) * strides[0], (column + 0.5) * strides[1]) for row in range(grid[0]) for column in range(grid[1])
    ]
    return torch.tensor(points, dtype=torch.float64)


def test_patches_that_reach_beyond_the_image_keep_their_size() -> None:
    layers = visit_layers(build("linglo_b0", {}), torch.randn(1, 3, 37, 75).double(), lambda layer: layer)
    assert [layer.strides for layer in layers] == [(4, 4), (8, 8), (16, 16), (32, 32)]
    assert [layer.grid for layer in layers] == [(10, 19), (5, 10), (3, 5), (2, 3)]


@pytest.mark.parametrize("mixed", [False, True])
def test_rank(layers: list[Layer], mixed: bool) -> None:
    for layer in layers:
        whole = (explicit(layer) if mixed else matrix(layer))[:, layer.prefix :]
        every = int((layer.head_of >= 0).sum()) // layer.num_heads
        rank = attention_rank(layer, mixed, most=10_000, channels=every)
        numerical = torch.linalg.matrix_rank(whole, rtol=max(whole.shape[1:]) * torch.finfo(torch.float32).eps)
        singular = torch.linalg.svdvals(whole)
        share = singular / singular.sum(-1, keepdim=True)
        effective = torch.special.entr(share).sum(-1).exp()
        assert rank.full == min(whole.shape[1:])
        assert rank.numerical == pytest.approx(numerical.double().mean().item(), rel=1e-6)
        assert rank.effective == pytest.approx(effective.mean().item(), rel=1e-6)


def test_linear_attention_is_of_low_rank_and_the_convolution_restores_it() -> None:
    """FLatten's argument on features of our own: 4 channels make rank 4 of 64 tokens; 3x3 kernels make it full."""
    torch.manual_seed(0)
    q, k = torch.rand(2, 1, 64, 4, dtype=torch.float64)
    values = torch.rand(64, 4, dtype=torch.float64)
    kernel = torch.rand(4, 3, 3, dtype=torch.float64)
    local = ConvolutionPart(kernel, torch.zeros(4, dtype=torch.float64), (8, 8))
    layer = LinearLayer("focused", q, k, values, grid=(8, 8), local=local)
    torch.testing.assert_close(matrix(layer) @ values, linear_attention_reference(q[None], k[None], values)[0])
    assert attention_rank(layer).numerical == 4
    assert attention_rank(layer, mixed=True, channels=4).numerical >= 60


def test_sharper_attention_has_less_entropy_and_more_rank() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 2, 64, 8, dtype=torch.float64)
    values = torch.zeros(64, 16, dtype=torch.float64)
    soft, sharp = (SoftmaxLayer("softmax", q * scale, k, values, grid=(8, 8)) for scale in (0.1, 5.0))
    assert (attention_entropy(sharp) < attention_entropy(soft)).all()
    assert attention_rank(sharp).effective > attention_rank(soft).effective


def test_a_query_of_zeros_counts_neither_as_sharp_nor_as_flat() -> None:
    q = torch.tensor([[[0.0], [1.0], [1.0], [1.0]]], dtype=torch.float64)
    layer = LinearLayer("relu", q, torch.ones_like(q), torch.zeros(4, 1, dtype=torch.float64), grid=(2, 2))
    assert attention_entropy(layer).item() == pytest.approx(math.log(4), abs=1e-6)


def test_a_sample_of_queries_is_near_the_whole() -> None:
    name, arguments, _ = SMALL["pvt_v2"]
    layers = visit_layers(build(name, arguments), torch.randn(1, 3, 64, 64).double(), lambda layer: layer)
    assert attention_entropy(layers[0], most=64).numpy() == pytest.approx(attention_entropy(layers[0]).numpy(), rel=0.1)


def test_saliency_is_softmaxed_into_what_is_received() -> None:
    name, arguments, size = SMALL["linglo"]
    for layer in visit_layers(build(name, arguments), torch.randn(1, 3, *size).double(), lambda layer: layer):
        saliency = key_saliency_map(layer)
        assert saliency is not None
        torch.testing.assert_close(saliency.flatten(1).softmax(1).view_as(saliency), attention_received(layer))


def test_pixels_outside_are_refused() -> None:
    layers = visit_layers(converted("linear"), torch.randn(1, 3, 64, 96).double(), lambda layer: layer)
    assert key_saliency_map(layers[0]) is None
    assert layers[0].query_at(95, 63) == layers[0].num_queries - 1
    for x, y in ((96, 0), (0, 64), (-1, 0)):
        with pytest.raises(ValueError, match="outside the image as the model sees it, 96x64 pixels"):
            attention_of(layers[0], x, y)


def test_small_images_are_looked_at_more_than_once() -> None:
    """Where one look has 3 x 3 positions, a finer map holds that look's neighbours between its positions."""
    name, arguments, _ = SMALL["care"]
    model = build(name, arguments)
    image = torch.randn(1, 3, 48, 48, dtype=torch.float64)
    once, fine = received_map(model, image, least=1), received_map(model, image)
    assert (once.shape, fine.shape) == ((3, 3), (12, 12))
    assert fine.sum().item() == pytest.approx(1, abs=1e-5)
    moved = torch.nn.functional.pad(image, (0, 2, 0, 2), mode="replicate")[..., 2:, 2:]
    torch.testing.assert_close(fine[2::4, 2::4] * 16, received_map(model, moved, least=1))
    assert received_map(model, torch.randn(1, 3, 224, 224).double()).shape == (7, 7)
    with pytest.raises(ValueError, match="no attention layer is called 'nowhere'"):
        received_map(model, image, layer="nowhere")
