"""The view of a lake that bags, pairs and streams use: one version and its row readers."""

from collections.abc import Sequence
from typing import Any, Protocol

import polars as pl

from featurestore.config import LakeConfig
from featurestore.messages import did_you_mean
from featurestore.read.bags import Bag
from featurestore.read.first_reads import FirstReads
from featurestore.storage.store import Store
from featurestore.tables.annotation import Annotation
from featurestore.tables.lance_rows import RowReader


class LakeView(Protocol):
    """The interface of a lake at one version for the readers; `Lake` implements it.

    Attributes:
        store: the lake's files.
        config: settings of the lake.
        version: number of the version.
        first_reads: compares each slide with its checksums where it is first read.
    """

    store: Store
    config: LakeConfig
    version: int
    first_reads: FirstReads

    @property
    def uri(self) -> str:
        """Return the folder or URL of the lake."""

    def known_mpp(self, mpp: float) -> float:
        """Return the lake's own value of an mpp; raise LakeError if it has no tiles at it."""

    def teachers(self, *, mpp: float) -> dict[str, int]:
        """Return the teachers with a column at an mpp, and their dimensions."""

    def identity(self, teacher: str, *, mpp: float) -> dict[str, Any]:
        """Return all settings that decide the numbers of a teacher's column."""

    def table(self, rel: str) -> Any:  # noqa: ANN401 - a Lance table, untyped
        """Return a table of this version."""

    def slides(self) -> pl.LazyFrame:
        """Return one row per slide, without pictures."""

    def tiles(self, *, mpp: float, dtype: str | None = None) -> pl.LazyFrame:
        """Return one row per tile, with the columns of all teachers and annotations."""

    def annotations(self) -> dict[str, Annotation]:
        """Return users' own columns by name."""

    def annotation(self, name: str) -> pl.LazyFrame:
        """Return a user's table as the lake holds it."""

    def pictures(self, slide_id: str) -> dict[str, bytes | None]:
        """Return a slide's thumbnail and tissue mask."""

    def tiles_of(self, *, mpp: float, slide_ids: Sequence[str] | None = None) -> pl.DataFrame:
        """Return the catalog rows of slides' tiles at one mpp, by slide number."""

    def features_of(
        self, teacher: str, *, mpp: float, slide_ids: Sequence[str] | None = None
    ) -> pl.DataFrame:
        """Return the catalog rows of slides that have a teacher's features, by slide number."""

    def places_of(
        self, teachers: Sequence[str], *, mpp: float, slide_ids: Sequence[str] | None = None
    ) -> pl.DataFrame:
        """Return the catalog rows of slides' tiles and of some teachers, by slide number."""

    def catalog_rows(self) -> int:
        """Return the number of rows of the catalog."""

    def row_reader(self, *, mpp: float) -> RowReader:
        """Return the reader of ranges of rows at an mpp, which keeps files open."""

    def bag(self, slide_id: str, teachers: str | Sequence[str], *, mpp: float) -> Bag:
        """Return all tiles of a slide with the features of some teachers."""


def similar_slide(lake: LakeView, slide_id: str) -> str:
    """Return a question after the most similar slide, for the message on an unknown one.

    It is empty where the slide is in the lake, if not at the mpp that is wanted.
    """
    names = lake.slides().select("slide_id").collect()["slide_id"].to_list()
    return "" if slide_id in names else did_you_mean(slide_id, names)
