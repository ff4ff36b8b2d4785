"""Labels of tiles from a user's table, matched with the tiles of the lake.

A row names a tile by its key, or by any place within it in level-0 pixels. Rows without a tile are
listed; a tile with two labels is refused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from cluster import counted
from downstream.cohorts.cohort import listing, load_labels
from downstream.cohorts.cohort_errors import CohortError
from downstream.cohorts.outcomes import class_labels, guess_task, sites_of_barcodes
from downstream.cohorts.patients import settle_patients
from downstream.cohorts.pending import pending_note
from downstream.cohorts.slide_names import match_notes, match_slides, refuse_near_slides

if TYPE_CHECKING:
    from downstream.cohorts.label_tables import LabelTable, Reading
    from featurestore import Lake


@dataclass(frozen=True, kw_only=True)
class TileLabels:
    """Labelled tiles of a lake.

    Attributes:
        rows: `slide_id`, `patient_id`, `tile_id` and `label` (index of the class), each tile once,
            sorted by slide and tile; with sites also `site`.
        classes: names of the classes, in order.
        missing: labelled slides and places without a tile in the lake: `SLIDE`,
            `SLIDE tile KEY` or `SLIDE at X, Y`.
        notes: sentences on what was recognised, matched or left out.
        sha256: hash of the file's bytes.
    """

    rows: pl.DataFrame
    classes: tuple[str, ...]
    missing: list[str]
    notes: tuple[str, ...]
    sha256: str


def read_tile_labels(
    lake: "Lake",
    path: str | PathLike[str],
    target: str,
    *,
    mpp: float,
    ids: Mapping[str, Any] | None = None,
    sites: str | None = None,
) -> TileLabels:
    """Join a table of tile labels with the tiles of a lake.

    Args:
        lake: the lake.
        path: a table (CSV, TSV, XLSX, Parquet) with the slide; `tile_id`, or `x` and `y`, a place
            in level-0 pixels that lies within the tile (its top-left corner does); and the target.
        target: column of classes; a row without one is no label.
        mpp: microns per pixel of the tiles.
        ids: options of `load_labels`: which columns name slides and patients.
        sites: column of the tile's site, or `tcga` for that in the patient's barcode; None if no
            site is asked for.

    Raises:
        CohortError: A table that cannot be read or lacks a column, slides of no or of two patients,
            a tile with two labels, a target of numbers or of one class, or no label of a tile.
        LakeError: The lake has no tiles at this mpp.
    """
    # on use: it opens Lance tables, which takes time that a command's help does not have
    from featurestore.annotations import labels_of

    table = load_labels(labels_of(lake, path), **dict(ids or {}))
    site_columns = () if sites in (None, "tcga") else (str(sites),)
    places = _labelled_places(table, target, str(path), site_columns)
    slides = lake.slides().select("slide_id", "patient_id", "state").collect()
    match = match_slides(places["slide_id"], slides["slide_id"])
    if not table.distinct_ids:
        refuse_near_slides(match, places["slide_id"], slides["slide_id"])
    places = places.with_columns(pl.col("slide_id").replace(dict(match.slide_of)))
    tiles = _tiles(lake, sorted(set(match.slide_of.values())), mpp)
    met = (
        _match_keys(places, tiles) if "tile_id" in places.columns else _match_places(places, tiles)
    )
    labelled = met.drop_nulls("tile_id")
    pending = pending_note(slides, places["slide_id"], "slide_id")
    if labelled.is_empty():
        _refuse_unmatched(places, tiles, str(path), pending)
    _refuse_two_labels(labelled, str(path))
    labelled = _with_patients(labelled, slides, table).unique("tile_id", maintain_order=True)
    _refuse_one_label(labelled, target)
    classes, label_N = class_labels(labelled, "label")
    rows = labelled.select("slide_id", "patient_id", "tile_id", pl.Series("label", label_N))
    if sites is not None:
        rows = rows.with_columns(_site_of_tiles(labelled, sites))
    return TileLabels(
        rows=rows.sort("slide_id", "tile_id"),
        classes=tuple(classes),
        missing=_unmatched_labels(met, set(slides["slide_id"])),
        notes=(*table.notes, *match_notes(match), *pending),
        sha256=table.sha256,
    )


def sample_labels(labels: TileLabels, tiles: int, *, seed: int) -> TileLabels:
    """Return at most `tiles` labelled tiles, drawn at random, the same share of each class.

    Args:
        labels: labels from `read_tile_labels`.
        tiles: most tiles; rounding may add one per class, and each class keeps at least one.
        seed: seed of the draw; the same labels and seed return the same tiles.
    """
    count = labels.rows.height
    if count <= tiles:
        return labels
    rng = np.random.default_rng(seed)
    label_N = labels.rows["label"].to_numpy()
    kept = []
    for label in range(len(labels.classes)):
        members = np.flatnonzero(label_N == label)
        kept.append(rng.permutation(members)[: int(np.ceil(len(members) * tiles / count))])
    rows = labels.rows[np.sort(np.concatenate(kept))]
    note = f"{rows.height} of {count} labelled tiles are used, drawn at random"
    return replace(labels, rows=rows, notes=(*labels.notes, note))


def _site_of_tiles(labelled: pl.DataFrame, sites: str) -> pl.Series:
    """Return the site of each labelled tile.

    Raises:
        CohortError: A tile without a site, or a patient whose id is no TCGA barcode.
    """
    if sites != "tcga":
        lacking = labelled.filter(pl.col("site").is_null())["slide_id"].unique().sort().to_list()
        if lacking:
            msg = (
                f"slides with tiles that have no site in {sites!r}: {listing(lacking)}; fill it in"
            )
            raise CohortError(msg)
        return labelled["site"]
    patients = labelled["patient_id"].to_list()
    return pl.Series("site", sites_of_barcodes(patients), pl.String)


def _labelled_places(
    labels: "LabelTable", target: str, path: str, site_columns: Sequence[str] = ()
) -> pl.DataFrame:
    """Return labelled rows: slide_id, perhaps patient_id, tile_id or x and y, label, maybe site."""
    key_columns = ["tile_id"] if labels.has("tile_id") else ["x", "y"]
    needed = ("slide_id", *key_columns, target, *site_columns)
    lacking = [name for name in needed if not labels.has(name)]
    if lacking:
        table = labels.table
        msg = (
            f"{path!r} has columns {table.columns}; it lacks {', '.join(lacking)}: give the slide, "
            "tile_id or x and y in level-0 pixels, the target, and the site if one is named"
        )
        raise CohortError(msg)
    kind: Reading = "integers" if key_columns == ["tile_id"] else "numbers"
    reading_of: dict[str, Reading] = {
        target: "values",
        **dict.fromkeys(key_columns, kind),
        **dict.fromkeys(set(site_columns) - {target}, "texts"),
    }
    table = labels.read(reading_of).table
    if guess_task(table[target]) == "regression":
        msg = f"{target!r} holds numbers such as {table[target].drop_nulls()[0]}; tiles are "
        msg += "classified: name a column of classes"
        raise CohortError(msg)
    patient = [name for name in ("patient_id",) if name in table.columns]
    site = [pl.col(name).cast(pl.String).alias("site") for name in site_columns]
    rows = table.select("slide_id", *patient, *key_columns, pl.col(target).alias("label"), *site)
    return rows.drop_nulls(["slide_id", *key_columns, "label"]).unique(maintain_order=True)


def _tiles(lake: "Lake", slide_ids: list[str], mpp: float) -> pl.DataFrame:
    """Return the tiles of slides with their places and sides in level-0 pixels."""
    sides = lake.tiles_of(mpp=mpp, slide_ids=slide_ids).select(
        "slide_id", side=pl.col("tile_px_level0").cast(pl.Float64)
    )
    tiles = lake.tiles(mpp=mpp).filter(pl.col("slide_id").is_in(slide_ids))
    columns = ["slide_id", "tile_id", pl.col("x", "y").cast(pl.Float64)]
    return tiles.select(columns).collect().join(sides, on="slide_id", how="left")


def _match_keys(places: pl.DataFrame, tiles: pl.DataFrame) -> pl.DataFrame:
    """Return the places with `tile_id`, null where the lake has no such tile, and `name`."""
    lake_tiles = tiles.select("slide_id", "tile_id", is_there=True)
    met = places.join(lake_tiles, on=["slide_id", "tile_id"], how="left", maintain_order="left")
    name = pl.format("{} tile {}", "slide_id", "tile_id")
    key = pl.when("is_there").then("tile_id")
    return met.with_columns(name.alias("name"), key.alias("tile_id")).drop("is_there")


def _match_places(places: pl.DataFrame, tiles: pl.DataFrame) -> pl.DataFrame:
    """Return the places with the key of the tile that covers each, null without one, and `name`.

    Of overlapping tiles the one whose middle is nearest, of equals the one with the smaller key.
    """
    from featurestore.annotations import tiles_at

    x, y = pl.col("x").round(1), pl.col("y").round(1)
    return tiles_at(places.with_columns(name=pl.format("{} at {}, {}", "slide_id", x, y)), tiles)


def _with_patients(
    labelled: pl.DataFrame, slides: pl.DataFrame, table: "LabelTable"
) -> pl.DataFrame:
    """Return tiles with `patient_id` from the labels, else from the lake; one patient a slide."""
    lake = slides.rename({"patient_id": "patient_id_lake"})
    joined = labelled.join(lake, on="slide_id", how="left", maintain_order="left")
    return settle_patients(
        joined,
        from_labels=table.patients_from == "labels",
        distinct_ids=table.distinct_ids,
    )


def _unmatched_labels(met: pl.DataFrame, lake_slides: set[str]) -> list[str]:
    """Return the labelled slides that the lake lacks, and the places without a tile."""
    lost = met.filter(pl.col("tile_id").is_null())
    names = lost.with_columns(
        name=pl.when(pl.col("slide_id").is_in(list(lake_slides))).then("name")
    )
    return sorted(set(names.select(pl.coalesce("name", "slide_id")).to_series()))


def _refuse_two_labels(labelled: pl.DataFrame, path: str) -> None:
    """Refuse a tile with two labels."""
    labels = labelled.group_by("slide_id", "tile_id").agg(pl.col("label").unique().sort())
    torn = labels.filter(pl.col("label").list.len() > 1).sort("slide_id", "tile_id")
    if not torn.is_empty():
        conflicts = [f"{slide} tile {tile}: {label}" for slide, tile, label in torn.iter_rows()]
        shown = listing(conflicts)
        msg = (
            f"{path!r} gives {counted(len(conflicts), 'tile')} two labels: {shown}; leave one each"
        )
        raise CohortError(msg)


def _refuse_one_label(labelled: pl.DataFrame, target: str) -> None:
    """Refuse tiles of one class."""
    if labelled["label"].n_unique() < 2:
        label = labelled["label"][0]
        msg = f"all {labelled.height} labelled tiles are {label!r} in {target!r}; a probe "
        msg += "needs two classes"
        raise CohortError(msg)


def _refuse_unmatched(
    places: pl.DataFrame, tiles: pl.DataFrame, path: str, pending: list[str]
) -> None:
    """Raise CohortError if no label matches a tile, showing the first row of both sides."""
    if pending and tiles.is_empty():
        msg = f"{path!r}: no labelled slide is ready: {pending[0]}"
        raise CohortError(msg)
    shown: list[dict[str, Any]] = [part.head(1).to_dicts() for part in (places, tiles)]  # type: ignore[misc]
    msg = (
        f"{path!r}: none of {places.height} labels is of a tile; the first is {shown[0]}, the "
        f"first tile of these slides {shown[1] or 'is not there'}: x and y are level-0 pixels"
    )
    raise CohortError(msg)
