"""Places of tiles on a slide's grid: order, neighbours, and a convolution over the tiles.

Background needs no memory: nothing here builds a dense grid, whose size would follow the slide's
bounding box and not its tissue.

Shape letters: B bags, N tiles, R rows of all bags together, E width, K cells of a square kernel.
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from downstream.mil.padded_bags import MilError


def raster_order(coords_BN2: Tensor, mask_BN: Tensor) -> Tensor:
    """Return row numbers [B, N] that sort tiles by (grid_y, grid_x), masked rows last.

    Raises:
        MilError: Two tiles of a bag have one place, so that their order would be chance.
    """
    y, x = (coords_BN2 - _smallest_place(coords_BN2, mask_BN)).long().unbind(dim=-1)
    x_span = x.masked_fill(~mask_BN, 0).amax() + 1
    last = torch.iinfo(torch.int64).max
    key_BN, order_BN = (y * x_span + x).masked_fill(~mask_BN, last).sort(dim=1, stable=True)
    twice_BN = (key_BN[:, 1:] == key_BN[:, :-1]) & (key_BN[:, 1:] != last)
    if bool(twice_BN.any()):
        bag, row = torch.nonzero(twice_BN)[0].tolist()
        place = coords_BN2[bag, order_BN[bag, row]].tolist()
        msg = f"two tiles of bag {bag} are at (y, x) = {place}; for several slides see stack_slides"
        raise MilError(msg)
    return order_BN


def neighbours(coords_BN2: Tensor, mask_BN: Tensor, reach: int) -> Tensor:
    """Return for each tile the rows of the tiles around it.

    Args:
        coords_BN2: (grid_y, grid_x), in raster order, masked rows last.
        mask_BN: true where there is a tile.
        reach: cells in each direction; the kernel is 2 reach + 1 wide.

    Returns:
        int64 [R, K]: numbers among the R unmasked rows of the batch, row by row of the kernel; R
        where there is no tile.
    """
    y, x = (coords_BN2 - _smallest_place(coords_BN2, mask_BN) + reach).long().unbind(dim=-1)
    # margins on all sides: a step never comes out in the next row of the grid or the next bag
    x_span = x[mask_BN].amax() + 1 + reach
    y_span = y[mask_BN].amax() + 1 + reach
    bag_B = torch.arange(len(mask_BN), device=mask_BN.device)[:, None]
    key_R = ((bag_B * y_span + y) * x_span + x)[mask_BN]
    step = torch.arange(-reach, reach + 1, device=mask_BN.device)
    wanted_RK = key_R[:, None] + (step[:, None] * x_span + step).flatten()
    at_RK = torch.searchsorted(key_R, wanted_RK).clamp(max=len(key_R) - 1)
    return torch.where(key_R[at_RK] == wanted_RK, at_RK, len(key_R))


def grid_conv(x_RE: Tensor, kernel_EK: Tensor, neighbour_RK: Tensor) -> Tensor:
    """Return the depthwise convolution over tiles, with zeros in place of missing tiles.

    Memory is O(R E) in both directions: gathered neighbours are not kept for the backward pass.

    Args:
        x_RE: tiles, one row each.
        kernel_EK: kernels, cell by cell; K odd.
        neighbour_RK: rows of the neighbours, from `neighbours`.
    """
    convolved: Tensor = _GridConv.apply(x_RE, kernel_EK.to(x_RE.dtype), neighbour_RK)
    return convolved


class _GridConv(torch.autograd.Function):
    """Sum over kernel cells of gathered rows; gathers in both directions, so it is deterministic.

    A tile's neighbour sees that tile in the opposite cell, so the gradient of x is the convolution
    of the gradient with the turned kernel.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x_RE: Tensor, kernel_EK: Tensor, neighbour_RK: Tensor) -> Tensor:
        ctx.save_for_backward(x_RE, kernel_EK, neighbour_RK)
        return _convolved_rows(x_RE, kernel_EK, neighbour_RK)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_RE: Tensor) -> tuple[Tensor, Tensor, None]:
        x_RE, kernel_EK, neighbour_RK = ctx.saved_tensors  # type: ignore[attr-defined]
        padded = _with_zero_row(x_RE)
        kernel_grad = [
            torch.linalg.vecdot(grad_RE, padded[neighbour_R], dim=0)
            for neighbour_R in neighbour_RK.unbind(dim=1)
        ]
        return (
            _convolved_rows(grad_RE, kernel_EK.flip(1), neighbour_RK),
            torch.stack(kernel_grad, dim=1),
            None,
        )


def _convolved_rows(x_RE: Tensor, kernel_EK: Tensor, neighbour_RK: Tensor) -> Tensor:
    padded, total = _with_zero_row(x_RE), torch.zeros_like(x_RE)
    for neighbour_R, kernel_E in zip(
        neighbour_RK.unbind(dim=1), kernel_EK.unbind(dim=1), strict=True
    ):
        total.addcmul_(padded[neighbour_R], kernel_E)
    return total


def _with_zero_row(x_RE: Tensor) -> Tensor:
    """Return the tiles with a row of zeros appended, for missing neighbours."""
    return torch.cat([x_RE, x_RE.new_zeros(1, x_RE.shape[1])])


def _smallest_place(coords_BN2: Tensor, mask_BN: Tensor) -> Tensor:
    """Return the smallest y and x [1, 1, 2] of all tiles of the batch."""
    return coords_BN2[mask_BN].amin(dim=0)[None, None]
