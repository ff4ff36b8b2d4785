"""A torch data set of bags: slides or patients, looked up in the catalog once for all of them."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import polars as pl
import torch
from torch import Tensor
from torch.utils.data import Dataset

from featurestore.errors import LakeError
from featurestore.ids import mpp_name
from featurestore.messages import counted
from featurestore.notebook.shown import Shown
from featurestore.read.first_reads import place_of
from featurestore.read.held_out_patients import patient_of
from featurestore.read.lake_view import LakeView
from featurestore.read.select_slides import select
from featurestore.read.selection import Selection
from featurestore.read.unforked import Unforked
from featurestore.storage.read_errors import reading
from featurestore.tables.lance_rows import RowReader, Rows

By = Literal["slide", "patient"]


@dataclass(frozen=True, kw_only=True, repr=False)
class TorchBag(Shown):
    """The tiles of a slide or a patient as tensors, slide after slide, each sorted by (y, x).

    Attributes:
        bag_id: the slide, or the patient.
        slide_ids: the slides in the bag.
        slide: index in `slide_ids` of each tile's slide, int64 [N].
        tile_id: keys, int64 [N].
        x: level-0 pixels of the tiles' left edges, int32 [N].
        y: level-0 pixels of the tiles' top edges, int32 [N].
        by_teacher: float16 [N, D] per teacher, in the order of the request.
    """

    bag_id: str
    slide_ids: tuple[str, ...]
    slide: Tensor
    tile_id: Tensor
    x: Tensor
    y: Tensor
    by_teacher: dict[str, Tensor]

    @functools.cached_property
    def features(self) -> Tensor:
        """Return the features of all teachers side by side [N, sum of D]."""
        tensors = list(self.by_teacher.values())
        return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim=1)


class Bags(Dataset[TorchBag], Unforked):
    """A map-style torch data set of bags, each read when it is taken.

    For a `DataLoader`, with `batch_size=None` (bags differ in length) and, if it has workers,
    `multiprocessing_context="spawn"`.

    Args:
        lake: read at its own version.
        teachers: every slide must have their features.
        mpp: microns per pixel of the tiles.
        slide_ids: names of the slides; None for all slides with tiles.
        by: "slide" or "patient"; a slide without patient is its own patient.

    Attributes:
        ids: the bags' slides or patients, in order.

    Raises:
        LakeError: a slide is unknown or lacks features; the first are named.

    Examples:
        >>> from torch.utils.data import DataLoader
        >>> bags = sl.open_lake("my-lake").bags("student", mpp=0.5)
        >>> bag = next(iter(DataLoader(bags, batch_size=None)))
        >>> bag.bag_id, bag.features.shape
        ('s00a', torch.Size([24, 64]))
    """

    def __init__(
        self,
        lake: LakeView,
        teachers: Sequence[str],
        *,
        mpp: float,
        slide_ids: Sequence[str] | None,
        by: By,
    ) -> None:
        if by not in get_args(By):
            msg = f"by='{by}' given; allowed: {', '.join(get_args(By))}"
            raise LakeError(msg)
        Unforked.__init__(self)
        self._lake, self._teachers = lake, list(teachers)
        self._selection = select(lake, teachers, mpp=mpp, slide_ids=slide_ids)
        groups = _groups(lake, self._selection, by)
        self.ids = list(groups)
        self._slides = list(groups.values())

    def __repr__(self) -> str:
        place = f"{self._teachers} at mpp {mpp_name(self._selection.mpp)}"
        return (
            f"Bags({counted(len(self.ids), 'bag')}, {counted(self._selection.tiles, 'tile')} of "
            f"{place})"
        )

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> TorchBag:
        self.check_process()
        slides = self._slides[index]
        located = self._selection.whole(slides)
        reader = self._lake.row_reader(mpp=self._selection.mpp)
        with reading(reader.store, " and ".join(place_of(self._selection, s) for s in slides)):
            rows = reader.read(located.ranges, self._teachers)
        self._selection.check(located, rows.tile_id)
        self._compare(reader, slides, rows)
        slide = np.repeat(np.arange(len(slides)), located.ranges.rows)
        if (complete := rows.complete_rows()) is not None:
            rows, slide = rows.take(complete), slide[complete]
        return TorchBag(
            bag_id=self.ids[index],
            slide_ids=tuple(self._selection.slide_ids[slide] for slide in slides),
            slide=torch.from_numpy(slide),
            tile_id=torch.from_numpy(rows.tile_id),
            x=torch.from_numpy(rows.x),
            y=torch.from_numpy(rows.y),
            by_teacher={t: torch.from_numpy(array) for t, array in rows.by_teacher.items()},
        )

    def _compare(self, reader: RowReader, slides: Sequence[int], rows: Rows) -> None:
        """Compare the slides of a bag that were not read before with their checksums."""
        stop = 0
        for slide in slides:
            start, stop = stop, stop + self._selection.place(slide)[2]
            slide_features = {name: array[start:stop] for name, array in rows.by_teacher.items()}
            self._lake.first_reads.compare_read(reader, self._selection, slide, slide_features)


def _groups(lake: LakeView, selection: Selection, by: By) -> dict[str, list[int]]:
    """Return the slides of a selection that are in each bag."""
    names = selection.slide_ids
    if by == "patient":
        table = lake.slides().filter(pl.col("slide_id").is_in(names))
        slides = patient_of(table.select("slide_id", "patient_id").collect())
        patient = dict(slides.select("slide_id", "patient").iter_rows())
        names = [patient[slide_id] for slide_id in names]
    groups: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        groups.setdefault(name, []).append(index)
    return groups
