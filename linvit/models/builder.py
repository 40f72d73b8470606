"""Build a model by timm's builder, with published weights fetched, read and checked by linvit."""

from collections.abc import Mapping
from typing import Any, TypeVar

from timm.models import build_model_with_cfg, resolve_pretrained_cfg
from torch import nn

from linvit.weights import fetch_published, prepare_state_dict, read_state_dict

__all__ = ["build_model"]

Model = TypeVar("Model", bound=nn.Module)


def build_model(
    model_cls: type[Model],
    variant: str,
    pretrained: bool,
    pretrained_cfg: dict[str, Any] | None = None,
    pretrained_cfg_overlay: Mapping[str, object] | None = None,
    cache_dir: str | None = None,
    **kwargs: Any,
) -> Model:
    """Build ``variant`` of ``model_cls`` as ``timm.models.build_model_with_cfg`` does.

    With ``pretrained``, the weights come from the file that the configuration names
    (``pretrained_cfg_overlay=dict(file=...)``) or else from the authors' publication. A file that does not fit raises
    a ``ValueError`` that names the tensors. An ``output_stride`` other than 32 raises one, too.
    """
    stride = kwargs.pop("output_stride", 32)
    if stride != 32:
        raise ValueError(
            f"output_stride must be 32 for {variant}, got {stride}: its stages are not dilated; take a decoder that "
            "works on maps of strides 4 to 32, such as FPN, UPerNet or Segformer"
        )
    overlay: dict[str, Any] = dict(pretrained_cfg_overlay or {})
    cfg = resolve_pretrained_cfg(variant, pretrained_cfg, overlay).to_dict()
    read_here = pretrained and "state_dict" not in cfg and "source" not in cfg  # timm reads hub and local folders
    if read_here:
        path = cfg.get("file") or fetch_published(cfg | {"architecture": variant}, cache_dir)
        overlay["state_dict"] = read_state_dict(path)
    model: Any = build_model_with_cfg(
        model_cls,
        variant,
        pretrained,
        pretrained_cfg=pretrained_cfg,
        pretrained_cfg_overlay=overlay,
        pretrained_filter_fn=prepare_state_dict,
        cache_dir=cache_dir,
        **kwargs,
    )
    if read_here:
        model.pretrained_cfg.pop("state_dict", None)  # the weights are in the model now
    return model
