"""Inputs and outputs of MIL aggregators: padded bags with a mask in, one vector per bag out.

A padded batch has the same outputs as its bags one by one. The content of a masked row, NaN
included, changes nothing: masked rows are zeroed on the way in, which costs one copy of a padded
batch. A bag alone is not copied.

Shape letters: B bags, N tiles of the longest bag, D feature width, E embedding width, C branches.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from downstream.mil.aggregators.dropout import Dropout


class MilError(ValueError):
    """An error for bags, labels or settings that a MIL model cannot use."""


@dataclass(frozen=True, kw_only=True)
class PaddedBags:
    """Bags of different sizes as one tensor.

    Attributes:
        x: [B, N, D] features, zero in rows without a tile.
        mask: bool [B, N], True where there is a tile.
        coords: [B, N, K] integer places of the tiles, zero in rows without a tile; None if the
            bags have no places.
        covariates: [B, K] encoded covariates of the patients; None without any.
    """

    x: Tensor
    mask: Tensor
    coords: Tensor | None
    covariates: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Pooled:
    """The output of an aggregator on a batch.

    Attributes:
        embedding: [B, E], or [B, C, E] from an aggregator with a branch for each class.
        attention: [B, N] how much each tile counts; sums to 1 over a bag, 0 in masked rows.
        branch_logits: [B, A, C] further predictions of a bag, by A branches of the aggregator.
            Each learns the bag's own target by the task's loss, whatever the task is; their mean
            is added to the bag's loss. None without branches.
        penalty: [B] a term that is added to the bag's loss and needs no target; None without.
        extras: further tensors of a single kind of aggregator, by name.
    """

    embedding: Tensor
    attention: Tensor
    branch_logits: Tensor | None = None
    penalty: Tensor | None = None
    extras: dict[str, Tensor] = field(default_factory=dict)


class Aggregator(nn.Module):
    """A network from the tiles of a bag to one vector; subclasses define `pool` (`auxiliary`).

    A loss of its own comes in one of two ways. `auxiliary` knows classes only (CLAM's tile labels)
    and has a share of the whole loss. `Pooled.branch_logits` and `Pooled.penalty` are added to
    the bag's loss in training, and serve classes, labels, numbers and survival alike.

    Attributes:
        width: width E of the embedding.
        branches: number of embeddings of a bag: 1, or the number of classes.
        auxiliary_share: share of `auxiliary` in the whole loss; the bag's loss has the rest.
        coords: number of columns of `coords` that `pool` needs; 0 if it uses no coordinates.
    """

    width: int
    branches: int = 1
    auxiliary_share: float = 0.0
    coords: int = 0

    def forward(
        self, x: Tensor, mask: Tensor | None = None, coords: Tensor | None = None
    ) -> Pooled:
        """Return the embedding of one bag x_ND, or of a padded batch x_BND with mask_BN.

        Args:
            x: features [N, D], or [B, N, D]; float16, as read from a lake, is cast to float32.
            mask: bool [N] or [B, N], True where there is a tile; None if all rows are tiles.
            coords: integers [N, K] or [B, N, K]: (grid_y, grid_x), see `tile_canvas`.

        Returns:
            The embedding and attention, always with a batch axis: a single bag is a batch of one.

        Raises:
            MilError: A bag without tiles, shapes that do not fit, or no coordinates where needed.
        """
        if x.ndim == 2:
            x, mask, coords = (None if part is None else part[None] for part in (x, mask, coords))  # type: ignore[assignment]
        self._check(x, mask, coords)
        if x.dtype == torch.float16:
            x = x.float()
        if mask is None:
            mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        else:
            mask = mask.bool()
            if not bool(mask.all()):  # else there is nothing to zero, and no copy is made
                # `where`, not a product: 0 * NaN is NaN
                x = torch.where(mask[..., None], x, torch.zeros((), dtype=x.dtype, device=x.device))
        return self.pool(x, mask, coords)

    def pool(self, x_BND: Tensor, mask_BN: Tensor, coords_BNK: Tensor | None) -> Pooled:
        """Return the embedding of a batch whose masked rows are zero."""
        raise NotImplementedError

    def auxiliary(self, pooled: Pooled, target: Tensor) -> Tensor:
        """Return the aggregator's own loss [B], from class indices [B] or labels [B, C]."""
        del target
        return pooled.embedding.new_zeros(len(pooled.embedding))

    def _check(self, x: Tensor, mask: Tensor | None, coords: Tensor | None) -> None:
        """Raise MilError for shapes that do not fit, bags without tiles, or missing coordinates."""
        if x.ndim != 3 or (mask is not None and mask.shape != x.shape[:2]):
            mask_shape = None if mask is None else tuple(mask.shape)
            msg = (
                f"x {tuple(x.shape)} with mask {mask_shape}; give [B, N, D] with [B, N], or [N, D]"
            )
            raise MilError(msg)
        if not x.shape[1] or (mask is not None and not bool(mask.any(dim=1).all())):
            msg = "a bag has no tile; take patients without tiles out before batching"
            raise MilError(msg)
        if self.coords and (coords is None or coords.shape != (*x.shape[:2], self.coords)):
            mask_shape = None if coords is None else tuple(coords.shape)
            msg = (
                f"{type(self).__name__} got coords {mask_shape} for x {tuple(x.shape)}; it needs "
                f"{self.coords} integers a tile, such as (grid_y, grid_x)"
            )
            raise MilError(msg)


def stem(width: int, hidden: int, dropout: float) -> nn.Sequential:
    """Return the first layer of all embeddings here: linear, ReLU, dropout (as CLAM's)."""
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), Dropout(dropout))


