"""What there is to know about every model without building it: size, cost, published accuracy, weights.

Parameters and multiply-accumulates are measured once and kept in ``catalogue.json`` beside this file. After a change
to the models, ``python -m linvit.catalogue`` measures again and rewrites both that file and the page.
"""

import json
import sys
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import timm
import torch
from timm.models import PretrainedCfg, get_pretrained_cfg
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from linvit.files import atomic_write
from linvit.models import list_models

__all__ = ["ModelFacts", "catalogue", "measure", "page"]

MEASURED = Path(__file__).with_name("catalogue.json")

PUBLISHED_TOP1 = {
    "care_s0": 78.4,
    "care_s1": 80.1,
    "care_s2": 82.1,
    "flatten_pvt_tiny": 77.8,
    "flatten_pvt_v2_b0": 71.1,
    "flatten_swin_tiny": 82.1,
    "flatten_swin_small": 83.5,
    "flatten_swin_base": 83.8,
    "flatten_swin_base_384": 85.0,
    "flatten_cswin_tiny": 83.1,
}
"""ImageNet-1K top-1 in per cent, as the paper of the model's family states it."""

_INTRO = """# Models

Every model that `linvit` registers with timm, at its native image size. Parameters and multiply-accumulates are counted
(`FlopCounterMode` divided by two); top-1 is ImageNet-1K's, **as published** by the cited paper, not measured here.
Weights are the authors' (`pretrained=True` fetches them); models without any are for training.
LinGlo's paper published no code: its models are [a reading of the abstract](linglo.md), and no accuracy is theirs yet.

`linvit models [FILTER]` prints this table. Do not edit it: `python -m linvit.catalogue` writes it.

| model | size | parameters (M) | MACs (G) | top-1 (%) | published in | weights |
|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True)
class ModelFacts:
    """A row of the table.

    Attributes:
        name: For ``timm.create_model``.
        img_size: Native height and width.
        params: Number of parameters.
        macs: Multiply-accumulates for one image.
        top1: Published ImageNet-1K top-1 in per cent.
        source: Where ``top1`` is published.
        weights: Where published weights are fetched from.
    """

    name: str
    img_size: int
    params: int
    macs: int
    top1: float | None
    source: str | None
    weights: str | None


def catalogue(pattern: str = "*") -> list[ModelFacts]:
    """Return the facts about the models whose name matches a wildcard, or contains a word.

    Raises:
        ValueError: No model matches.
    """
    names = list_models()
    wildcard = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"
    found = [name for name in names if fnmatch(name, wildcard)]
    if not found:
        raise ValueError(f"no model matches {pattern!r}; there are {', '.join(names)}")
    return [_facts(name, **(_measured().get(name) or measure(name))) for name in found]


def measure(name: str) -> dict[str, int]:
    """Count a model's parameters and multiply-accumulates at its native size, without computing anything."""
    with torch.device("meta"):
        model = timm.create_model(name).eval()
    params = sum(parameter.numel() for parameter in model.parameters())
    return {"params": params, "macs": count_macs(model, _cfg(name).input_size)}


def count_macs(model: nn.Module, input_size: tuple[int, int, int]) -> int:
    """Count the multiply-accumulates of a model in evaluation mode for one image.

    Args:
        model: The model, whose device may be "meta".
        input_size: Channels, height and width.
    """
    image = torch.zeros(1, *input_size, device=next(model.parameters()).device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(image)
    return counter.get_total_flops() // 2


def page() -> str:
    """Return the documentation's page about the models."""
    return _INTRO + "".join(f"{_line(facts)}\n" for facts in catalogue())


def _line(facts: ModelFacts) -> str:
    paper = (facts.source or "").removeprefix("arXiv:")
    cells = [
        f"`{facts.name}`",
        str(facts.img_size),
        f"{facts.params / 1e6:.1f}",
        f"{facts.macs / 1e9:.2f}",
        f"{facts.top1:.1f}" if facts.top1 is not None else "-",
        f"[{facts.source}](https://arxiv.org/abs/{paper})" if facts.source else "-",
        facts.weights or "-",
    ]
    return f"| {' | '.join(cells)} |"


def _facts(name: str, params: int, macs: int) -> ModelFacts:
    cfg = _cfg(name)
    top1 = PUBLISHED_TOP1.get(name)
    return ModelFacts(
        name=name,
        img_size=cfg.input_size[-1],
        params=params,
        macs=macs,
        top1=top1,
        source=str(cfg.paper_ids) if top1 is not None else None,
        weights=_weights(cfg),
    )


def _cfg(name: str) -> PretrainedCfg:
    cfg = get_pretrained_cfg(name)
    assert cfg is not None  # every model of linvit has one
    return cfg


def _weights(cfg: PretrainedCfg) -> str | None:
    """Return where ``pretrained=True`` would look."""
    if cfg.hf_hub_id:
        return f"hf-hub:{cfg.hf_hub_id}"
    if cfg.url:
        url = cfg.url if isinstance(cfg.url, str) else cfg.url[0]
        return url.split("/")[2]
    return None


@cache
def _measured() -> dict[str, dict[str, int]]:
    return json.loads(MEASURED.read_text())


def main(page_path: str = "docs/models.md") -> None:
    """Measure all models; write the figures and the page."""
    figures = {name: measure(name) for name in list_models()}
    with atomic_write(MEASURED) as temporary:
        temporary.write_text(json.dumps(figures, indent=1) + "\n")
    _measured.cache_clear()
    with atomic_write(page_path) as temporary:
        temporary.write_text(page())


if __name__ == "__main__":
    main(*sys.argv[1:])
