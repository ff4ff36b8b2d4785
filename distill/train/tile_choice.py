"""Which tiles a training sees: those with features, by a predicate, by number, in balance.

A choice is a list of row numbers of the slides' tiles, made once by the process that starts a run
and kept in its folder. A row may be in it several times, where groups are brought to one size.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from cluster import counted
from distill.errors import DistillError
from distill.recipes.recipe import Recipe
from distill.targets.tile_classes import PATIENT, SLIDE, annotation_column
from distill.train.clustered_slides import ChoiceTiles, cluster_slides, coreset_places
from distill.train.coresets import EASY, HARD
from distill.train.mosaics import neighbour_rows
from featurestore import Lake, LakeError, matrix, mpp_name
from featurestore.annotations import Where
from featurestore.tables import features_table
from ingest.teachers import in_share

CLUSTER = "cluster"
Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class ChosenTiles:
    """The chosen tiles of some slides at one mpp.

    Attributes:
        rows: row numbers, ascending, of the slides' tiles in the order of `Lake.tiles_of`.
        all: number of tiles of the slides.
        without_features: tiles that a teacher was not run on.
        without_where: other tiles for which the recipe's predicate does not hold.
        without_neighbours: other tiles that lack a neighbour to the right or below, where views
            show those.
    """

    rows: Int64Array
    all: int
    without_features: int
    without_where: int
    without_neighbours: int = 0

    def record(self) -> dict[str, Any]:
        """Return the numbers of the choice, and a hash of its rows.

        `chosen` counts rows, and `again` those that are a row's second or later one.
        """
        alone = {"without_neighbours": self.without_neighbours} if self.without_neighbours else {}
        return {
            "all": self.all,
            "chosen": len(self.rows),
            "without_features": self.without_features,
            "without_where": self.without_where,
            **alone,
            "again": len(self.rows) - len(np.unique(self.rows)),
            "sha256": hashlib.sha256(self.rows.astype("<i8").tobytes()).hexdigest(),
        }


# Long for its counts of what is left out, and why.
def choose_tiles(
    lake: Lake, recipe: Recipe, slide_ids: Sequence[str], *, held_out: bool = False
) -> dict[float, ChosenTiles]:
    """Return the chosen tiles at each mpp at which not all are seen; {} if all are, once each.

    Args:
        lake: the lake at the run's version.
        recipe: recipe with the choice.
        slide_ids: training slides, or held-out ones.
        held_out: whether all tiles with features are chosen, whatever the recipe chooses.

    Raises:
        DistillError: a column was made by annotations that have changed since, a group of tiles is
            not known of a slide, or nothing is left.
        LakeError: the predicate is none on the tiles' columns.
    """
    choice = recipe.tiles
    read, _ = recipe.levels_of(lake.config.mpps)
    chosen = {}
    for mpp in read:
        restrictions = _restrictions(lake, recipe, mpp)
        picks = choice.where or choice.per_slide or choice.balance or choice.coreset
        in_mosaics = recipe.views.neighbours and not held_out
        picks = picks or in_mosaics
        if not restrictions and (held_out or not picks):
            continue
        slides = lake.tiles_of(mpp=mpp, slide_ids=slide_ids).filter(pl.col("tiles") > 0)
        kept, total, without_features, without_where = list[Int64Array](), 0, 0, 0
        alone = 0
        where = Where(lake, choice.where) if choice.where and not held_out else None
        slide_tiles = list[ChoiceTiles]()
        for slide in _slides(lake, mpp, slides):
            has_features = slide.mask(restrictions)
            is_wanted = slide.where(where) if where else np.ones(len(slide.tile_id), bool)
            rows = np.flatnonzero(has_features & is_wanted)
            if in_mosaics:
                among = neighbour_rows(slide.tile_id)[rows]
                has_all = (among >= 0).all(axis=1) & has_features[among].all(axis=1)
                rows, alone = rows[has_all], alone + int((~has_all).sum())
            if choice.per_slide and not held_out:
                rows = _drawn(rows, choice.per_slide, [recipe.seed, slide.number])
            kept.append(total + rows)
            slide_tiles.append(ChoiceTiles(name=slide.name, tile_id=slide.tile_id[rows]))
            total += len(slide.tile_id)
            without_features += int((~has_features).sum())
            without_where += int((has_features & ~is_wanted).sum())
        if not sum(map(len, kept)) and len(slides) and not held_out:
            msg = f"no tile at mpp {mpp_name(mpp)} is left to train on: {_reasons(recipe)}"
            raise DistillError(msg)
        rows = np.concatenate([*kept, np.empty(0, np.int64)])
        if (choice.balance or choice.coreset) and not held_out:
            rows = _picked(lake, recipe, mpp, slide_tiles, kept)
        chosen[mpp] = ChosenTiles(
            rows=rows.astype(np.int64),
            all=total,
            without_features=without_features,
            without_where=without_where,
            without_neighbours=alone,
        )
    return chosen


def _picked(
    lake: Lake,
    recipe: Recipe,
    mpp: float,
    slides: Sequence[ChoiceTiles],
    rows: Sequence[Int64Array],
) -> Int64Array:
    """Return the rows of a coreset, or in balance, or both, ascending."""
    choice, rows = recipe.tiles, list(rows)
    clustered = None
    if choice.balance == CLUSTER or choice.coreset in (HARD, EASY):
        clustered = cluster_slides(lake, recipe, mpp, slides)
    if choice.coreset:
        places = coreset_places(lake, recipe, mpp, slides, clustered)
        rows = [part[at] for part, at in zip(rows, places, strict=True)]
        if clustered is not None:
            clustered = [part.at(at) for part, at in zip(clustered, places, strict=True)]
    if not choice.balance:
        return np.concatenate(rows)
    if choice.balance != CLUSTER or clustered is None:
        groups = slide_groups(lake, [slide.name for slide in slides], choice.balance)
        return balanced(rows, groups, seed=recipe.seed)
    all_rows = np.concatenate(rows)
    cluster_N = np.concatenate([part.cluster for part in clustered])
    numbers = np.unique(cluster_N).tolist()
    return balanced(
        [all_rows[cluster_N == number] for number in numbers],
        [f"{number:09d}" for number in numbers],
        seed=recipe.seed,
    )


def choice_lines(tiles: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a line for each mpp on how many tiles are seen, and why others are not.

    Args:
        tiles: `ChosenTiles.record` by the mpp's name.
    """
    lines = []
    for mpp, part in tiles.items():
        seen_tiles = part["chosen"] - part["again"]
        alone = part.get("without_neighbours", 0)
        left_out = part["without_features"] + part["without_where"] + alone
        not_drawn = part["all"] - left_out - seen_tiles
        counts = {
            "lack a teacher's features": part["without_features"],
            "are left out by --where": part["without_where"],
            "have no neighbour to the right or below": alone,
            "are left out by --per-slide, --coreset or --balance": not_drawn,
            "come again": part["again"],
        }
        reasons = [f"{count:,} {text}" for text, count in counts.items() if count]
        why = f" ({', '.join(reasons)})" if reasons else ""
        lines.append(f"{seen_tiles:,} of {part['all']:,} tiles at mpp {mpp} are seen{why}")
    return lines


