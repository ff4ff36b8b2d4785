"""Fitting of statistics part by part, here or on a cluster, with a checkpoint.

A part is about 260,000 tiles of whole slides, whatever the number of workers, and parts are
combined in their order: the same features give the same numbers to the last bit on any cluster.
Memory holds the parts that are ahead of their turn, a matrix [D, D] each.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load, save

from featurestore.errors import DamageError, LakeError
from featurestore.ids import mpp_name
from featurestore.lake import Lake
from featurestore.messages import counted
from featurestore.read.select_slides import select
from featurestore.read.selection import Selection
from featurestore.stats.moments import (
    Moments,
    combined,
    feature_blocks,
    folder,
    merge,
    sample_name,
    stats_key,
)
from featurestore.stats.phi_s_rotation import FORMULA, phi_s
from featurestore.storage.sealed_json import read_named, read_sealed, sealed

PART_TILES = 1 << 18
#: Neighbours that a sample reads at once: 16 times fewer requests than single tiles.
RUN_TILES = 16
CHECKPOINT_S = 60.0
PARTIAL = "partial.json"


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of the tiles that statistics are made of.

    Attributes:
        teacher: the column.
        selection: the slides of the part.
        rows: the rows of the selection that are read; None for all.
    """

    teacher: str
    selection: Selection
    rows: npt.NDArray[np.int64] | None

    @property
    def tiles(self) -> int:
        """Return the number of tiles that are read."""
        return self.selection.tiles if self.rows is None else len(self.rows)


#: Calls a function for each part, anywhere, and yields number and result of each, in any order.
PartMap = Callable[
    [Lake, Sequence[Part], Callable[[int], None]], Iterator[tuple[int, Moments | None]]
]


def part_moments(
    lake: Lake, part: Part, on_tiles: Callable[[int], None] = lambda tiles: None
) -> Moments | None:
    """Return the moments of a part; None where no tile of it has features."""
    moments: Moments | None = None
    blocks = feature_blocks(lake, part.teacher, part.selection, row_numbers=part.rows)
    for tiles, features in blocks:
        moments = merge(moments, features) if len(features) else moments
        on_tiles(tiles)
    return moments


def map_here(
    lake: Lake, parts: Sequence[Part], on_tiles: Callable[[int], None]
) -> Iterator[tuple[int, Moments | None]]:
    """Yield the moments of each part, one after the other in this process."""
    for number, part in enumerate(parts):
        yield number, part_moments(lake, part, on_tiles)


def fit_stats(
    lake: Lake,
    teacher: str,
    *,
    mpp: float,
    slide_ids: Sequence[str],
    tiles: int | None = None,
    part_map: PartMap = map_here,
    on_tiles: Callable[[int], None] = lambda tiles: None,
) -> Moments:
    """Fit moments over the tiles of the named slides; keep them with their PHI-S transform.

    Of a column of patch tokens each token is a row. Tiles that the teacher left out are
    left out here too. The moments do not depend on the order of the names. A fit that is stopped
    goes on from its last checkpoint.

    Args:
        lake: read at its own version, which is kept with the result.
        teacher: the column.
        mpp: microns per pixel of the tiles.
        slide_ids: the training slides; slides without tissue add nothing.
        tiles: number of tiles of a sample, in runs of 16 neighbours spread evenly over all; None,
            or as many as there are, for all tiles.
        part_map: where parts are computed.
        on_tiles: called with the number of tiles of each block, once it was added.

    Raises:
        LakeError: a slide is unknown or lacks this teacher's features (it is named), there are
            fewer than two rows, or all are the same.
        DamageError: features differ from the committed features.
    """
    selection = select(lake, [teacher], mpp=mpp, slide_ids=sorted(set(slide_ids)))
    sample = tiles if tiles is not None and tiles < selection.tiles else None
    parts = list(stats_parts(teacher, selection, sample))
    key = stats_key(lake, teacher, mpp, slide_ids)
    name = key if sample is None else sample_name(key, sample)
    progress = _Progress(lake, f"{folder(teacher, mpp)}/{name}", len(parts))
    if progress.done:
        on_tiles(sum(part.tiles for part in parts[: progress.done]))
    progress.add_all(part_map(lake, parts[progress.done :], on_tiles))
    moments = progress.moments
    if moments is None or moments.n < 2:
        msg = (
            f"statistics of '{teacher}' at mpp {mpp_name(mpp)} need two tiles or more; the "
            f"{counted(len(set(slide_ids)), 'slide', 'have')} {moments.n if moments else 0}"
        )
        raise LakeError(msg)
    _write_stats(lake, teacher, mpp, slide_ids, moments, key=key, sample=sample)
    progress.remove()
    return moments


