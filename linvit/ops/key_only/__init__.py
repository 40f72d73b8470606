"""Key-only attention: no query meets a key; the keys alone say how much each token counts.

With a learned vector ``u`` per head, keys ``k_j`` and values ``v_j``::

    s_j = u . k_j                         saliency
    c   = sum_j softmax(s)_j v_j          the global context, one for all tokens
    l_i = sum_j softmax(s over n(i))_j v_j  the local context, n(i) being the k x k neighbourhood of token i

Linvit's reading of what Li and Liu, "Rethinking Query-Key Pairwise Interactions in Vision Transformers" (2022,
https://arxiv.org/abs/2207.00188) states in its abstract; saliency is the key-content term of Zhu et al., "An Empirical
Study of Spatial Attention Mechanisms in Deep Networks" (ICCV 2019). Time and memory are linear in the tokens.
"""

from linvit.ops.key_only.fast import global_context, key_saliency, local_context, modulate
from linvit.ops.key_only.inference import local_context_by_heads
from linvit.ops.key_only.reference import (
    global_context_reference,
    key_saliency_reference,
    local_context_reference,
)

__all__ = [
    "global_context",
    "global_context_reference",
    "key_saliency",
    "key_saliency_reference",
    "local_context",
    "local_context_by_heads",
    "local_context_reference",
    "modulate",
]
