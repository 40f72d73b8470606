"""How each mechanism's weights are read off its module: from what went into it, its features are computed once more.

:func:`visit_layers` runs a model on one image and shows every attention layer, in order, as a
:class:`linvit.analysis.layer.Layer`. A layer is looked at while the model runs and dropped before the next, so memory
grows with one layer, not with the depth.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import timm.layers
import torch
import torch.nn.functional as F
from timm.models import pvt_v2, swin_transformer
from torch import Tensor, nn

from linvit.analysis.layer import ConvolutionPart, KeyOnlyLayer, Layer, LinearLayer, SoftmaxLayer, WindowLayer
from linvit.attention import (
    CareTokenMixer,
    FocusedLinearAttention,
    KeyOnlyAttention,
    LinearAttention,
    RankRestoredLinearAttention,
    SoftmaxAttention,
    StripeAttention,
    TokenAttention,
    WindowAttention,
)
from linvit.ops import elu_plus_one, focus, key_saliency, positions_on_grid, relu

__all__ = ["check_image", "has_attention", "visit_layers"]

T = TypeVar("T")
FOCUSED_EPS = 1e-6


@dataclass
class _Host:
    """What a model knows and its attentions do not: the grid of a ViT's tokens, how many precede it, its strides."""

    grid: tuple[int, int] | None = None
    prefix: int = 0
    reductions: tuple[int, ...] = ()


def has_attention(model: nn.Module) -> bool:
    """Whether :func:`visit_layers` finds anything to look at in a model."""
    return any(_viewer(module) for module in model.modules())


def check_image(image: Tensor) -> None:
    """Raise a ValueError unless this is one preprocessed image ``[1, C, H, W]``."""
    if image.ndim != 4 or image.shape[0] != 1:
        raise ValueError(f"one image [1, C, H, W] can be looked into at a time, got {list(image.shape)}")


@torch.no_grad()
def visit_layers(model: nn.Module, image: Tensor, look: Callable[[Layer], T]) -> list[T]:
    """Run a model on one image, look at each attention layer, and return what was seen, in the order of the layers.

    Args:
        model: Any model of linvit, any that :func:`linvit.linearize` converted, or timm's ViT, DeiT, PVTv2 or Swin.
            It is run in evaluation mode and left as it was.
        image: A preprocessed image ``[1, C, H, W]``.
        look: What to do with a layer. Its tensors are on the image's device, in at least float32.

    Raises:
        ValueError: The model has no attention that is known, or this is not one image.
    """
    check_image(image)
    named = {name: module for name, module in model.named_modules() if _viewer(module)}
    if not named:
        raise ValueError(f"{type(model).__name__} has no attention that linvit can look into")
    maps: Any = getattr(model, "feature_info", None) or ()
    host = _Host(None, getattr(model, "num_prefix_tokens", 0), tuple(entry["reduction"] for entry in maps))
    seen: list[T] = []
    handles = [
        module.register_forward_hook(_hook(name, host, image, look, seen), with_kwargs=True)
        for name, module in named.items()
    ]
    embed: Any = getattr(model, "patch_embed", None)
    if hasattr(embed, "dynamic_feat_size"):
        handles.append(embed.register_forward_pre_hook(lambda module, args: _note_grid(host, module, args[0])))
    training = model.training
    try:
        model.eval()(image)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return seen


def _note_grid(host: _Host, embed: Any, image: Tensor) -> None:
    height, width = embed.dynamic_feat_size(image.shape[-2:])
    host.grid = (int(height), int(width))


def _hook(name: str, host: _Host, image: Tensor, look: Callable[[Layer], T], seen: list[T]) -> Callable:
    def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Tensor) -> None:
        viewer = _viewer(module)
        assert viewer is not None
        layer = viewer(module, host, *args, **kwargs)
        if layer is not None:
            layer.name = f"{name}.attn" if isinstance(module, swin_transformer.SwinTransformerBlock) else name
            layer.image_size = (image.shape[-2], image.shape[-1])
            layer.reductions = host.reductions
            seen.append(look(layer))

    return hook