def _reasons(recipe: Recipe) -> str:
    where = f"--where {recipe.tiles.where!r}" if recipe.tiles.where else "its teachers' --where"
    return f"look at {where}, or take other columns"


# ---------------------------------------------------------------------- tiles of slides


@dataclass(frozen=True, kw_only=True)
class _Restriction:
    """The tiles on which a teacher was run."""

    where: Where | None
    share: float | None
    filled: tuple[str, float] | None = None  # column of filled shares, and the greatest allowed


@dataclass(frozen=True, kw_only=True)
class _Slide:
    """The tiles of a slide, in row order."""

    number: int
    name: str
    patient: str | None
    tile_id: Int64Array
    fragment: Any

    def where(self, predicate: Where) -> npt.NDArray[np.bool_]:
        """Return whether a predicate holds for each tile.

        Raises:
            LakeError: it is no predicate on the tiles' columns.
        """
        text = predicate.of(self.name, self.patient)
        row_filter = f"slide = {self.number} AND ({text})"
        try:
            table = self.fragment.scanner(columns=["tile_id"], filter=row_filter).to_table()
        except (ValueError, OSError) as error:
            reason = str(error).partition("\n")[0]
            msg = f"--where {predicate.text!r} can't be asked of tiles: {reason}"
            raise LakeError(msg) from error
        return np.isin(self.tile_id, table["tile_id"].to_numpy())

    def mask(self, restrictions: Sequence[_Restriction]) -> npt.NDArray[np.bool_]:
        """Return whether all teachers were run on each tile."""
        is_there = np.ones(len(self.tile_id), bool)
        for restriction in restrictions:
            if restriction.where is not None:
                is_there &= self.where(restriction.where)
            if restriction.share is not None:
                is_there &= in_share(self.tile_id, restriction.share)
            if restriction.filled is not None:
                is_there &= self._is_seen(*restriction.filled)
        return is_there

    def _is_seen(self, column: str, at_most: float) -> npt.NDArray[np.bool_]:
        """Return whether at most this share of each tile's field of view was filled."""
        rows = self.fragment.scanner(columns=[column], filter=f"slide = {self.number}").to_table()
        is_seen: npt.NDArray[np.bool_] = matrix(rows[column])[:, 0] <= at_most
        return is_seen


def _restrictions(lake: Lake, recipe: Recipe, mpp: float) -> list[_Restriction]:
    """Return the choices of tiles that the recipe's teachers were run with at an mpp.

    Raises:
        DistillError: a choice was made by annotations that have changed since.
    """
    restrictions = []
    for teacher in [t for t, level in recipe.needs(lake.config.mpps) if level == mpp]:
        identity = lake.identity(teacher, mpp=mpp)
        text, share = identity.get("where"), identity.get("share")
        most = identity.get("fov", {}).get("filled_at_most")
        filled = None if most is None else (f"{teacher.partition('~')[0]}@filled", most)
        if text is None and share is None and filled is None:
            continue
        where = Where(lake, text) if text is not None else None
        if where is not None and where.marks != identity.get("annotations", {}):
            msg = (
                f"'{teacher}' was run on tiles --where {text!r}, and its annotations have changed "
                "since, so it can't be told which: drop the column and extract it again"
            )
            raise DistillError(msg)
        restrictions.append(_Restriction(where=where, share=share, filled=filled))
    return restrictions


