"""The protocol of makers of columns from other columns, which callers pass to `extract`.

A student of features reads columns of the lake and no pixels. Where such students come from is the
business of packages above this one; here a name is only offered to each maker in turn.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from cluster import WorkerSettings

if TYPE_CHECKING:
    from featurestore import Store


@dataclass(frozen=True, kw_only=True)
class MadeColumn:
    """The counts of a column that was made from other columns.

    Attributes:
        tiles: number of rows written by this call.
        seconds: wall time of the call in seconds.
    """

    tiles: int
    seconds: float


class ColumnMaker(Protocol):
    """A source of columns that are computed from other columns of the lake."""

    def makes(self, store: "Store", name: str) -> bool:
        """Return whether this maker computes the column of that name in that lake."""
        ...

    def make(
        self,
        lake_uri: str,
        name: str,
        *,
        mpps: Sequence[float] | None = None,
        address: str | None = None,
        workers: WorkerSettings = WorkerSettings(),  # noqa: B008 - it is frozen
    ) -> MadeColumn:
        """Write the column for all tiles that lack it.

        Args:
            lake_uri: the lake.
            name: name of the column.
            mpps: mpps of the tiles; every possible one if None.
            address: a Ray cluster, a worker of which is to make it; else this process.
            workers: size of that worker.
        """
        ...
