"""Key-only attention as a module: a reading of the abstract of LinGlo's paper, which published no code.

Stated (Li and Liu, "Rethinking Query-Key Pairwise Interactions in Vision Transformers", 2022,
https://arxiv.org/abs/2207.00188): no query-key products; a cheap saliency gate gives the attention weights; local and
global interaction; linear time and memory. Ours: all formulas.
"""

from collections.abc import Sequence

import torch
from timm.layers import trunc_normal_
from torch import nn

from linvit.attention._common import TokenAttention
from linvit.ops import global_context, key_saliency, local_context, modulate

__all__ = ["INTERACTIONS", "KeyOnlyAttention"]

INTERACTIONS = ("modulate", "gate", "local_global")


class KeyOnlyAttention(TokenAttention):
    """Self-attention whose weights come from the keys alone, in time and memory linear in the number of tokens.

    Each head weighs all tokens by ``softmax(u . k_j)`` and sums their values to one context c. As c is the same for
    all tokens, something of the token itself has to meet it:

    - "modulate": ``y_i = W_o (v_i * c)``
    - "gate": ``y_i = W_o (sigmoid(q_i) * c + v_i)``, where the projection of the queries makes the gates
    - "local_global": ``y_i = W_o (l_i + c)``, where l averages with the same weights in a neighbourhood of the token

    The projections are of C x C each: k, v and output, and q for "gate". Keys are never computed
    (:func:`linvit.ops.key_saliency`), so their bias, where ``qkv`` has one, does nothing. Prefix tokens take part in
    c; their neighbourhood is themselves.

    Args:
        dim: Channels C.
        grid_size: Height and width of the native grid. Nothing is learned per position.
        num_heads: Heads; each takes a contiguous block of channels.
        qkv_bias: Give the input projection a bias.
        proj_drop: Dropout rate after the output projection.
        num_prefix_tokens: Tokens before the grid (class token, registers).
        interaction: One of :data:`INTERACTIONS`.
        kernel_size: Side of the neighbourhood of "local_global", odd.

    Raises:
        ValueError: Another interaction, or an even kernel.
    """

    def __init__(
        self,
        dim: int,
        grid_size: int | Sequence[int],
        num_heads: int = 8,
        qkv_bias: bool = True,
        proj_drop: float = 0.0,
        num_prefix_tokens: int = 0,
        *,
        interaction: str = "local_global",
        kernel_size: int = 3,
        device=None,
        dtype=None,
    ):
        if interaction not in INTERACTIONS:
            raise ValueError(f"interaction must be one of {', '.join(INTERACTIONS)}, got {interaction!r}")
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        dd = {"device": device, "dtype": dtype}
        num_projections = 3 if interaction == "gate" else 2
        super().__init__(
            dim, grid_size, num_heads, qkv_bias, proj_drop, num_prefix_tokens, num_projections=num_projections, **dd
        )
        self.interaction = interaction
        self.kernel_size = kernel_size
        self.u = nn.Parameter(torch.empty(dim, **dd))
        self._reset_own()

    def reset_parameters(self) -> None:
        """Draw all weights anew."""
        super().reset_parameters()
        self._reset_own()

    def _reset_own(self) -> None:
        # A query of norm 1 per head, as if softmax attention's scale were in it.
        trunc_normal_(self.u, std=(self.u.shape[0] // self.num_heads) ** -0.5)

    def forward(self, x: torch.Tensor, grid_size: list[int] | None = None) -> torch.Tensor:
        """Map tokens ``[B, N, C]`` to the same shape.

        Args:
            x: Prefix tokens, then the grid row by row: N = ``num_prefix_tokens`` + H W.
            grid_size: H and W, which "local_global" needs; the native grid if None.

        Raises:
            ValueError: N does not fit the grid ("local_global").
        """
        if grid_size is None:
            grid_size = self.grid_size
        C = self.u.shape[0]
        weight, bias = self.qkv.weight, self.qkv.bias
        s = key_saliency(x, weight[-2 * C : -C], self.u, self.num_heads)
        v = nn.functional.linear(x, weight[-C:], bias[-C:] if bias is not None else None)
        c = global_context(s, v)
        if self.interaction == "modulate":
            v = modulate(v, c)
        elif self.interaction == "gate":
            q = nn.functional.linear(x, weight[:C], bias[:C] if bias is not None else None)
            v = torch.addcmul(v, q.sigmoid(), c)
        else:
            prefix = self.num_prefix_tokens
            local = local_context(s[:, prefix:], v[:, prefix:], grid_size, self.kernel_size)
            if prefix > 0:
                local = torch.cat((v[:, :prefix], local), dim=1)
            v = local + c
        return self.proj_drop(self.proj(v))
