"""Linear attention: softmax's ``N x M`` weights replaced by an inner product of features, so cost grows with N.

With non-negative features ``q_i``, ``k_j`` and values ``v_j`` over M keys::

    out_i = q_i (sum_j k_j v_j^T / M) / (q_i . mean_j k_j + eps)

Source: Katharopoulos et al., "Transformers are RNNs" (ICML 2020), eq. 5, with the scaling by 1/M and the epsilon that
CARE (CVPR 2025) and FLatten (ICCV 2023) publish.
"""

from linvit.ops.linear.fast import linear_attention
from linvit.ops.linear.inference import attend, attend_columns
from linvit.ops.linear.reference import linear_attention_reference

__all__ = ["attend", "attend_columns", "linear_attention", "linear_attention_reference"]
