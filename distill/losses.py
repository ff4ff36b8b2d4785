"""Losses per sample, in float32. Letters in names: B samples, D embedding."""

import torch.nn.functional as F
from torch import Tensor


def cosine_loss(prediction_BD: Tensor, target_BD: Tensor) -> Tensor:
    """1 - cosine similarity, [B]; from 0 (same direction) to 2.

    >>> import torch
    >>> cosine_loss(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])).tolist()
    [1.0]
    """
    return 1 - F.cosine_similarity(prediction_BD.float(), target_BD.float(), dim=-1)


def smooth_l1_loss(prediction_BD: Tensor, target_BD: Tensor) -> Tensor:
    """Smooth L1 with beta 1, mean over channels, [B].

    >>> import torch
    >>> smooth_l1_loss(torch.tensor([[0.0, 3.0]]), torch.tensor([[1.0, 0.0]])).tolist()
    [1.5]
    """
    each = F.smooth_l1_loss(prediction_BD.float(), target_BD.float(), reduction="none")
    return each.mean(dim=-1)


def match_loss(prediction_BD: Tensor, target_BD: Tensor, *, cosine_weight: float) -> Tensor:
    """cosine_weight x cosine + (1 - cosine_weight) x smooth L1, [B].

    Source: AM-RADIO and Theia use 0.9 and 0.1.
    """
    cosine = cosine_loss(prediction_BD, target_BD)
    return cosine_weight * cosine + (1 - cosine_weight) * smooth_l1_loss(prediction_BD, target_BD)