def masked_softmax(score: Tensor, mask: Tensor) -> Tensor:
    """Return the softmax over the last axis, 0 where masked; float32 at least.

    Args:
        score: scores [..., N].
        mask: bool, of a shape that broadcasts to it; True for what counts.
    """
    wide = score.float() if score.dtype in {torch.float16, torch.bfloat16} else score
    return torch.softmax(wide.masked_fill(~mask, -torch.inf), dim=-1)


def pad_bags(bags: Sequence[Tensor], coords: Sequence[Tensor] | None = None) -> PaddedBags:
    """Return one padded batch from bags [N_i, D] with their places [N_i, K].

    Raises:
        MilError: No bag, a bag without tiles, or not one place per tile.
    """
    if not bags or min(map(len, bags)) == 0:
        msg = f"bags of {[len(bag) for bag in bags]} tiles; give at least one, none of them empty"
        raise MilError(msg)
    if coords is not None and [len(c) for c in coords] != [len(bag) for bag in bags]:
        msg = f"{[len(c) for c in coords]} places for {[len(b) for b in bags]} tiles; one a tile"
        raise MilError(msg)
    lengths_B = torch.tensor([len(bag) for bag in bags], device=bags[0].device)
    places = torch.arange(max(map(len, bags)), device=bags[0].device)
    return PaddedBags(
        x=_padded_tensor(bags),
        mask=places < lengths_B[:, None],
        coords=None if coords is None else _padded_tensor(coords),
    )


def _padded_tensor(parts: Sequence[Tensor]) -> Tensor:
    """Return one tensor [B, N, ...] from parts [N_i, ...], zero behind the end of a part."""
    if len(parts) == 1:
        return parts[0][None]
    return nn.utils.rnn.pad_sequence(list(parts), batch_first=True)


def plan_batches(
    tiles_P: NDArray[np.int64], *, most_rows: int, seed: int
) -> list[NDArray[np.int64]]:
    """Return batches of bags with at most `most_rows` rows each, padding included.

    Bags of like size go together, so that little is padding; batches come in random order.

    Args:
        tiles_P: number of tiles of each bag.
        most_rows: most rows (bags x tiles of the longest) of a batch; a larger bag goes alone.
        seed: seed of the order of batches, and of bags of the same size.

    Returns:
        Indices of the bags of each batch; every bag once.

    >>> [sorted(b.tolist()) for b in plan_batches(np.array([9, 1, 2, 2]), most_rows=6, seed=0)]
    [[0], [1, 2, 3]]
    """
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(tiles_P))
    order = shuffled[np.argsort(tiles_P[shuffled], kind="stable")]
    batches: list[list[int]] = []
    for bag in order.tolist():
        if batches and (len(batches[-1]) + 1) * int(tiles_P[bag]) <= most_rows:
            batches[-1].append(bag)
        else:
            batches.append([bag])
    return [np.array(batches[at], dtype=np.int64) for at in rng.permutation(len(batches))]
