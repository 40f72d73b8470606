"""Feature maps: what turns queries and keys into the non-negative features that linear attention needs.

Each maps ``[..., C]`` to ``[..., C]``. Softmax attention is replaced by the inner product ``phi(q) . phi(k)``.
"""

import torch
import torch.nn.functional as F

from linvit.ops.dispatch import operator
from linvit.ops.precision import accumulation_dtype, smallest_normal

__all__ = ["elu_plus_one", "focus", "focus_reference", "relu"]


def elu_plus_one(x: torch.Tensor) -> torch.Tensor:
    """Return ``elu(x) + 1``: ``x + 1`` above zero, ``exp(x)`` below (Katharopoulos et al., ICML 2020, eq. 7)."""
    return F.elu(x) + 1


def relu(x: torch.Tensor) -> torch.Tensor:
    """Return ``max(x, 0)``, the map of EfficientViT (Cai et al., ICCV 2023) and the start of the focused map."""
    return F.relu(x)


def map_features(q: torch.Tensor, k: torch.Tensor, feature_map: str | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Apply the feature map of that name, "elu1" or "relu", to queries and keys; None leaves them as they are."""
    check_feature_map(feature_map)
    if feature_map is None:
        return q, k
    if feature_map == "elu1":
        return elu_plus_one(q), elu_plus_one(k)
    return relu(q), relu(k)


def check_feature_map(feature_map: str | None) -> None:
    """Raise a ValueError if there is no feature map of that name."""
    if feature_map is not None and feature_map not in ("elu1", "relu"):
        raise ValueError(f"feature_map must be None, 'elu1' or 'relu', got '{feature_map}'")


def focus_reference(x: torch.Tensor, power: float = 3.0) -> torch.Tensor:
    """Return ``x^p |x| / |x^p|`` as FLatten writes it (ICCV 2023, eq. 7); overflows where ``x^p`` does."""
    y = x**power
    return y * x.norm(dim=-1, keepdim=True) / y.norm(dim=-1, keepdim=True)


@operator(reference=focus_reference)
def focus(x: torch.Tensor, power: float = 3.0, backend: str = "auto") -> torch.Tensor:
    """Sharpen the direction of each feature vector and keep its norm: ``x^p |x| / |x^p|`` (FLatten, eq. 7).

    The quotient does not change when ``x`` is divided by its largest entry first, so nothing overflows or vanishes
    in the power, and an all-zero vector stays zero.

    Args:
        x: Non-negative features ``[..., C]``. The norms run over the last axis.
        power: The exponent p; 1 leaves ``x`` as it is, larger values approach one-hot directions.
        backend: What computes it (:data:`linvit.ops.BACKENDS`).

    Returns:
        ``[..., C]`` in the type of ``x``, computed in at least float32.
    """
    acc = accumulation_dtype(x)
    y = x.to(acc)
    tiny = smallest_normal(acc)
    norm = torch.linalg.vector_norm(y, dim=-1, keepdim=True)
    y = (y / y.amax(dim=-1, keepdim=True).clamp(min=tiny)) ** power
    # The largest entry of y is now 1 (or all are 0), so its norm is at least 1 wherever it matters.
    y = y * (norm / torch.linalg.vector_norm(y, dim=-1, keepdim=True).clamp(min=tiny))
    return y.to(x.dtype)