def _viewer(module: nn.Module) -> Callable[..., Layer | None] | None:
    if isinstance(module, CareTokenMixer) and module.num_heads == 0:
        return None  # its tokens are mixed by convolution alone
    return VIEWS.get(type(module))


def _up(x: Tensor) -> Tensor:
    """Take half precision to float32."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _heads(x: Tensor, num_heads: int) -> Tensor:
    """``[N, C]`` to ``[h, N, C / h]``."""
    return x.unflatten(1, (num_heads, -1)).transpose(0, 1)


def _grid(module: TokenAttention, grid_size: list[int] | None) -> tuple[int, int]:
    height, width = grid_size or module.grid_size
    return int(height), int(width)


def _qkv(module: Any, x: Tensor) -> list[Tensor]:
    return list(_up(module.qkv(x)[0]).chunk(3, dim=-1))


def _focused(module: FocusedLinearAttention, host: _Host, x: Tensor, grid_size: list[int] | None = None) -> Layer:
    grid, prefix = _grid(module, grid_size), module.num_prefix_tokens
    q, k, v = _qkv(module, x)
    k = k + _up(positions_on_grid(module.positional_encoding, module.grid_size, list(grid), x.shape[1], prefix)[0])
    scale = F.softplus(_up(module.scale[0]))
    q, k = (_heads(focus((relu(t) + FOCUSED_EPS) / scale, module.power), module.num_heads) for t in (q, k))
    assert module.dwc.bias is not None
    kernel = _up(module.dwc.weight.squeeze(1)).repeat(module.num_heads, 1, 1)
    bias = _up(module.dwc.bias).repeat(module.num_heads)
    if module.get_v is not None:
        assert module.get_v.bias is not None
        kernel = kernel + F.pad(_up(module.get_v.weight.squeeze(1)), [module.border] * 4)
        bias = bias + _up(module.get_v.bias)
    local = ConvolutionPart(kernel, bias, grid, prefix)
    return LinearLayer("focused", q, k, v, grid=grid, prefix=prefix, local=local)


def _linear(module: LinearAttention, host: _Host, x: Tensor, grid_size: list[int] | None = None) -> Layer:
    q, k, v = _qkv(module, x)
    phi = elu_plus_one if module.feature_map == "elu" else relu
    q, k = (_heads(phi(t), module.num_heads) for t in (q, k))
    name = "linear" if module.feature_map == "elu" else "relu"
    grid, prefix, local = _grid(module, grid_size), module.num_prefix_tokens, None
    if isinstance(module, RankRestoredLinearAttention):
        name = f"{name}_rank"
        assert module.dwc.bias is not None
        kernel = _up(module.dwc.weight.squeeze(1)).repeat(module.num_heads, 1, 1)
        local = ConvolutionPart(kernel, _up(module.dwc.bias).repeat(module.num_heads), grid, prefix)
    return LinearLayer(name, q, k, v, grid=grid, prefix=prefix, local=local)


def _key_only(module: KeyOnlyAttention, host: _Host, x: Tensor, grid_size: list[int] | None = None) -> Layer:
    C = module.u.shape[0]
    weight, bias = module.qkv.weight, module.qkv.bias
    saliency = key_saliency(x, weight[-2 * C : -C], module.u, module.num_heads)[0]
    values = _up(F.linear(x, weight[-C:], None if bias is None else bias[-C:])[0])
    gates = None
    if module.interaction == "gate":
        gates = _up(F.linear(x, weight[:C], None if bias is None else bias[:C])[0]).sigmoid()
    side = module.kernel_size if module.interaction == "local_global" else 0
    return KeyOnlyLayer(saliency, values, gates, side, grid=_grid(module, grid_size), prefix=module.num_prefix_tokens)


def _softmax(module: SoftmaxAttention, host: _Host, x: Tensor, grid_size: list[int] | None = None) -> Layer:
    q, k, v = _qkv(module, x)
    q, k = _heads(q, module.num_heads), _heads(k, module.num_heads)
    grid = _grid(module, grid_size)
    return SoftmaxLayer("softmax", q * q.shape[-1] ** -0.5, k, v, grid=grid, prefix=module.num_prefix_tokens)


def _care(module: CareTokenMixer, host: _Host, x: Tensor) -> Layer:
    grid = (x.shape[-2], x.shape[-1])
    width = x.shape[1] // 3
    features = elu_plus_one(_up(module.qk(x[:, :width])[0])).flatten(1).T  # [N, 2g]
    q, k = (_heads(t, module.num_heads) for t in features.chunk(2, dim=1))
    kernel = features.new_zeros(3 * width, 7, 7)
    kernel[width : 2 * width, 2:5, 2:5] = _up(module.dwconv1.weight.squeeze(1))
    kernel[2 * width :] = _up(module.dwconv2.weight.squeeze(1))
    assert module.dwconv1.bias is not None
    assert module.dwconv2.bias is not None
    bias = torch.cat((features.new_zeros(width), _up(module.dwconv1.bias), _up(module.dwconv2.bias)))
    head_of = torch.arange(module.num_heads, device=x.device).repeat_interleave(width // module.num_heads)
    return LinearLayer(
        "care",
        q,
        k,
        _up(x[0]).flatten(1).T,
        grid=grid,
        head_of=F.pad(head_of, (0, 2 * width), value=-1),
        local=ConvolutionPart(kernel, bias, grid),
    )


def _window(module: WindowAttention, host: _Host, x: Tensor, grid_size: list[int] | None = None) -> Layer:
    grid = _grid(module, grid_size)
    table = _up(module.relative_position_bias_table)[module.relative_position_index].permute(2, 0, 1).unsqueeze(1)
    window, shift = [module.window_size] * 2, [module.shift_size] * 2
    q, k, v = _qkv(module, x)
    branch = _branch(q, k, module.num_heads, grid, window, shift, table)
    return WindowLayer("window", [branch], v, grid=grid)


def _stripes(module: StripeAttention, host: _Host, x: Tensor, grid_size: list[int] | None = None) -> Layer:
    grid, count = _grid(module, grid_size), len(module.windows)
    q, k, v = _qkv(module, x)
    branches, locals = [], []
    for part_q, part_k, sides, conv in zip(
        q.chunk(count, 1), k.chunk(count, 1), module.windows, module.get_v, strict=True
    ):
        window = [side or whole for side, whole in zip(sides, grid, strict=True)]
        branches.append(_branch(part_q, part_k, module.num_heads // count, grid, window, [0, 0], None))
        weight, bias = conv.weight, conv.bias
        locals.append(ConvolutionPart(_up(weight.squeeze(1)), _up(bias), grid, window=window))  # type: ignore
    return WindowLayer("stripes" if count > 1 else "softmax", branches, v, locals, grid=grid)


def _branch(
    q: Tensor, k: Tensor, heads: int, grid: tuple[int, int], window: list[int], shift: list[int], table: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Cut tokens into linvit's windows, where padding and what a shift tears apart do not see each other."""
    shift = [s if w < size else 0 for s, w, size in zip(shift, window, grid, strict=True)]
    tokens = torch.arange(q.shape[0], device=q.device).reshape(grid)
    index = _windows(tokens, window, shift)
    torn = torch.stack((tokens // grid[1] < shift[0], tokens % grid[1] < shift[1])).long()
    side = _windows(2 * torn[0] + torn[1], window, shift)  # -1 for padding
    bias = torch.zeros_like(index, dtype=q.dtype).unsqueeze(1).masked_fill(side.unsqueeze(1) < 0, -torch.inf)
    bias = bias.expand(-1, index.shape[1], -1).masked_fill(side.unsqueeze(1) != side.unsqueeze(2), -torch.inf)
    bias = bias.unsqueeze(0) if table is None else bias.unsqueeze(0) + table
    q, k = (_heads(t[index.clamp(min=0)].flatten(0, 1), heads).unflatten(1, index.shape) for t in (q, k))
    return q * q.shape[-1] ** -0.5, k, index, bias


def _windows(grid: Tensor, window: list[int], shift: list[int]) -> Tensor:
    """Shift and cut a grid ``[H, W]`` into windows ``[windows, n]``; -1 for the padding."""
    H, W = grid.shape
    grid = F.pad(grid, (0, -W % window[1], 0, -H % window[0]), value=-1)
    grid = torch.roll(grid, (-shift[0], -shift[1]), (0, 1))
    cut = grid.unflatten(1, (-1, window[1])).unflatten(0, (-1, window[0]))
    return cut.transpose(1, 2).flatten(2).flatten(0, 1)


def _timm_vit(module: Any, host: _Host, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Layer:
    if attn_mask is not None or is_causal:
        raise ValueError("attention with a mask cannot be looked into")
    prefix = host.prefix
    if host.grid is None or x.shape[1] != prefix + host.grid[0] * host.grid[1]:
        raise ValueError(f"{x.shape[1]} tokens do not fit the grid {host.grid} of the patches and {prefix} before it")
    q, k, v = _qkv(module, x)
    q, k = module.q_norm(_heads(q, module.num_heads)), module.k_norm(_heads(k, module.num_heads))
    return SoftmaxLayer("softmax", q * module.scale, k, v, grid=host.grid, prefix=prefix)


def _timm_pvt(module: Any, host: _Host, x: Tensor, feat_size: list[int]) -> Layer:
    H, W = map(int, feat_size)
    q = _up(module.q(x)[0])
    key_grid = (H, W)
    if module.sr is not None:
        x = x.transpose(1, 2).unflatten(2, (H, W))
        x = module.sr(x if module.pool is None else module.pool(x))
        key_grid = (x.shape[-2], x.shape[-1])
        x = module.norm(x.flatten(2).transpose(1, 2))
        if module.act is not None:
            x = module.act(x)
    k, v = _up(module.kv(x)[0]).chunk(2, dim=-1)
    q, k = _heads(q, module.num_heads) * module.scale, _heads(k, module.num_heads)
    return SoftmaxLayer("softmax", q, k, v, grid=(H, W), key_grid=key_grid)


def _timm_swin(block: Any, host: _Host, x: Tensor) -> Layer:
    # timm's padding takes part in the softmax: it has the keys of a zero, and its share of a row is no token's.
    x = block.norm1(x)
    H, W = x.shape[1:3]
    attn = block.attn
    index = _timm_windows(torch.arange(H * W, device=x.device).reshape(H, W), block)
    q, k, v = _up(F.linear(F.pad(x[0].flatten(0, 1), (0, 0, 0, 1)), attn.qkv.weight, attn.qkv.bias)).chunk(3, dim=-1)
    bias = _up(attn._get_rel_pos_bias())[0].unsqueeze(1)
    shifted = F.pad(x, (0, 0, 0, -W % block.window_size[1], 0, -H % block.window_size[0]))
    mask = block.get_attn_mask(shifted) if block.dynamic_mask else block.attn_mask
    if mask is not None:
        bias = bias + _up(mask).unsqueeze(0)
    q, k = (_heads(t[index].flatten(0, 1), attn.num_heads).unflatten(1, index.shape) for t in (q, k))
    return WindowLayer("window", [(q * attn.scale, k, index, bias)], v[:-1], grid=(H, W))


def _timm_windows(grid: Tensor, block: Any) -> Tensor:
    """As timm's Swin does: shifted first, padded then."""
    shifted = torch.roll(grid, tuple(-side for side in block.shift_size), (0, 1))
    return _windows(shifted, list(block.window_size), [0, 0])


VIEWS: dict[type[nn.Module], Callable[..., Layer | None]] = {
    FocusedLinearAttention: _focused,
    LinearAttention: _linear,
    RankRestoredLinearAttention: _linear,
    KeyOnlyAttention: _key_only,
    SoftmaxAttention: _softmax,
    CareTokenMixer: _care,
    WindowAttention: _window,
    StripeAttention: _stripes,
    timm.layers.Attention: _timm_vit,
    pvt_v2.Attention: _timm_pvt,
    swin_transformer.SwinTransformerBlock: _timm_swin,
}
"""How to look into a module, by its exact class; the function gets the module, its host and the module's arguments."""
