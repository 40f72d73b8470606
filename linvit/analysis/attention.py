"""Where a model looks: how much linear attention each position of a map receives."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from linvit.attention import CareTokenMixer
from linvit.ops import elu_plus_one

__all__ = ["attention_received", "has_attention"]


def has_attention(model: nn.Module) -> bool:
    """Whether :func:`attention_received` can look into a model."""
    return bool(_mixers(model))


def _mixers(model: nn.Module) -> list[CareTokenMixer]:
    return [m for m in model.modules() if isinstance(m, CareTokenMixer) and m.num_heads > 0]


@torch.no_grad()
def attention_received(model: nn.Module, images: Tensor) -> Tensor:
    """Return how much each position of the last map that attends is attended to, on average over queries and heads.

    Linear attention never writes its N x N weights down; the mean over queries of the normalised weights
    ``phi(q_i) . phi(k_j) / sum_j' phi(q_i) . phi(k_j')`` needs only sums over queries, and so stays linear too.

    Args:
        model: A CARE model.
        images: Preprocessed images ``[B, 3, H, W]``.

    Returns:
        ``[B, h, w]``, each map sums to 1.

    Raises:
        ValueError: The model has no linear attention of CARE's.
    """
    mixers = _mixers(model)
    if not mixers:
        raise ValueError(f"{type(model).__name__} has no CARE attention to look at")
    received: list[Tensor] = []
    with _features(mixers, received):
        model(images)
    # On small images the last stage has hardly any positions to choose from.
    return next((r for r in reversed(received) if r[0].numel() > 4), received[-1])


@contextmanager
def _features(mixers: list[CareTokenMixer], received: list[Tensor]) -> Iterator[None]:
    def hook(mixer: nn.Module, inputs: tuple[Tensor, ...], qk: Tensor) -> None:
        features = elu_plus_one(qk.float()).unflatten(1, (2, heads[mixer], -1))
        (q, k), (height, width) = features.flatten(-2).unbind(1), qk.shape[-2:]  # [B, h, d, N]
        query = (q / (q * k.sum(-1, keepdim=True)).sum(-2, keepdim=True)).mean(-1)  # [B, h, d]
        received.append((query.unsqueeze(-1) * k).sum(-2).mean(1).unflatten(-1, (height, width)))

    heads: dict[nn.Module, int] = {mixer.qk: mixer.num_heads for mixer in mixers}
    handles = [mixer.qk.register_forward_hook(hook) for mixer in mixers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
