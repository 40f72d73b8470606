"""Tables whose size follows the image or the window, carried to other sizes."""

import math

import torch
from torch import nn

from linvit.attention import WindowAttention
from linvit.ops import resize_positions

__all__ = ["TABLES", "resize_tables"]

TABLES = ("positional_encoding", "pos_embed", "relative_position_bias_table")


def resize_tables(state_dict: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """Interpolate a checkpoint's tables to the sizes of a model's, as from 224 to 384.

    Positions are taken bilinearly from square grids, biases bicubically from square windows. What does not fit in
    another way is left as it is, for the comparison that follows.
    """
    expected = dict(model.named_parameters())
    resized = {}
    for name, tensor in state_dict.items():
        path, _, leaf = name.rpartition(".")
        if leaf in TABLES and name in expected and tensor.shape != expected[name].shape:
            owner = model.get_submodule(path)
            if isinstance(owner, WindowAttention) and tensor.shape[1:] == expected[name].shape[1:]:
                tensor = owner.resize_bias_table(tensor)
            elif tensor.ndim == 3 and tensor.shape[2] == expected[name].shape[2]:
                side = math.isqrt(tensor.shape[1])
                if side * side == tensor.shape[1]:
                    grid_size: list[int] = list(owner.grid_size)  # type: ignore[arg-type]
                    tensor = resize_positions(tensor, [side, side], grid_size).contiguous()
        resized[name] = tensor
    return resized
