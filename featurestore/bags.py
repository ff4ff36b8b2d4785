"""Bags: all tiles of a slide or a patient with the features of some teachers.

A bag is a range of rows of one fragment per slide, read in one piece per teacher; its place comes
from the catalog, for a data set of bags once for all of them.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import numpy.typing as npt
import polars as pl

from featurestore.errors import LakeError
from featurestore.lance_flat import Float16Array
from featurestore.lance_rows import RowReader
from featurestore.selection import Selection, select
from featurestore.split import patient_of
from featurestore.unforked import Unforked

if TYPE_CHECKING:
    import torch

    from featurestore.lake import Lake

By = Literal["slide", "patient"]


@dataclass(frozen=True, kw_only=True)
class Bag:
    """All tiles of a slide at one mpp, sorted by (y, x).

    Attributes:
        slide_id: whose tiles.
        tile_id: keys [N].
        x: level-0 pixels of the tiles' left edges [N].
        y: level-0 pixels of the tiles' top edges [N].
        by_teacher: float16 [N, D] per teacher, in the order asked.
    """

    slide_id: str
    tile_id: npt.NDArray[np.int64]
    x: npt.NDArray[np.int32]
    y: npt.NDArray[np.int32]
    by_teacher: dict[str, Float16Array]

    @functools.cached_property
    def features(self) -> Float16Array:
        """The only teacher's features, or those of several side by side [N, sum of D]."""
        arrays = list(self.by_teacher.values())
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=1)


def names_of(teachers: str | Sequence[str]) -> list[str]:
    """Teachers given as one name or several.

    Raises:
        LakeError: none is given, or one twice.

    >>> names_of("uni2"), names_of(("uni2", "virchow2"))
    (['uni2'], ['uni2', 'virchow2'])
    """
    names = [teachers] if isinstance(teachers, str) else list(teachers)
    if not names or len(set(names)) != len(names):
        msg = f"teachers {names} given; name at least one, each once"
        raise LakeError(msg)
    return names


def read_bag(reader: RowReader, selection: Selection, teachers: Sequence[str]) -> Bag:
    """The bag of the only slide of a selection.

    Raises:
        DamageError: the rows found are not those that the catalog names.
    """
    located = selection.locate(np.arange(selection.tiles))
    rows = reader.read(located.ranges, teachers)
    selection.check(located, rows.tile_id)
    return Bag(slide_id=selection.slide_ids[0], **vars(rows))


@dataclass(frozen=True, kw_only=True)
class TorchBag:
    """All tiles of a slide or a patient as tensors, slide after slide, each sorted by (y, x).

    Attributes:
        bag_id: the slide, or the patient.
        slide_ids: the slides in the bag.
        slide: which of `slide_ids` each tile is of, int64 [N].
        tile_id: keys, int64 [N].
        x: level-0 pixels of the tiles' left edges, int32 [N].
        y: level-0 pixels of the tiles' top edges, int32 [N].
        by_teacher: float16 [N, D] per teacher, in the order asked.
    """

    bag_id: str
    slide_ids: tuple[str, ...]
    slide: "torch.Tensor"
    tile_id: "torch.Tensor"
    x: "torch.Tensor"
    y: "torch.Tensor"
    by_teacher: "dict[str, torch.Tensor]"

    @functools.cached_property
    def features(self) -> "torch.Tensor":
        """The only teacher's features, or those of several side by side [N, sum of D]."""
        import torch

        tensors = list(self.by_teacher.values())
        return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim=1)


class Bags(Unforked):
    """A map-style torch data set of bags, read when they are asked for.

    For a `DataLoader`, with `batch_size=None` (bags differ in length) and, if it has workers,
    `multiprocessing_context="spawn"`.

    Args:
        lake: read at its own version.
        teachers: whose features every slide must have.
        mpp: of the tiles.
        slide_ids: the slides; None takes all that have tiles.
        by: "slide" or "patient"; a slide without patient is its own patient.

    Attributes:
        ids: the bags' slides or patients, in order.

    Raises:
        LakeError: a slide is unknown or lacks features; the first are named.
    """

    def __init__(
        self,
        lake: "Lake",
        teachers: Sequence[str],
        *,
        mpp: float,
        slide_ids: Sequence[str] | None,
        by: By,
    ) -> None:
        if by not in get_args(By):
            msg = f"by='{by}' given; allowed: {', '.join(get_args(By))}"
            raise LakeError(msg)
        super().__init__()
        self._lake, self._teachers = lake, list(teachers)
        self._selection = select(lake, teachers, mpp=mpp, slide_ids=slide_ids)
        groups = _groups(lake, self._selection, by)
        self.ids = list(groups)
        self._slides = list(groups.values())

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> TorchBag:
        import torch

        self.check_process()
        slides = self._slides[index]
        located = self._selection.locate(self._selection.rows_of(slides))
        reader = self._lake.row_reader(mpp=self._selection.mpp)
        rows = reader.read(located.ranges, self._teachers)
        self._selection.check(located, rows.tile_id)
        return TorchBag(
            bag_id=self.ids[index],
            slide_ids=tuple(self._selection.slide_ids[slide] for slide in slides),
            slide=torch.from_numpy(np.repeat(np.arange(len(slides)), located.ranges.rows)),
            tile_id=torch.from_numpy(rows.tile_id),
            x=torch.from_numpy(rows.x),
            y=torch.from_numpy(rows.y),
            by_teacher={t: torch.from_numpy(array) for t, array in rows.by_teacher.items()},
        )


def _groups(lake: "Lake", selection: Selection, by: By) -> dict[str, list[int]]:
    """Which slides of a selection are in which bag."""
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
