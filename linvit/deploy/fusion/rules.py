"""Every exact algebraic saving that a model allows once it is trained.

:func:`fuse` returns another model that computes the same, equal to rounding, at any size: BatchNorms go into the
convolutions beside them, gains and shifts of LayerNorms and layer scales into projections, CARE's two classifiers
into one, the constants of attention into its projections.
"""

import copy
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import torch
from timm.layers import Attention, LayerNorm, LayerScale, Mlp
from timm.models import reparameterize_model
from timm.models._features import FeatureDictNet
from timm.models.pvt_v2 import Block as PvtBlock
from timm.models.pvt_v2 import MlpWithDepthwiseConv
from timm.models.swin_transformer import PatchMerging
from timm.models.vision_transformer import Block as VitBlock
from torch import nn

from linvit.attention import (
    FocusedLinearAttention,
    KeyOnlyAttention,
    LinearAttention,
    StripeAttention,
    TokenAttention,
    WindowAttention,
)
from linvit.deploy.fusion.attention import (
    FusedFocusedAttention,
    FusedKeyOnlyAttention,
    FusedLinearAttention,
    FusedStripeAttention,
    FusedWindowAttention,
)
from linvit.deploy.fusion.care import FusedCare, FusedCareStage
from linvit.deploy.fusion.folding import affine, scale_inputs, scale_outputs
from linvit.deploy.fusion.merging import FusedPatchMerging
from linvit.deploy.fusion.wrapper import Wrapper
from linvit.models.care import Care, CareBlock, CareHead, CareStage, PatchConv2d
from linvit.models.layers import Block, WholePatchMerging
from linvit.models.linglo import LingloBlock

__all__ = ["FuseReport", "FusedModel", "fuse", "fuse_report", "is_fused"]

_FUSED: dict[type[nn.Module], type[nn.Module]] = {
    Care: FusedCare,
    CareStage: FusedCareStage,
    FocusedLinearAttention: FusedFocusedAttention,
    KeyOnlyAttention: FusedKeyOnlyAttention,
    LinearAttention: FusedLinearAttention,
    PatchMerging: FusedPatchMerging,
    WholePatchMerging: FusedPatchMerging,
    StripeAttention: FusedStripeAttention,
    WindowAttention: FusedWindowAttention,
}
"""What takes the place of what, children first."""


@dataclass(frozen=True)
class FuseReport:
    """What a model has of what fusion removes, before and after it."""

    before: dict[str, int]
    after: dict[str, int]

    @property
    def removed(self) -> dict[str, int]:
        """Return how many there are fewer, of each kind of which there are."""
        return {kind: count - self.after[kind] for kind, count in self.before.items() if count != self.after[kind]}

    def __str__(self) -> str:
        width = max(map(len, self.before))
        lines = [f"{'':{width}}  {'before':>10}  {'after':>10}"]
        lines += [f"{kind:{width}}  {count:10,}  {self.after[kind]:10,}" for kind, count in self.before.items()]
        return "\n".join(lines)


class FusedModel(Wrapper):
    """A model for inference alone, with the interface of the one that it was made from.

    Attributes:
        model: What computes.
        report: What went.
    """

    def __init__(self, model: nn.Module, report: FuseReport):
        super().__init__(model)
        self.report = report
        self.requires_grad_(False).eval()

    def forward(self, images: torch.Tensor) -> Any:
        """Return what the model returns."""
        return self.model(images)

    def train(self, mode: bool = True) -> Self:
        """Refuse training mode."""
        if mode:
            raise ValueError("a fused model is for inference alone; train the model that it was made from")
        return super().train(False)


@torch.no_grad()
def fuse(model: nn.Module) -> FusedModel:
    """Return a copy of a model with every exact saving applied, for inference.

    Works on all models of linvit, on their backbones (``features_only=True``), on models with replaced attention
    (:func:`linvit.linearize`), and on timm's as far as timm or the rules for chains of layers know how.

    Args:
        model: The model; it stays as it is.

    Returns:
        A model in evaluation mode that refuses training mode and whose parameters take no gradient.
    """
    if isinstance(model, FusedModel):
        raise ValueError(f"{type(model.model).__name__} is fused already")
    before = _census(model)
    fused = reparameterize_model(copy.deepcopy(model).eval(), inplace=True)
    for module in list(fused.modules()):
        if isinstance(module, Block | VitBlock | PvtBlock):
            _fold_block(module)
        elif isinstance(module, LingloBlock):
            mixer: Any = module.mixer
            _fold_norm(module, "norm1", mixer.qkv if isinstance(mixer, TokenAttention) else mixer.expand)
            _fold_norm(module, "norm2", module.mlp.fc1)
        elif isinstance(module, PatchMerging):
            _fold_norm(module, "norm", module.reduction)
        elif isinstance(module, nn.Sequential | FeatureDictNet):
            _fold_chain(module)
    fused = _substitute(fused)
    return FusedModel(fused, FuseReport(before, _census(fused)))


