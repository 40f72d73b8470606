"""FLatten-DeiT: timm's Vision Transformer, without a class token, with focused linear attention in every block.

Papers: Han et al., "FLatten Transformer" (ICCV 2023, https://arxiv.org/abs/2308.00442); host: Touvron et al., "Training
data-efficient image transformers" (ICML 2021, https://arxiv.org/abs/2012.12877).
"""

from typing import Any

import torch
from timm.layers import calculate_drop_path_rates
from timm.models import checkpoint, checkpoint_seq, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from timm.models._input import update_model_input_size
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from linvit.attention import build_attention
from linvit.models._flatten import cfg, rename
from linvit.models.builder import build_model
from linvit.models.layers import Block, WholePatchEmbed, check_given, check_pool, set_grids
from linvit.ops import positions_on_grid, resize_positions
from linvit.weights import resize_tables

__all__ = ["FlattenDeit", "checkpoint_filter_fn"]


_GIVEN: dict[str, Any] = {"class_token": False, "dynamic_img_size": True, "dynamic_img_pad": True}
# What timm's blocks or tokens would take, and these cannot: another value would be passed over without a word.
_NOT_TAKEN: dict[str, Any] = {
    **{"qkv_bias": True, "proj_bias": True, "qk_norm": False, "scale_attn_norm": False, "scale_mlp_norm": False},
    **{"init_values": None, "attn_drop_rate": 0.0, "patch_drop_rate": 0.0, "reg_tokens": 0, "pre_norm": False},
    **dict.fromkeys(("norm_layer", "act_layer", "block_fn", "mlp_layer", "attn_layer")),
}


