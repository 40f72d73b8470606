"""CARE written down plainly, formula by formula, on the tensors of a checkpoint.

It is what :mod:`linvit.models.care` is tested and timed against: no modules, no tricks, any floating-point type.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from linvit.ops import elu_plus_one, linear_attention_reference

__all__ = ["care_reference"]


def care_reference(
    weights: Mapping[str, torch.Tensor],
    x: torch.Tensor,
    head_dims: tuple[int | None, ...] = (None, None, 16, 32),
    training: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the outputs of both heads of a CARE model.

    Args:
        weights: Tensors by their published names.
        x: Images ``[B, 3, H, W]``, H and W multiples of 32.
        head_dims: Channels per attention head of each stage; None where the global group is mixed by convolution.
        training: Normalise by the statistics of the batch, and update the running ones.

    Returns:
        The logits of ``head`` and of ``dist_head``, each ``[B, num_classes]``. In evaluation the model's output is
        their mean.
    """

    def conv(name: str, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
        weight = weights[f"{name}.weight"]
        depthwise = weight.shape[1] == 1
        padding = [size // 2 for size in weight.shape[2:]] if stride == 1 else 0
        return F.conv2d(x, weight, weights[f"{name}.bias"], stride, padding, groups=len(weight) if depthwise else 1)

    def batch_norm(name: str, x: torch.Tensor) -> torch.Tensor:
        mean, var, gain, bias = (weights[f"{name}.{s}"] for s in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, mean, var, gain, bias, training=training, eps=1e-5)

    def attention(name: str, v: torch.Tensor, head_dim: int) -> torch.Tensor:
        def heads(t: torch.Tensor) -> torch.Tensor:  # [B, g, H, W] -> [B, h, N, d]
            return t.flatten(2).unflatten(1, (-1, head_dim)).transpose(2, 3)

        q, k = elu_plus_one(conv(f"{name}.qk", v)).chunk(2, dim=1)
        return linear_attention_reference(heads(q), heads(k), heads(v)).transpose(2, 3).reshape(v.shape)

    def expand(name: str, x: torch.Tensor) -> torch.Tensor:
        return conv(f"{name}_conv", F.gelu(conv(f"{name}_fc1", batch_norm(f"{name}_norm", x))))

    def block(name: str, x: torch.Tensor, head_dim: int | None) -> torch.Tensor:
        mixer, inter = f"{name}.token_mixer", f"{name}.inter_layer"
        memory, glob, local3, local7 = x.chunk(4, dim=1)
        if head_dim is None:
            glob = conv(f"{mixer}.dwconvatt_1", glob) + conv(f"{mixer}.dwconvatt_2", glob)
        else:
            glob = attention(mixer, glob, head_dim)
        mixed = torch.cat((glob, conv(f"{mixer}.dwconv1", local3), conv(f"{mixer}.dwconv2", local7)), dim=1)
        mixed = conv(f"{inter}.inter1_fc2", expand(f"{inter}.inter1", mixed)) + mixed
        y = torch.cat((memory, mixed), dim=1)
        if f"{name}.gamma" not in weights:  # the last block
            return expand(f"{inter}.inter2", y)
        y = conv(f"{inter}.inter2_fc2", expand(f"{inter}.inter2", y)) + y
        return x + weights[f"{name}.gamma"].view(-1, 1, 1) * y

    def head(name: str, x: torch.Tensor) -> torch.Tensor:
        gain, bias, fc, fc_bias = (weights[f"{name}.{s}"] for s in ("norm.weight", "norm.bias", "fc.weight", "fc.bias"))
        return F.linear(F.layer_norm(x, x.shape[-1:], gain, bias, eps=1e-6), fc, fc_bias)

    x = batch_norm("stem.1", conv("stem.0", x, stride=4))
    for i, head_dim in enumerate(head_dims):
        if i > 0:
            x = conv(f"stages.{i}.downsample.1", batch_norm(f"stages.{i}.downsample.0", x), stride=2)
        depth = 1 + max(int(name.split(".")[3]) for name in weights if name.startswith(f"stages.{i}.blocks."))
        for j in range(depth):
            x = block(f"stages.{i}.blocks.{j}", x, head_dim)
    x = F.gelu(x.mean(dim=(2, 3)))
    return head("head", x), head("dist_head", x)