def _slides(lake: Lake, mpp: float, slides: pl.DataFrame) -> Iterator[_Slide]:
    """Yield the tiles of slides, in the order of the table."""
    table = lake.table(features_table(mpp))
    patients = dict(lake.slides().select("slide_id", "patient_id").collect().iter_rows())
    for row in slides.iter_rows(named=True):
        fragment = table.get_fragment(row["fragment"])
        keys = fragment.scanner(columns=["tile_id"], filter=f"slide = {row['slide']}").to_table()
        yield _Slide(
            number=row["slide"],
            name=row["slide_id"],
            patient=patients[row["slide_id"]],
            tile_id=keys["tile_id"].to_numpy(),
            fragment=fragment,
        )


def rows_of_neighbours(
    lake: Lake, mpp: float, slide_ids: Sequence[str], rows: Int64Array
) -> Int64Array:
    """Return the row numbers of the three neighbours of some tiles [N, 3].

    Args:
        lake: the lake at the run's version.
        mpp: mpp of the tiles.
        slide_ids: names of the slides that are numbered through.
        rows: row numbers of tiles that have all neighbours.
    """
    slides = lake.tiles_of(mpp=mpp, slide_ids=slide_ids).filter(pl.col("tiles") > 0)
    among, total = [np.empty((0, 3), np.int64)], 0
    for slide in _slides(lake, mpp, slides):
        among.append(neighbour_rows(slide.tile_id) + total)
        total += len(slide.tile_id)
    return np.concatenate(among)[rows]


# ---------------------------------------------------------------------- numbers and balance


def _drawn(rows: Int64Array, most: int, seed: Sequence[int]) -> Int64Array:
    """Draw at most a number of rows, ascending."""
    if len(rows) <= most:
        return rows
    drawn = np.random.default_rng(list(seed)).choice(rows, most, replace=False)
    return np.sort(drawn)


def balanced(by_slide: Sequence[Int64Array], groups: Sequence[str], *, seed: int) -> Int64Array:
    """Return as many rows as there are, equally many of each group of slides, ascending.

    A group with more rows gives a part of them; rows of one with fewer come several times.

    Args:
        by_slide: rows of each slide.
        groups: group of each slide.
        seed: seed of the draw.

    >>> balanced([np.arange(6), np.arange(6, 8)], ["a", "b"], seed=0)[-4:]
    array([6, 6, 7, 7])
    """
    members: dict[str, list[Int64Array]] = {}
    for rows, group in zip(by_slide, groups, strict=True):
        if len(rows):
            members.setdefault(group, []).append(rows)
    total = sum(map(len, by_slide))
    chosen = []
    for number, (_, parts) in enumerate(sorted(members.items())):
        rows, quota = np.concatenate(parts), max(1, total // len(members))
        again, rest = divmod(quota, len(rows))
        random = np.random.default_rng([seed, number]).choice(rows, rest, replace=False)
        chosen += [np.tile(rows, again), random]
    return np.sort(np.concatenate([*chosen, np.empty(0, np.int64)])).astype(np.int64)


def slide_groups(lake: Lake, slide_ids: Sequence[str], balance: str) -> list[str]:
    """Return the group of each slide: itself, its patient, or its value of an annotation.

    Args:
        lake: the lake.
        slide_ids: names of the slides.
        balance: `slide`, `patient`, or a column of an annotation of slides or patients, as
            `clinical.site`, or `site` where one annotation alone has it.

    Raises:
        DistillError: there is no such column, or a slide has no value in it.
    """
    if balance == SLIDE:
        return list(slide_ids)
    slides = lake.slides().select("slide_id", "patient_id").collect()
    patients = dict(slides.iter_rows())
    if balance == PATIENT:
        return [patients[name] or name for name in slide_ids]
    annotation, column = annotation_column(
        lake,
        balance,
        levels=(SLIDE, PATIENT),
        option="--balance",
        others="slide, patient, cluster, or ",
    )
    table = lake.annotation(annotation.name).collect()
    values: Mapping[str, object] = dict(table.select(annotation.key, column).iter_rows())
    keys = {name: patients[name] if annotation.level == PATIENT else name for name in slide_ids}
    groups = [values.get(keys[name] or "") for name in slide_ids]
    unknown = [name for name, group in zip(slide_ids, groups, strict=True) if group is None]
    if unknown:
        msg = (
            f"--balance {balance}: {counted(len(unknown), 'slide', 'have')} no {column}, "
            f"{unknown[0]} first; "
            "annotate them, or leave them out by --slides"
        )
        raise DistillError(msg)
    return [str(group) for group in groups]
