"""The rows of each batch of an epoch, by arithmetic on row numbers without a table.

The rows of all chosen slides are one ring. Each epoch it is cut, from another place on, into blocks
of neighbours; the blocks are permuted and dealt out to the ranks; a buffer holds some blocks of one
rank, and its rows are permuted again. Nothing here grows with the number of rows.
"""

import functools
import hashlib
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.errors import LakeError
from featurestore.read.permutation import Permutation

BLOCKS, TURN, INSIDE = range(3)  # what a random number is for

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Order:
    """The order of `tiles` rows for one of several ranks.

    Attributes:
        tiles: rows of all ranks together.
        batch_tiles: rows in a batch; the last batches may be smaller without `drop_last`.
        block_tiles: neighbouring rows that are read together.
        buffer_tiles: rows that are mixed with each other, rounded up to whole blocks.
        seed: seed of the order.
        rank: rank of this reader.
        world: number of readers.
        shuffle: false for all rows in table order.
        drop_last: whether rows that fill no batch are left out.

    Raises:
        LakeError: a number is not as it must be, or there are too few rows for the ranks.
    """

    tiles: int
    batch_tiles: int
    block_tiles: int
    buffer_tiles: int
    seed: int
    rank: int
    world: int
    shuffle: bool
    drop_last: bool

    def __post_init__(self) -> None:
        sizes = (self.batch_tiles, self.block_tiles, self.buffer_tiles)
        if min(sizes) < 1 or self.seed < 0 or not 0 <= self.rank < self.world:
            msg = (
                f"batch_tiles, block_tiles, buffer_tiles = {sizes}, seed {self.seed}, rank "
                f"{self.rank} of {self.world} given; sizes are at least 1, the seed is not "
                "negative, and ranks count from 0"
            )
            raise LakeError(msg)
        if self.steps < 1 or min(self._rows_of_ranks()) < (1 if self.drop_last else self.steps):
            msg = (
                f"{self.tiles} tiles in blocks of {self.block_tiles} are too few for batches of "
                f"{self.batch_tiles} on each of {self.world} ranks; use smaller batches or blocks, "
                "fewer ranks, more slides, or drop_last=False"
            )
            raise LakeError(msg)

    def settings(self) -> dict[str, Any]:
        """Return all settings that decide the order."""
        return asdict(self)

    @functools.cached_property
    def steps(self) -> int:
        """Return the number of batches in an epoch, the same for every rank."""
        rows = self._rows_of_ranks()
        if self.drop_last:
            return min(rows) // self.batch_tiles
        return -(-max(rows) // self.batch_tiles)

    @functools.cached_property
    def rows(self) -> int:
        """Return the number of rows of this rank."""
        return self._rows_of_ranks()[self.rank]

    @property
    def buffer_rows(self) -> int:
        """Return the number of rows in a buffer; the last buffer may be smaller."""
        return -(-self.buffer_tiles // self.block_tiles) * self.block_tiles

    def _rows_of_ranks(self) -> list[int]:
        # The blocks are dealt out in turn; the short one, if there is one, comes after all others.
        whole, rest = divmod(self.tiles, self.block_tiles)
        rows = [
            len(range(rank, whole, self.world)) * self.block_tiles for rank in range(self.world)
        ]
        rows[whole % self.world] += rest
        return rows

    def batch(self, step: int) -> tuple[int, int]:
        """Return the start and the (exclusive) stop of a batch's rows in this rank's order.

        A rank with fewer rows than another has as many batches; the last ones are smaller.
        """
        return self._batch_end(step - 1), self._batch_end(step)

    def _batch_end(self, step: int) -> int:
        end = (step + 1) * self.batch_tiles
        return end if self.drop_last else min(end, self.rows - (self.steps - 1 - step))

    def buffer(self, epoch: int, number: int) -> Int64Array:
        """Return the rows of a buffer of this rank, block after block."""
        first = number * self.buffer_rows
        positions = np.arange(first, min(first + self.buffer_rows, self.rows))
        block = positions // self.block_tiles * self.world + self.rank
        if not self.shuffle:
            return block * self.block_tiles + positions % self.block_tiles
        whole = self.tiles // self.block_tiles
        dealt, which = np.unique(block, return_inverse=True)
        inside = dealt < whole
        dealt[inside] = self._permutation(epoch).at(dealt[inside])
        turn = int(self._random_generator(epoch, TURN).integers(self.tiles))
        return (dealt[which] * self.block_tiles + positions % self.block_tiles + turn) % self.tiles

    def inside(self, epoch: int, number: int, rows: int) -> Int64Array:
        """Return the shuffled order of the rows of a buffer."""
        if not self.shuffle:
            return np.arange(rows)
        return self._random_generator(epoch, INSIDE, self.rank, number).permutation(rows)

    def _permutation(self, epoch: int) -> Permutation:
        return Permutation(self.tiles // self.block_tiles, [self.seed, epoch, BLOCKS])

    def _random_generator(self, *key: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *key])


@dataclass(frozen=True, kw_only=True)
class ChosenOrder(Order):
    """The order of some chosen rows, `tiles` of them.

    Attributes:
        chosen: numbers of the rows, ascending; a row may come several times.
    """

    chosen: Int64Array

    def settings(self) -> dict[str, Any]:
        """Return all settings that decide the order, with a hash of the chosen rows."""
        digest = hashlib.sha256(self.chosen.astype("<i8").tobytes()).hexdigest()[:16]
        own = {name: setting for name, setting in vars(self).items() if name != "chosen"}
        names = {field.name for field in fields(Order)}
        return {name: own[name] for name in names} | {"chosen": digest}

    def buffer(self, epoch: int, number: int) -> Int64Array:
        """Return the chosen rows of a buffer of this rank, block after block."""
        return self.chosen[super().buffer(epoch, number)]


def chosen_order(rows: Int64Array, *, tiles: int, **settings: Any) -> ChosenOrder:  # noqa: ANN401
    """Return the order of some rows.

    Args:
        rows: numbers of the rows, ascending; a number may come several times.
        tiles: number of all rows.
        **settings: the other settings of `Order`.

    Raises:
        LakeError: a number is none of a row, or they do not ascend.
    """
    if len(rows) and (rows[0] < 0 or rows[-1] >= tiles or (np.diff(rows) < 0).any()):
        span = f"rows from {rows.min()} to {rows.max()}"
        msg = f"{span} given; give rows from 0 to {tiles - 1}, ascending"
        raise LakeError(msg)
    return ChosenOrder(tiles=len(rows), chosen=rows, **settings)
