"""What the pyramids written here (CARE, PVT, CSwin, LinGlo) share: stages, and timm's interface around them."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from timm.layers import get_device_dtype, to_2tuple, trunc_normal_
from timm.models import checkpoint_seq
from timm.models._features import feature_take_indices
from timm.models._input import update_model_input_size
from torch import nn

from linvit.models.layers import check_pool, init_linear, reset, set_grids, stage_grids
from linvit.ops import positions_on_grid, resize_positions

__all__ = ["Pyramid", "PyramidInterface", "Stage"]


class Stage(nn.Module):
    """Embedding, learned positions where the family has them, and blocks: ``[B, C, H, W]`` to ``[B, C', H', W']``.

    Args:
        downsample: The embedding, which returns a map ``[B, H', W', C']``.
        blocks: Modules on such maps.
        grid_size: Height and width of the native map.
        position_dim: Channels C' of a learned position embedding; None leaves it out.
    """

    def __init__(
        self,
        downsample: nn.Module,
        blocks: Sequence[nn.Module],
        grid_size: list[int],
        position_dim: int | None = None,
        device=None,
        dtype=None,
    ):
        super().__init__()
        self.grad_checkpointing = False
        self.grid_size = grid_size
        self.downsample = downsample
        self.pos_embed = None
        if position_dim is not None:
            positions = grid_size[0] * grid_size[1]
            self.pos_embed = nn.Parameter(torch.empty(1, positions, position_dim, device=device, dtype=dtype))
        self.reset_parameters()
        self.blocks = nn.Sequential(*blocks)

    def reset_parameters(self) -> None:
        """Draw the position embedding anew."""
        if self.pos_embed is not None:
            trunc_normal_(self.pos_embed, std=0.02)

    @torch.jit.ignore
    def set_grid_size(self, grid_size: list[int]) -> None:
        """Make another grid the native one, interpolating the position embedding; blocks have grids of their own."""
        if self.pos_embed is not None:
            with torch.no_grad():
                table = resize_positions(self.pos_embed, self.grid_size, grid_size).contiguous()
            self.pos_embed = nn.Parameter(table, requires_grad=self.pos_embed.requires_grad)
        self.grid_size = grid_size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.downsample(x)
        if self.pos_embed is not None:
            _, H, W, C = x.shape
            positions = positions_on_grid(self.pos_embed, self.grid_size, [H, W], H * W)
            x = x + positions.reshape(1, H, W, C)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            x = checkpoint_seq(self.blocks, x)
        else:
            x = self.blocks(x)
        return x.permute(0, 3, 1, 2)


class PyramidInterface(nn.Module):
    """What timm's interface asks of a model with ``stages`` of strides 4, 8, 16 and 32, whoever wrote them."""

    if TYPE_CHECKING:  # TorchScript would take these for types of its own
        stages: nn.Sequential
        head_drop: nn.Module
        head: nn.Module
        num_classes: int
        global_pool: str
        _init_weights: Callable[[nn.Module], None]

    @torch.jit.ignore
    def init_weights(self, needs_reset: bool = True) -> None:
        """Draw all weights anew, as the constructor does: after ``to_empty``, nothing stays undefined.

        Args:
            needs_reset: Start with every module's own initialisation, such as that of norms and tables.
        """
        if needs_reset:
            self.apply(reset)
        self.apply(self._init_weights)

    @torch.jit.ignore
    def set_input_size(
        self, img_size: int | tuple[int, int] | None = None, patch_size: int | tuple[int, int] | None = None
    ) -> None:
        """Make another image size the native one, interpolating what was learned per position.

        Args:
            img_size: Height and width; None leaves them.
            patch_size: Accepted for timm's interface: the first stage's stride is 4.
        """
        if patch_size is not None and to_2tuple(patch_size) != (4, 4):
            raise ValueError(f"patch_size must be 4 for {type(self).__name__}, got {patch_size}")
        if img_size is not None:
            update_model_input_size(self, img_size)
            set_grids(self.stages, stage_grids(img_size))

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are never decayed beyond timm's rule (biases, norms): none, as published."""
        return set()

    def _pool(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=(2, 3)) if self.global_pool == "avg" else x

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Pool and classify; ``pre_logits`` returns what the classifier would see."""
        x = self.head_drop(self._pool(x))
        if pre_logits or self.num_classes == 0:
            return x
        if self.global_pool == "":
            x = x.permute(0, 2, 3, 1)
        return self.head(x)


class Pyramid(PyramidInterface):
    """Four stages with strides 4, 8, 16 and 32, a final norm or none, average pooling and a linear classifier.

    Args:
        stages: The stages.
        dims: Their widths.
        norm: On the last map, channels last.
        in_chans: Channels of the image.
        num_classes: Classes; 0 leaves the classifier out.
        global_pool: "avg", or "" to keep the map.
        drop_rate: Dropout before the classifier.
        stem: What comes before the stages; nothing if None.
    """

    _init_weights = staticmethod(init_linear)

    def __init__(
        self,
        stages: Sequence[nn.Module],
        dims: Sequence[int],
        norm: nn.Module,
        in_chans: int,
        num_classes: int,
        global_pool: str,
        drop_rate: float,
        stem: nn.Module | None = None,
        device=None,
        dtype=None,
    ):
        super().__init__()
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.global_pool = check_pool(global_pool)
        if stem is not None:
            self.stem = stem
        self.stages = nn.Sequential(*stages)
        self.feature_info = [
            {"num_chs": dim, "reduction": 4 * 2**i, "module": f"stages.{i}"} for i, dim in enumerate(dims)
        ]
        self.num_features = self.head_hidden_size = dims[-1]
        self.norm = norm
        self.drop_rate = drop_rate
        self._build_heads(device, dtype)

    def _build_heads(self, device=None, dtype=None) -> None:
        self.head_drop = nn.Dropout(self.drop_rate).train(self.training)
        self.head: nn.Module = nn.Identity()
        if self.num_classes > 0:
            self.head = nn.Linear(self.num_features, self.num_classes, device=device, dtype=dtype).apply(init_linear)
        self.head.train(self.training)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layer groups for layer-wise learning-rate decay."""
        return {
            "stem": r"^stem|^stages\.0\.(?:downsample|pos_embed)",
            "blocks": r"^stages\.(\d+)"
            if coarse
            else [
                (r"^stages\.(\d+)\.(?:downsample|pos_embed)", (0,)),
                (r"^stages\.(\d+)\.blocks\.(\d+)", None),
                (r"^norm", (99999,)),
            ],
        }

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        for stage in self.stages:
            stage.grad_checkpointing = enable  # type: ignore[assignment]

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """Return the classifier."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one; 0 classes removes it."""
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = check_pool(global_pool)
        self._build_heads(**get_device_dtype(self))

    def _embed(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def _normalise(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the maps of the chosen stages, and the final map unless ``intermediates_only``.

        Args:
            x: Images ``[B, C, H, W]``.
            indices: Stages to return: a list, the last n if an integer, all if None.
            norm: Apply the final norm to the last stage's map.
            stop_early: Leave out the stages after the last one asked for.
            output_fmt: "NCHW" is the only one.
            intermediates_only: Return the list alone.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be 'NCHW', got '{output_fmt}'")  # TorchScript knows no !r
        intermediates = []
        x = self._embed(x)
        take_indices, max_index = feature_take_indices(len(self.stages), indices)
        if torch.jit.is_scripting() or not stop_early:  # TorchScript cannot slice modules
            stages = self.stages
        else:
            stages = self.stages[: max_index + 1]
        last = len(self.stages) - 1
        for i, stage in enumerate(stages):
            x = stage(x)
            if i in take_indices:
                intermediates.append(self._normalise(x) if norm and i == last else x)
        if intermediates_only:
            return intermediates
        return (self._normalise(x) if len(stages) > last else x), intermediates

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages (and norm and classifier) that the chosen intermediates do not need; return their indices."""
        take_indices, max_index = feature_take_indices(len(self.stages), indices)
        pruned = max_index < len(self.stages) - 1
        self.stages = self.stages[: max_index + 1]
        if pruned or prune_norm:
            self.norm = nn.Identity()
        if pruned:
            self.num_features = self.head_hidden_size = self.feature_info[max_index]["num_chs"]
        if prune_head or pruned:
            self.reset_classifier(0, "")
        return take_indices

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Map images ``[B, C, H, W]`` to the last map ``[B, num_features, ceil(H / 32), ceil(W / 32)]``."""
        return self._normalise(self.stages(self._embed(x)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images ``[B, C, H, W]`` to logits ``[B, num_classes]``."""
        return self.forward_head(self.forward_features(x))
