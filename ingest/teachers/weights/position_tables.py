"""Tables of positions of one size brought to another, as each encoder's own code does it.

These ways differ in the second or third digit of the table; the embeddings hardly, but the cards
promise the reference's own numbers.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

# From a table [1, D, H, W] and a side to one [1, D, side, side].
Resample = Callable[[Tensor, int], Tensor]
# Added to the wanted side before the ratio of sides is taken, by DINO and what is made from it.
DINO_OFFSET = 0.1


def fitted(weights: dict[str, Tensor], model: nn.Module, resample: Resample) -> dict[str, Tensor]:
    """Return weights with a position table resized to the network's, or unchanged if impossible."""
    out, shapes = dict(weights), model.state_dict()
    for name, trunk in (("pos_embed", model), ("trunk.pos_embed", getattr(model, "trunk", None))):
        if name in weights and name in shapes and weights[name].shape != shapes[name].shape:
            apart = getattr(trunk, "no_embed_class", False)
            prefix = 0 if apart else int(getattr(trunk, "num_prefix_tokens", 0))
            out[name] = _resized(weights[name], shapes[name], prefix, resample)
    return out


def resampled(weights: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return weights with a position table resized to the network's as timm does."""
    return fitted(weights, model, as_timm)


def _resized(table: Tensor, like: Tensor, prefix: int, resample: Resample) -> Tensor:
    """Resize a table [1, N, D] to another table's rows; the first `prefix` rows are kept."""
    if table.ndim != 3 or len(table) != 1 or table.shape[1] <= prefix:
        return table
    old, new = (math.isqrt(rows - prefix) for rows in (table.shape[1], like.shape[1]))
    if old**2 != table.shape[1] - prefix:
        return table
    grid = table[:, prefix:].float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    rows = resample(grid, new).permute(0, 2, 3, 1).flatten(1, 2)
    return torch.cat([table[:, :prefix].float(), rows], dim=1)


def as_timm(grid: Tensor, side: int) -> Tensor:
    """Resize a position grid as timm does: bicubic and antialiased."""
    rows = grid.permute(0, 2, 3, 1).flatten(1, 2)
    sized: Tensor = resample_abs_pos_embed(rows, [side, side], num_prefix_tokens=0)
    return sized.reshape(1, side, side, -1).permute(0, 3, 1, 2)


def as_hugging_face(grid: Tensor, side: int) -> Tensor:
    """Resize a position grid as transformers and MUSK do: bicubic.

    Source: `Dinov2Embeddings.interpolate_pos_encoding` of transformers.
    """
    return F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)


def as_conch(grid: Tensor, side: int) -> Tensor:
    """Resize a position grid as `resize_pos_embed` of mahmoodlab/CONCH does: bilinear."""
    return F.interpolate(grid, size=(side, side), mode="bilinear")


def as_conch15(grid: Tensor, side: int) -> Tensor:
    """Resize a position grid as CONCH v1.5 does: bicubic, by a ratio of sides a little too large.

    Source: `interpolate_pos_encoding` of CONCH v1.5.
    """
    ratio = (side + DINO_OFFSET) / grid.shape[-1]
    return F.interpolate(grid, scale_factor=(ratio, ratio), mode="bicubic")


def as_radio(grid: Tensor, side: int) -> Tensor:
    """Resize a position grid as RADIO does at inference: bilinear.

    Source: `_get_pos_embeddings` of NVlabs/RADIO, radio/vit_patch_generator.py.
    """
    return F.interpolate(grid, size=(side, side), mode="bilinear", align_corners=False)


def as_radio_aligned(grid: Tensor, side: int) -> Tensor:
    """Resize a position grid as the hub's code of C-RADIOv3-B and -H does, with corners aligned.

    Source: `_RADIO_ALIGN_CORNERS` of timm 1.0.31, vision_transformer.py.
    """
    return F.interpolate(grid, size=(side, side), mode="bilinear", align_corners=True)