class FlattenDeit(VisionTransformer):
    """DeiT with focused linear attention; the mean over the patch tokens takes the class token's place.

    Args:
        embed_dim: Width.
        depth: Blocks.
        num_heads: Heads.
        mlp_ratio: Hidden width of the MLPs over the model's.
        attention: "focused", or one of :data:`linvit.attention.MECHANISMS` to compare it with in the same host.
        power: The focusing power p.
        kernel_size: Side of the rank-restoring convolution's kernel.
        img_size: The native image size, for which positions are learned.
        patch_size: Side of a patch.
        global_pool: "avg", or "" to keep the tokens.
        proj_drop_rate: Dropout after the attentions' projections and in the MLPs.
        drop_path_rate: Stochastic depth of the last block; it rises linearly from 0.
        **kwargs: Further arguments of timm's ``VisionTransformer``.

    Raises:
        ValueError: A further argument that only timm's blocks would take.
    """

    def __init__(
        self,
        embed_dim: int = 192,
        depth: int = 12,
        num_heads: int = 3,
        mlp_ratio: float = 4.0,
        attention: str = "focused",
        power: float = 3.0,
        kernel_size: int = 5,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        global_pool: str = "avg",
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device=None,
        dtype=None,
        **kwargs: Any,
    ):
        dd = {"device": device, "dtype": dtype}
        check_given(_GIVEN | _NOT_TAKEN, kwargs)
        host: dict[str, Any] = {"fc_norm": False, "embed_layer": WholePatchEmbed} | kwargs | _GIVEN
        # timm builds everything but the blocks.
        super().__init__(
            img_size=img_size,  # type: ignore[arg-type]
            patch_size=patch_size,
            embed_dim=embed_dim,
            depth=0,
            global_pool=check_pool(global_pool),  # type: ignore[arg-type]
            **host,
            **dd,
        )
        assert self.pos_embed is not None  # learned positions are timm's default
        self.pos_embed: nn.Parameter = self.pos_embed
        self.grid_size: list[int] = list(self.patch_embed.grid_size)
        focus = {"power": power, "kernel_size": kernel_size}
        rates: list = calculate_drop_path_rates(drop_path_rate, depth)
        for i, rate in enumerate(rates):
            attn = build_attention(
                attention, embed_dim, self.grid_size, num_heads, focus, proj_drop=proj_drop_rate, **dd
            )
            block = Block(attn, embed_dim, mlp_ratio, proj_drop=proj_drop_rate, drop_path=rate, **dd)
            self.blocks.append(block)
            self.feature_info.append({"module": f"blocks.{i}", "num_chs": embed_dim, "reduction": patch_size})

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are never decayed beyond timm's rule (biases, norms)."""
        return {"pos_embed"}

    @torch.jit.ignore
    def set_input_size(  # type: ignore[override]
        self, img_size: int | tuple[int, int] | None = None, patch_size: int | tuple[int, int] | None = None
    ) -> None:
        """Make another image or patch size the native one, interpolating positions and kernels; None leaves one."""
        if img_size is None and patch_size is None:
            return
        self.patch_embed.set_input_size(img_size=img_size, patch_size=patch_size)
        for info in self.feature_info:
            info["reduction"] = max(self.patch_embed.patch_size)
        grid = list(self.patch_embed.grid_size)
        with torch.no_grad():
            table = resize_positions(self.pos_embed, self.grid_size, grid).contiguous()
        self.pos_embed = nn.Parameter(table, requires_grad=self.pos_embed.requires_grad)
        set_grids([self.blocks], [grid])
        self.grid_size = grid
        update_model_input_size(self, self.patch_embed.img_size, patch_size=patch_size)

    def _embed(self, x: torch.Tensor) -> torch.Tensor:
        """Map images to patches with positions, ``[B, H, W, C]``."""
        x = self.patch_embed(x)
        _, H, W, C = x.shape
        positions = positions_on_grid(self.pos_embed, self.grid_size, [H, W], H * W)
        return self.pos_drop(x + positions.reshape(1, H, W, C))

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Map images ``[B, C, H, W]`` to normalised tokens ``[B, N, embed_dim]``."""
        x = self._embed(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            x = checkpoint_seq(self.blocks, x)
        else:
            x = self.blocks(x)
        return self.norm(x.flatten(1, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Map images ``[B, C, H, W]`` to logits ``[B, num_classes]``."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(  # type: ignore[override]
        self,
        x: torch.Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
        attn_mask: torch.Tensor | None = None,
        is_causal: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]] | dict[str, Any]:
        """Return the outputs of the chosen blocks, and the final tokens unless ``intermediates_only``.

        Args:
            x: Images ``[B, C, H, W]``.
            indices: Blocks to return: a list, the last n if an integer, all if None.
            return_prefix_tokens: Accepted for timm's interface: there are none.
            norm: Apply the final norm to every one of them.
            stop_early: Leave out the blocks after the last one asked for.
            output_fmt: "NCHW" for maps, "NLC" for tokens.
            intermediates_only: Return the list alone.
            output_dict: Return a dictionary: the list as "image_intermediates", the tokens as "image_features".
            attn_mask: Accepted for timm's interface: None, as linear attention has no weights to mask.
            is_causal: The same: False.

        Raises:
            ValueError: Another ``output_fmt``, or a mask.
        """
        if attn_mask is not None or is_causal:
            raise ValueError("attn_mask must be None and is_causal False: linear attention has no weights to mask")
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt must be 'NCHW' or 'NLC', got '{output_fmt}'")
        take_indices, max_index = feature_take_indices(len(self.blocks), indices)
        intermediates = []
        x = self._embed(x)
        if torch.jit.is_scripting() or not stop_early:  # TorchScript cannot slice modules
            blocks = self.blocks
        else:
            blocks = self.blocks[: max_index + 1]
        for i, block in enumerate(blocks):
            if self.grad_checkpointing and not torch.jit.is_scripting():
                x = checkpoint(block, x)
            else:
                x = block(x)
            if i in take_indices:
                y = self.norm(x) if norm else x
                intermediates.append(y.flatten(1, 2) if output_fmt == "NLC" else y.permute(0, 3, 1, 2))
        if not torch.jit.is_scripting():  # noqa: SIM102 -- TorchScript skips the block for this test alone
            if output_dict:
                found: dict[str, Any] = {"image_intermediates": intermediates}
                return found if intermediates_only else found | {"image_features": self.norm(x.flatten(1, 2))}
        if intermediates_only:
            return intermediates
        return self.norm(x.flatten(1, 2)), intermediates


def checkpoint_filter_fn(state_dict: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """Fit positions to the image size."""
    return resize_tables(rename(state_dict, []), model)


default_cfgs = generate_default_cfgs(
    {
        "flatten_deit_tiny.untrained": cfg(first_conv="patch_embed.proj", pool_size=(14, 14)),
        "flatten_deit_small.untrained": cfg(first_conv="patch_embed.proj", pool_size=(14, 14)),
    }
)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> FlattenDeit:
    out_indices = kwargs.pop("out_indices", (2, 5, 8, 11))
    feature_cfg = {"out_indices": out_indices, "feature_cls": "getter"}
    return build_model(FlattenDeit, variant, pretrained, feature_cfg=feature_cfg, **kwargs)


@register_model
def flatten_deit_tiny(pretrained: bool = False, **kwargs: Any) -> FlattenDeit:
    """FLatten-DeiT-T; no published weights."""
    return _create("flatten_deit_tiny", pretrained, **kwargs)


@register_model
def flatten_deit_small(pretrained: bool = False, **kwargs: Any) -> FlattenDeit:
    """FLatten-DeiT-S; no published weights."""
    return _create("flatten_deit_small", pretrained, **{"embed_dim": 384, "num_heads": 6} | kwargs)