def stats_parts(teacher: str, selection: Selection, sample: int | None) -> Iterator[Part]:
    """Yield the parts of a selection, whole slides each; a part is the same for any cluster.

    Args:
        teacher: the column.
        selection: the slides.
        sample: number of tiles of a sample; None for all.
    """
    rows = None if sample is None else sampled_rows(selection.tiles, sample)
    ends = np.cumsum(selection.slides["tiles"].to_numpy().astype(np.int64))
    read = ends if rows is None else np.searchsorted(rows, ends)
    first = 0
    while first < len(selection):
        begun = read[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(read, begun + PART_TILES, side="right")))
        part = selection.part(first, last)
        own = None
        if rows is not None:
            start = ends[first - 1] if first else 0
            own = rows[begun : read[last - 1]] - start
        if own is None or len(own):
            yield Part(teacher=teacher, selection=part, rows=own)
        first = last


def sampled_rows(count: int, sample: int) -> npt.NDArray[np.int64]:
    """Return `sample` of `count` rows in runs of 16, spread evenly; ascending.

    Every run has the same chance whatever its slide, so a slide counts by its tiles.

    >>> sampled_rows(100, 32).tolist() == [*range(17, 33), *range(67, 83)]
    True
    """
    runs = -(-sample // RUN_TILES)
    if runs * RUN_TILES > count:  # nearly all
        return np.arange(sample, dtype=np.int64)
    slack = count - runs * RUN_TILES
    starts = (np.arange(runs) * RUN_TILES + (np.arange(runs) + 0.5) * slack / runs).astype(np.int64)
    return (starts[:, None] + np.arange(RUN_TILES)).reshape(-1)[:sample]


class _Progress:
    """The moments of the first parts, and their checkpoint in the lake.

    Args:
        lake: the lake.
        path: folder of the statistics.
        parts: number of all parts.
    """

    def __init__(self, lake: Lake, path: str, parts: int) -> None:
        self._lake, self._path, self._parts = lake, path, parts
        self.done, self.moments = self._read()
        self._saved_s = time.monotonic()

    def add_all(self, results: Iterator[tuple[int, Moments | None]]) -> None:
        """Combine the moments of the parts that are left, in their order."""
        before = self.done
        waiting: dict[int, Moments | None] = {}
        for number, moments in results:
            waiting[before + number] = moments
            while self.done in waiting:
                part = waiting.pop(self.done)
                if part is not None:
                    self.moments = part if self.moments is None else combined(self.moments, part)
                self.done += 1
            if self.done < self._parts and time.monotonic() - self._saved_s > CHECKPOINT_S:
                self._write()

    def _read(self) -> tuple[int, Moments | None]:
        """Return the number of parts of the checkpoint and their moments; 0 without a whole one."""
        store, path = self._lake.store, f"{self._path}/{PARTIAL}"
        if not self._lake.exists(path):
            return 0, None
        try:
            card = read_sealed(store, path)
            arrays = load(read_named(store, f"{self._path}/{card['file']}", card))
        except DamageError:  # a kill came between its two files
            return 0, None
        if card["parts"] != self._parts or card["part_tiles"] != PART_TILES:
            return 0, None  # of an earlier slidelake
        moments = Moments(n=card["n"], mean=arrays["mean"], covariance=arrays["covariance"])
        return card["done"], moments if card["n"] else None

    def _write(self) -> None:
        if self.moments is None:
            return
        file = f"partial-{self.done}.safetensors"
        content = save({"mean": self.moments.mean, "covariance": self.moments.covariance})
        card = {
            "done": self.done,
            "parts": self._parts,
            "part_tiles": PART_TILES,
            "n": self.moments.n,
            "file": file,
        }
        self._lake.write_bytes(f"{self._path}/{file}", content)
        self._lake.write_json(f"{self._path}/{PARTIAL}", sealed(card, {file: content}))
        self.remove(keep=(file, PARTIAL))
        self._saved_s = time.monotonic()

    def remove(self, keep: Sequence[str] = ()) -> None:
        """Remove the files of checkpoints."""
        names = self._lake.store.names(self._path)
        old = [name for name in names if name.startswith("partial") and name not in keep]
        self._lake.store.remove([f"{self._path}/{name}" for name in old])


def _write_stats(
    lake: Lake,
    teacher: str,
    mpp: float,
    slide_ids: Sequence[str],
    moments: Moments,
    *,
    key: str,
    sample: int | None,
) -> None:
    rotated = phi_s(moments.mean, moments.covariance)
    path = f"{folder(teacher, mpp)}/{key if sample is None else sample_name(key, sample)}"
    files = {
        "moments.safetensors": save({"mean": moments.mean, "covariance": moments.covariance}),
        "phi_s.safetensors": save({"mean": rotated.mean, "rotation": rotated.rotation}),
    }
    for name, content in files.items():
        lake.write_bytes(f"{path}/{name}", content)
    card: dict[str, Any] = {
        "teacher": teacher,
        "mpp": mpp,
        "dim": len(moments.mean),
        "n": moments.n,
        "scale": rotated.scale,
        "slides": sorted(set(slide_ids)),
        "identity": lake.identity(teacher, mpp=mpp),
        "lake_version": lake.version,
        "formula": FORMULA,
        "key": key,
        **({} if sample is None else {"sample": sample}),
    }
    # Last: statistics without a card are not there.
    lake.write_json(f"{path}/card.json", sealed(card, files))
