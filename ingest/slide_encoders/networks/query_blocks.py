"""Attention in blocks of queries: no matrix of all tiles by all tiles is ever in memory.

A slide of 60,000 tiles has 3.6e9 pairs of tiles; their biases alone would take 170 GB for twelve
heads. A block of queries against all keys takes `BLOCK_BYTES`, whatever the number of tiles.

Shape letters: H heads, Q queries, M keys, C width of a head.
"""

from collections.abc import Callable

import torch
from torch import Tensor

#: Of the scores of one block; softmax needs about three of them.
BLOCK_BYTES = 256 << 20

#: Bias of some queries, from the number of the first to that of the last: [H, queries, M].
Bias = Callable[[int, int], Tensor]


def attend(
    q_HQC: Tensor,
    k_HMC: Tensor,
    v_HMC: Tensor,
    *,
    bias: Bias | None = None,
    block_bytes: int = BLOCK_BYTES,
) -> tuple[Tensor, Tensor]:
    """Return softmax attention [H, Q, C], and the logarithm of the sum of exponents [H, Q].

    Args:
        q_HQC: queries; they are scaled by 1 / sqrt(C) here.
        k_HMC: keys.
        v_HMC: values.
        bias: numbers that are added to the scores of some queries; None for none.
        block_bytes: memory of the scores of one block of queries.
    """
    heads, queries, width = q_HQC.shape
    step = max(1, block_bytes // (4 * heads * k_HMC.shape[1]))
    out_HQC, lse_HQ = torch.empty_like(q_HQC), q_HQC.new_empty(heads, queries)
    keys_HCM = k_HMC.transpose(1, 2)
    for start in range(0, queries, step):
        stop = min(start + step, queries)
        scores = (q_HQC[:, start:stop] * width**-0.5) @ keys_HCM
        if bias is not None:
            scores += bias(start, stop)
        lse = scores.logsumexp(dim=-1)
        lse_HQ[:, start:stop] = lse
        scores -= lse[..., None]
        out_HQC[:, start:stop] = scores.exp_() @ v_HMC
    return out_HQC, lse_HQ