def is_fused(model: nn.Module) -> bool:
    """Tell whether a model was made by :func:`fuse`."""
    return isinstance(model, FusedModel)


def fuse_report(model: nn.Module) -> FuseReport:
    """Return what :func:`fuse` removed from a model."""
    if not isinstance(model, FusedModel):
        raise ValueError(f"{type(model).__name__} is not fused")
    return model.report


def _substitute(module: nn.Module) -> nn.Module:
    """Put the fused classes in the place of the trained ones, children first."""
    for name, child in module.named_children():
        setattr(module, name, _substitute(child))
    fused = _FUSED.get(type(module))
    if fused is None or (isinstance(module, PatchMerging) and module.norm.weight is not None):
        return module
    new = fused(module).eval()
    new._forward_pre_hooks = module._forward_pre_hooks  # linearized models pass the grid on by hooks
    new._forward_pre_hooks_with_kwargs = module._forward_pre_hooks_with_kwargs
    return new


def _fold_block(block: Any) -> None:
    """Fold the norms of a pre-norm block into what alone reads them, and layer scales into what they scale."""
    if isinstance(block.attn, TokenAttention | Attention):
        _fold_norm(block, "norm1", block.attn.qkv)
        _fold_scale(block, "ls1", block.attn.proj)
    if isinstance(block.mlp, Mlp | MlpWithDepthwiseConv):
        _fold_norm(block, "norm2", block.mlp.fc1)
        _fold_scale(block, "ls2", block.mlp.fc2)


def _fold_norm(owner: nn.Module, name: str, reader: nn.Module) -> None:
    norm = getattr(owner, name)
    if type(norm) in (nn.LayerNorm, LayerNorm) and norm.weight is not None and isinstance(reader, nn.Linear):
        scale_inputs(reader, *affine(norm))
        setattr(owner, name, nn.LayerNorm(norm.normalized_shape, eps=norm.eps, elementwise_affine=False))


def _fold_scale(owner: nn.Module, name: str, writer: nn.Module) -> None:
    scale = getattr(owner, name, None)
    if isinstance(scale, LayerScale) and isinstance(writer, nn.Linear):
        scale_outputs(writer, scale.gamma.detach().double())
        setattr(owner, name, nn.Identity())


def _fold_chain(chain: Any) -> None:
    """Fold BatchNorms of a chain of layers into the convolution before, or into one without padding after."""
    # What a backbone returns stays as it is: nothing may move past it.
    returned = set(chain.return_layers) if isinstance(chain, FeatureDictNet) else set()
    layers = [(name, layer) for name, layer in chain.named_children() if not isinstance(layer, nn.Identity)]
    folded: set[str] = set()
    for (name, first), (next_name, second) in itertools.pairwise(layers):
        if name in returned | folded:
            continue
        if type(second) is nn.BatchNorm2d and isinstance(first, nn.Conv2d):
            scale_outputs(first, *affine(second))
            folded.add(next_name)
        elif type(first) is nn.BatchNorm2d and _is_plain(second):
            scale_inputs(second, *affine(first))  # type: ignore[arg-type]
            folded.add(name)
    for name in folded:
        setattr(chain, name, nn.Identity())


def _is_plain(layer: nn.Module) -> bool:
    """Tell whether a shift of a layer's input is a shift of its output: a dense convolution without a border."""
    if not isinstance(layer, nn.Conv2d) or isinstance(layer, PatchConv2d):
        return False
    return layer.groups == 1 and layer.padding in (0, (0, 0), "valid")


def _census(model: nn.Module) -> dict[str, int]:
    """Count what fusion removes."""
    modules = list(model.modules())

    def count(*kinds: type[nn.Module]) -> int:
        return sum(isinstance(module, kinds) for module in modules)

    return {
        "BatchNorm": count(nn.modules.batchnorm._BatchNorm),
        "gain and shift of LayerNorm": sum(isinstance(m, nn.LayerNorm) and m.weight is not None for m in modules),
        "layer scale": count(LayerScale) + sum(isinstance(m, CareBlock) and m.gamma is not None for m in modules),
        "convolution": count(nn.Conv2d),
        "classifier of CARE": count(CareHead),
        "scale of focused attention": count(FocusedLinearAttention),
        "look-up of a position bias": count(WindowAttention),
        "weight": sum(tensor.numel() for tensor in _tensors(model)),
    }


def _tensors(model: nn.Module) -> Iterator[torch.Tensor]:
    yield from model.parameters()
    yield from model.buffers()
