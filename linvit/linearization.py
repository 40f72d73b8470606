"""Linear attention in models that someone else wrote: timm's ViT, DeiT, DeiT-III, PVTv2 and Swin.

:func:`linearize` puts a mechanism of :mod:`linvit.attention` in the place of self-attention and keeps the weights of
the projections. What it replaced stands in ``model.linearized`` and in :func:`linearize_report`.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypedDict, TypeVar

import torch
from timm.layers import Attention, PatchDropout
from timm.models.pvt_v2 import Attention as PvtAttention
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer import WindowAttention as SwinAttention
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from linvit.attention import MECHANISMS, TokenAttention
from linvit.models.layers import Block, init_linear, stage_grids

__all__ = ["MECHANISMS", "Described", "Replacement", "describe", "linearize", "linearize_report", "rebuild"]

Model = TypeVar("Model", bound=nn.Module)

_HOSTS: dict[type[nn.Module], type[nn.Module]] = {
    VisionTransformer: Attention,
    PyramidVisionTransformerV2: PvtAttention,
    SwinTransformer: SwinAttention,
}
"""Known models and the class of their self-attention."""


@dataclass(frozen=True)
class Replacement:
    """What was replaced: a row of the report."""

    module: str
    stage: int  # or the block, in models without stages
    was: str
    attention: str
    dim: int
    num_heads: int
    dropped: str  # what of the original has no counterpart


class Described(TypedDict):
    """A replaced attention as :func:`describe` tells it, for :func:`rebuild`."""

    module: str
    attention: str
    grid_size: list[int]


@dataclass(frozen=True)
class _Site:
    """A block with a self-attention."""

    stage: int
    name: str
    block: nn.Module
    grid_size: list[int]

    @property
    def attn_name(self) -> str:
        return f"{self.name}.attn"


def linearize(
    model: Model, attention: str = "focused", stages: Sequence[int] | None = None, copy_weights: bool = True
) -> Model:
    """Replace a model's self-attention by a linear mechanism, in place.

    The projections of queries, keys, values and output stay, and so does all around the attention. Class tokens and
    registers attend and are attended to. PVTv2 loses its spatial reduction: keys and values come from the whole map.
    Swin attends over the whole map instead of shifted windows, without relative position bias. Models take the input
    sizes that they took before.

    Args:
        model: A ViT, DeiT or DeiT-III (timm's ``VisionTransformer``), PVTv2 or Swin, made by timm.
        attention: "focused" (FLatten), "linear" (elu + 1), "relu", "key_only" (a reading of LinGlo, which keeps the
            projections of keys, values and output and drops that of the queries), or "softmax" to compare with.
        stages: Which stages to replace, or which blocks of a model without stages, counted from 0; None for all.
            FLatten replaces the stages 0 and 1 of Swin.
        copy_weights: Keep the projections' weights; False draws new ones.

    Returns:
        The same model. ``model.linearized`` lists what was replaced.

    Raises:
        ValueError: The mechanism or a stage does not exist, or something cannot be replaced; nothing was changed.
    """
    _check_mechanism(attention)
    kind = _attention_class(model)
    sites = list(_sites(model))
    known = range(max(site.stage for site in sites) + 1)
    chosen = list(known) if stages is None else list(stages)
    wrong = [stage for stage in chosen if stage not in known]
    if wrong or not chosen:
        raise ValueError(f"stages must be from 0 to {known[-1]} for {type(model).__name__}, got {chosen}")
    _replace(model, kind, [(site, attention) for site in sites if site.stage in chosen], copy_weights)
    return model


def linearize_report(model: nn.Module) -> str:
    """Return a table of what :func:`linearize` replaced in a model, a line each."""
    rows = [asdict(row) for row in _replacements(model)]
    if not rows:
        return f"{type(model).__name__}: nothing was replaced"
    cells = [list(rows[0]), *([str(value) or "-" for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in cells)


def describe(model: nn.Module) -> list[Described]:
    """Return what :func:`rebuild` needs to repeat a conversion, as plain data; empty for other models."""
    return [
        {
            "module": row.module,
            "attention": row.attention,
            "grid_size": list(model.get_submodule(row.module).grid_size),  # type: ignore[arg-type]
        }
        for row in _replacements(model)
    ]


def rebuild(model: Model, description: Iterable[Described]) -> Model:
    """Convert a fresh model as another one was, from its description.

    Raises:
        ValueError: The description does not fit the model.
    """
    kind = _attention_class(model)
    sites = {site.attn_name: site for site in _sites(model)}
    chosen = []
    for row in description:
        _check_mechanism(row["attention"])
        if row["module"] not in sites:
            raise ValueError(f"{type(model).__name__} has no attention {row['module']!r} to replace")
        site = sites[row["module"]]
        chosen.append((_Site(site.stage, site.name, site.block, list(row["grid_size"])), row["attention"]))
    _replace(model, kind, chosen, copy_weights=True)
    return model


def _replacements(model: nn.Module) -> list[Replacement]:
    return getattr(model, "linearized", [])  # type: ignore[return-value]


def _check_mechanism(attention: str) -> None:
    if attention not in MECHANISMS:
        raise ValueError(f"attention must be one of {', '.join(MECHANISMS)}, got {attention!r}")


def _attention_class(model: nn.Module) -> type[nn.Module]:
    for host, kind in _HOSTS.items():
        if isinstance(model, host):
            return kind
    known = ", ".join(host.__name__ for host in _HOSTS)
    raise ValueError(
        f"cannot linearize {type(model).__name__}; known are timm's {known} (ViT, DeiT, DeiT-III among them)"
    )


def _sites(host: nn.Module) -> Iterator[_Site]:
    model: Any = host
    if isinstance(host, VisionTransformer):
        for i, block in enumerate(model.blocks):
            yield _Site(i, f"blocks.{i}", block, list(model.patch_embed.grid_size))
    elif isinstance(host, PyramidVisionTransformerV2):
        grids = stage_grids(model.pretrained_cfg["input_size"][1:])
        for i, stage in enumerate(model.stages):
            for j, block in enumerate(stage.blocks):
                yield _Site(i, f"stages.{i}.blocks.{j}", block, grids[i])
    else:
        for i, stage in enumerate(model.layers):
            for j, block in enumerate(stage.blocks):
                yield _Site(i, f"layers.{i}.blocks.{j}", block, list(stage.output_resolution))


def _replace(model: Any, kind: type[nn.Module], chosen: list[tuple[_Site, str]], copy_weights: bool) -> None:
    """Check every site, then replace all."""
    patch_drop = getattr(model, "patch_drop", None)
    if isinstance(patch_drop, PatchDropout):
        raise ValueError("cannot linearize a model with patch_drop: what is left of the patches is no grid")
    for site, _ in chosen:
        _check_site(site, kind)
    grid = _Grid(model.patch_embed) if isinstance(model, VisionTransformer) else None
    rows = list(_replacements(model))
    for site, attention in chosen:
        old: Any = site.block.attn
        new = _convert(old, attention, site.grid_size, getattr(model, "num_prefix_tokens", 0), copy_weights)
        rows.append(
            Replacement(
                site.attn_name,
                site.stage,
                type(old).__name__,
                attention,
                old.proj.in_features,
                old.num_heads,
                ", ".join(_dropped(site.block, new)),
            )
        )
        if grid is not None:
            new.register_forward_pre_hook(grid.pass_on, with_kwargs=True)
        if kind is SwinAttention:
            stage, _, index = site.name.rpartition(".")
            model.get_submodule(stage)[int(index)] = _WholeMapBlock(site.block, new)
        else:
            site.block.attn = new
    model.linearized = rows


def _check_site(site: _Site, kind: type[nn.Module]) -> None:
    """Raise a ValueError, which names the module, if its attention is none that can be replaced."""
    attn: Any = getattr(site.block, "attn", None)
    if type(attn) is not kind:
        found = f"{site.name} ({type(site.block).__name__})"
        if attn is not None:
            found = f"{site.attn_name} ({type(attn).__name__})"
        raise ValueError(f"cannot replace {found}; known is timm's {kind.__name__}")
    proj: Any = attn.proj
    extras = {
        "normalised queries and keys": not isinstance(getattr(attn, "q_norm", nn.Identity()), nn.Identity),
        "a norm before the output": kind is Attention and not isinstance(attn.norm, nn.Identity),
        "a gate": getattr(attn, "gate", None) is not None,
        "heads of another total width": proj.in_features != proj.out_features,
    }
    if any(extras.values()):
        what = " and ".join(name for name, there in extras.items() if there)
        raise ValueError(f"cannot replace {site.attn_name}: a {kind.__name__} with {what} has no linear counterpart")


def _dropped(block: Any, new: TokenAttention) -> Iterator[str]:
    attn = block.attn
    if new.qkv.out_features == 2 * new.qkv.in_features:
        yield "queries"
    if getattr(attn, "pool", None) is not None:
        yield "pooling of keys and values"
    elif getattr(attn, "sr", None) is not None:
        yield f"spatial reduction {attn.sr.stride[0]}"
    if isinstance(attn, SwinAttention):
        height, width = attn.window_size
        yield f"{height}x{width} {'shifted ' if any(block.shift_size) else ''}windows, position bias"
    if attn.attn_drop.p:
        yield f"attention dropout {attn.attn_drop.p:g}"


def _convert(old: Any, attention: str, grid_size: list[int], prefix: int, copy_weights: bool) -> TokenAttention:
    """Build a mechanism around the projections of a host's attention."""
    weight = old.proj.weight
    new = MECHANISMS[attention](
        old.proj.in_features,
        tuple(grid_size),
        old.num_heads,
        num_prefix_tokens=prefix,
        device=weight.device,
        dtype=weight.dtype,
    )
    qkv = old.qkv if hasattr(old, "qkv") else _join(old.q, old.kv)
    new.qkv = qkv if new.qkv.out_features == qkv.out_features else _last_rows(qkv, new.qkv.out_features)
    new.proj, new.proj_drop = old.proj, old.proj_drop
    if not copy_weights:
        init_linear(new.qkv)
        init_linear(new.proj)
    return new.train(old.training)


@torch.no_grad()
def _join(q: nn.Linear, kv: nn.Linear) -> nn.Linear:
    """Make one projection of PVTv2's two."""
    joined = nn.Linear(
        q.in_features, 3 * q.in_features, q.bias is not None, device=q.weight.device, dtype=q.weight.dtype
    )
    joined.weight.copy_(torch.cat((q.weight, kv.weight)))
    if q.bias is not None:
        joined.bias.copy_(torch.cat((q.bias, kv.bias)))
    return joined


@torch.no_grad()
def _last_rows(qkv: nn.Linear, rows: int) -> nn.Linear:
    """Take what makes keys and values, which come last, for a mechanism without queries."""
    part = nn.Linear(qkv.in_features, rows, qkv.bias is not None, device=qkv.weight.device, dtype=qkv.weight.dtype)
    part.weight.copy_(qkv.weight[-rows:])
    if qkv.bias is not None:
        part.bias.copy_(qkv.bias[-rows:])
    return part


class _Grid:
    """Tells the attentions of a ViT the grid of the patches, of which its blocks know nothing.

    Its methods are hooks; bound, so that copies of a model have a grid of their own.
    """

    def __init__(self, patch_embed: Any):
        self.size: list[int] = list(patch_embed.grid_size)
        patch_embed.register_forward_pre_hook(self.record)

    def record(self, patch_embed: Any, args: tuple[torch.Tensor, ...]) -> None:
        height, width = patch_embed.dynamic_feat_size(args[0].shape[-2:])
        self.size = [height, width]

    def pass_on(
        self, attn: nn.Module, args: tuple[torch.Tensor, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if kwargs.get("attn_mask") is not None or kwargs.get("is_causal"):
            raise ValueError("linear attention takes no attn_mask and is not causal")
        return (args[0], self.size), {}


class _WholeMapBlock(Block):
    """A Swin block whose attention spans the whole map, unshifted; all but the attention is the host's."""

    def __init__(self, host: nn.Module, attn: TokenAttention):
        nn.Module.__init__(self)
        for name in ("norm1", "attn", "drop_path1", "norm2", "mlp", "drop_path2"):
            setattr(self, name, attn if name == "attn" else getattr(host, name))
        self.training = host.training

    @torch.jit.ignore
    def set_input_size(
        self, feat_size: tuple[int, int], window_size: Any = None, always_partition: bool | None = None
    ) -> None:
        """Make another map the native one; there are no windows to change."""
        self.attn.set_grid_size(list(feat_size))
