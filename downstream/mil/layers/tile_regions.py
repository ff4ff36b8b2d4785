"""Regions of a slide with equal numbers of tiles: strips of rows, each cut into pieces.

A grid of equal squares would leave most regions empty where tissue is a strand, and one of them
with most tiles. Cut by rank, regions follow the tissue, and on a full square of tiles whose side is
a multiple of the number of strips they are the windows of a square grid.

Shape letters: B bags, N tiles, W regions, S places of a region.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from downstream.mil.aggregators.tile_grid import raster_order


@dataclass(frozen=True, kw_only=True)
class Regions:
    """The tiles of each region of a padded batch.

    Attributes:
        rows: int64 [B, W, S] rows of the tiles, row by row of the grid; 0 where there is none.
        mask: bool [B, W, S], True where there is a tile.
    """

    rows: Tensor
    mask: Tensor

    def gather(self, x_BNE: Tensor) -> Tensor:
        """Return the tiles region by region [B, W, S, E], zero where there is none."""
        bag = torch.arange(len(x_BNE), device=x_BNE.device)[:, None, None]
        return x_BNE[bag, self.rows] * self.mask[..., None]

    def scatter(self, x_BWSE: Tensor, tiles: int) -> Tensor:
        """Return the tiles in the order of their rows [B, N, E], zero in masked rows.

        Args:
            x_BWSE: tiles by region.
            tiles: number N of rows.
        """
        bag_BWS = torch.arange(len(x_BWSE), device=x_BWSE.device)[:, None, None]
        bag_BWS = bag_BWS.expand_as(self.rows)
        x_BNE = x_BWSE.new_zeros(len(x_BWSE), tiles, x_BWSE.shape[-1])
        at = (bag_BWS[self.mask], self.rows[self.mask])
        return x_BNE.index_put(at, x_BWSE[self.mask])


def equal_regions(coords_BN2: Tensor, mask_BN: Tensor, *, strips: int, most_tiles: int) -> Regions:
    """Return regions of neighbouring tiles, whose numbers of tiles differ by a few at most.

    Tiles in raster order are cut into strips of equal number, and each strip, in order of x, into
    as many pieces. A bag with fewer tiles than regions has empty ones.

    Args:
        coords_BN2: (grid_y, grid_x).
        mask_BN: true where there is a tile.
        strips: strips of a bag, and pieces of a strip.
        most_tiles: tiles of a region, about, above which a bag has more strips.

    Raises:
        MilError: Two tiles of a bag have one place.
    """
    order_BN = raster_order(coords_BN2, mask_BN)
    is_tile_BN = mask_BN.gather(1, order_BN)
    x_BN = coords_BN2[..., 1].gather(1, order_BN)
    count_B1 = mask_BN.sum(dim=1, keepdim=True)
    strips_B1 = (count_B1.double() / most_tiles).sqrt().ceil().long().clamp(min=strips)
    rank_BN = torch.arange(mask_BN.shape[1], device=mask_BN.device).expand_as(order_BN)
    strip_BN = rank_BN * strips_B1 // count_B1
    column_BN = _place_in(strip_BN, x_BN, is_tile_BN) * strips_B1
    column_BN = column_BN // _sizes(strip_BN, is_tile_BN).clamp(min=1)
    regions = int(strips_B1.max()) ** 2
    region_BN = torch.where(is_tile_BN, strip_BN * strips_B1 + column_BN, regions)
    slot_BN = _place_in(region_BN, rank_BN, is_tile_BN)
    places = int(slot_BN[is_tile_BN].max()) + 1
    at_BN = torch.where(is_tile_BN, region_BN * places + slot_BN, regions * places)
    empty = order_BN.new_zeros(len(order_BN), regions * places + 1)
    shape = (len(order_BN), regions, places)
    return Regions(
        rows=empty.scatter(1, at_BN, order_BN)[:, :-1].view(shape),
        mask=empty.bool().scatter(1, at_BN, is_tile_BN)[:, :-1].view(shape),
    )


def _place_in(part_BN: Tensor, key_BN: Tensor, is_tile_BN: Tensor) -> Tensor:
    """Return the rank of each tile in its part [B, N], by a key and then by its own order."""
    last = torch.iinfo(torch.int64).max
    low = key_BN[is_tile_BN].amin()
    span = key_BN[is_tile_BN].amax() - low + 1
    sort_key_BN = (part_BN * span + key_BN - low).masked_fill(~is_tile_BN, last)
    order_BN = sort_key_BN.argsort(dim=1, stable=True)
    place_BN = order_BN.argsort(dim=1)
    parts = int(part_BN.masked_fill(~is_tile_BN, 0).max()) + 1
    inside_BN = part_BN.masked_fill(~is_tile_BN, parts)
    size_BP = part_BN.new_zeros(len(part_BN), parts + 1).scatter_add(
        1, inside_BN, torch.ones_like(inside_BN)
    )
    start_BP = size_BP.cumsum(dim=1) - size_BP
    return place_BN - start_BP.gather(1, inside_BN)


def _sizes(part_BN: Tensor, is_tile_BN: Tensor) -> Tensor:
    """Return the number of tiles of each tile's part [B, N]."""
    parts = int(part_BN.masked_fill(~is_tile_BN, 0).max()) + 1
    inside_BN = part_BN.masked_fill(~is_tile_BN, parts)
    size_BP = part_BN.new_zeros(len(part_BN), parts + 1).scatter_add(
        1, inside_BN, is_tile_BN.long()
    )
    return size_BP.gather(1, inside_BN)
