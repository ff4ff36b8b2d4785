"""The samples of a passport, from a table of slides, patients or tiles, and their features.

Samples are drawn in turn from each class at each site, and there in turn from each patient, so that
neither a large site nor a large slide outvotes the others.

Shape letters: N samples, D width of the features.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cluster import counted
from downstream.cohorts.cohort import Cohort, keep_slides, listing, load_labels, patient_table
from downstream.cohorts.outcomes import class_labels, guess_task, site_of
from downstream.cohorts.site_facts import site_facts, site_notes
from downstream.probes.probe_labels import read_tile_labels
from downstream.robustness.robustness_spec import LEAST_SAMPLES, RobustnessError
from downstream.run.feature_bags import (
    is_of_slides,
    read_patient,
    slides_with_tiles,
    teachers_of,
)

if TYPE_CHECKING:
    from downstream.cohorts.label_tables import LabelTable
    from downstream.robustness.robustness_spec import RobustnessSpec
    from featurestore import Lake

_COLUMNS = ("slide_id", "patient_id", "tile_id", "label", "site")
_NO_CLASS = -1


@dataclass(frozen=True, kw_only=True)
class Samples:
    """The samples of a passport.

    Attributes:
        rows: `slide_id`, `patient_id`, `tile_id` (null where a sample is a slide), `label` (index
            of the class; -1 without classes) and `site`, in the order of the draw.
        classes: names of the classes; empty where none are named.
        unit: `slide` or `tile`.
        missing: labelled ids that are not used.
        surplus: ready slides without a label.
        notes: sentences on what was recognised, matched, drawn or left out.
        sha256: hash of the table's bytes.
    """

    rows: pl.DataFrame
    classes: tuple[str, ...]
    unit: str
    missing: list[str]
    surplus: list[str]
    notes: tuple[str, ...]
    sha256: str

    def facts(self, column: str) -> dict[str, Any]:
        """Return Cramér's V of class and site, and the patients of each site; see `site_facts`."""
        once = self.rows.unique(["patient_id", "label", "site"], maintain_order=True)
        return site_facts(once["site"].to_list(), once["label"].to_list(), column)


def read_samples(lake: "Lake", spec: "RobustnessSpec") -> Samples:
    """Return the samples that a spec describes, drawn and checked.

    Raises:
        CohortError: A table that cannot be read, contradicts itself or misses the lake.
        RobustnessError: Numbers in place of classes, a unit that the table does not have, one site,
            or classes and sites that cannot be told apart.
        LakeError: The lake has no tiles at this mpp.
    """
    from featurestore.annotations import labels_of

    options, target = spec.labels, next(iter(spec.labels.target), "")
    table = None
    if options.table:
        table = load_labels(labels_of(lake, options.table), **options.id_options)
    names_tiles = table is not None and (
        table.has("tile_id") or (table.has("x") and table.has("y"))
    )
    unit = spec.measures.unit
    if unit == "auto":
        unit = "tile" if names_tiles else "slide"
    if names_tiles and (unit == "slide" or not target):
        msg = (
            f"{options.table!r} names tiles; name the column of their classes by --target, and "
            "leave the unit at tile"
        )
        raise RobustnessError(msg)
    if names_tiles:
        samples = _labelled_tiles(lake, spec, target)
    else:
        samples = _labelled_slides(lake, spec, table, target)
        if unit == "tile":
            samples = _tiles_of_slides(lake, samples, spec.features.mpps[0])
    drawn = draw_in_turn(samples.rows, spec.measures.samples, seed=spec.measures.seed)
    if drawn.height < samples.rows.height:
        note = (
            f"{drawn.height:,} of {counted(samples.rows.height, unit)} are used, drawn in turn "
            "from each class at each site and there from each patient"
        )
        samples = replace(samples, notes=(*samples.notes, note))
    samples = replace(samples, rows=drawn)
    check_samples(drawn, samples.classes, spec.sites)
    facts = samples.facts(spec.sites)
    if samples.classes:
        notes = site_notes(facts, kept_apart=True)
        samples = replace(samples, notes=(*samples.notes, *notes))
    return samples


def check_samples(rows: pl.DataFrame, classes: Sequence[str], column: str) -> None:
    """Refuse samples for which the measures are undefined.

    Args:
        rows: `patient_id`, `label` and `site` of each sample.
        classes: names of the classes; empty where none are named.
        column: where the sites come from.

    Raises:
        RobustnessError: One site, one class, fewer than 8 samples; no class at two sites, or no
            site with two classes.
    """
    sites = sorted(rows["site"].unique())
    if len(sites) < 2:
        msg = (
            f"all samples are of one site by {column!r}: {listing(sites)}; how far features know "
            "biology from sites is defined for two sites or more"
        )
        raise RobustnessError(msg)
    if rows.height < LEAST_SAMPLES:
        msg = f"{counted(rows.height, 'sample')}; measures of robustness need {LEAST_SAMPLES}"
        raise RobustnessError(msg)
    if not classes:
        return
    cells = rows.select("label", "site").unique()
    if cells["label"].n_unique() < 2:
        name = classes[int(cells["label"][0])]
        msg = f"all samples are {name!r}; measures of robustness need two classes"
        raise RobustnessError(msg)
    sites_of_class = cells.group_by("label").len()["len"]
    classes_of_site = cells.group_by("site").len()["len"]
    if sites_of_class.max() == 1 or classes_of_site.max() == 1:
        lacks = "class is at two sites" if sites_of_class.max() == 1 else "site has two classes"
        msg = (
            f"no {lacks}: class and site ({column!r}) go wholly together, and nothing can tell "
            "biology from sites; add samples of other classes to a site"
        )
        raise RobustnessError(msg)


def draw_in_turn(rows: pl.DataFrame, most: int, *, seed: int) -> pl.DataFrame:
    """Return at most so many rows, in turn from each class at each site, there from each patient.

    Args:
        rows: `patient_id`, `label`, `site` and what else a sample has.
        most: most rows.
        seed: seed of the draw; the same rows and seed return the same rows in the same order.
    """
    luck = pl.Series("luck", np.random.default_rng(seed).permutation(rows.height))
    cell = ["label", "site"]
    turns = (
        rows.with_columns(luck)
        .sort("luck")
        .with_columns(turn=pl.col("luck").cum_count().over([*cell, "patient_id"]))
    )
    placed = turns.sort("turn", "luck").with_columns(place=pl.col("luck").cum_count().over(cell))
    return placed.sort("place", "luck").head(most).drop("luck", "turn", "place")


def features_of_samples(
    lake: "Lake",
    samples: Samples,
    name: str,
    *,
    mpp: float,
    advance: Callable[[], None] = lambda: None,
) -> NDArray[np.float32]:
    """Return the features of each sample [N, D]: of a tile, or the mean over a slide's tiles.

    Vectors of slides (`slidelake encode`) are taken as they are, where samples are slides.

    Args:
        lake: the lake.
        samples: the samples.
        name: feature set, a teacher or several joined by `+`.
        mpp: microns per pixel of the tiles.
        advance: function that is called after each slide, for progress.

    Raises:
        LakeError: A slide has no features of a teacher.
        RobustnessError: A tile has no features, since only a part was extracted, or the samples
            are tiles and the features vectors of slides.
    """
    if is_of_slides(name) and samples.unit != "slide":
        msg = f"{name!r} has vectors of slides, and the samples are tiles; label slides instead"
        raise RobustnessError(msg)
    parts: dict[int, NDArray[np.float32]] = {}
    for (slide,), rows in samples.rows.with_row_index("row").group_by("slide_id"):
        bag = (
            read_patient(lake, [str(slide)], name, [mpp])
            if is_of_slides(name)
            else lake.bag(str(slide), teachers_of(name), mpp=mpp)
        )
        if samples.unit == "slide":
            vectors = bag.features.mean(axis=0, dtype=np.float32)[None].repeat(rows.height, axis=0)
        else:
            keys = rows["tile_id"].to_numpy()
            lost = keys[~np.isin(keys, bag.tile_id)]
            if len(lost):
                msg = (
                    f"slide {slide!r}: {counted(len(lost), 'tile')} without features of {name}, "
                    f"for example {lost[0]}; they were extracted of a part of the tiles"
                )
                raise RobustnessError(msg)
            vectors = bag.features[np.searchsorted(bag.tile_id, keys)].astype(np.float32)
        parts |= dict(zip(rows["row"].to_list(), vectors, strict=True))
        advance()
    return np.stack([parts[row] for row in range(samples.rows.height)])


def _labelled_tiles(lake: "Lake", spec: "RobustnessSpec", target: str) -> Samples:
    """Return the tiles that a table labels."""
    labels = read_tile_labels(
        lake,
        spec.labels.table,
        target,
        mpp=spec.features.mpps[0],
        ids=spec.labels.id_options,
        sites=spec.sites,
    )
    return Samples(
        rows=labels.rows.select(_COLUMNS),
        classes=labels.classes,
        unit="tile",
        missing=labels.missing,
        surplus=[],
        notes=labels.notes,
        sha256=labels.sha256,
    )


def _labelled_slides(
    lake: "Lake", spec: "RobustnessSpec", table: "LabelTable | None", target: str
) -> Samples:
    """Return the slides of labelled patients; without a table, all slides of the lake."""
    named = [] if spec.sites == "tcga" else [spec.sites]
    if table is None:
        if named or target:
            msg = (
                f"site {spec.sites!r}, target {target!r}: name the table that has them by "
                "--labels (lake:NAME for one of the lake); without a table only --site tcga is "
                "known, and the site probe alone is made"
            )
            raise RobustnessError(msg)
        cohort = _all_patients(lake)
    else:
        if not target and not named:
            msg = "site 'tcga' without a target needs no table: leave --labels out, or add --target"
            raise RobustnessError(msg)
        columns = [target] if target else named
        cohort = patient_table(lake.slides(), table, columns, extra_columns=named)
    cohort = keep_slides(cohort, slides_with_tiles(lake, mpp=spec.features.mpps[0]))
    patients = cohort.patients
    sites = site_of(patients["patient_id"].to_list(), cohort, spec.sites)
    classes: tuple[str, ...] = ()
    label_P = np.full(patients.height, _NO_CLASS)
    if target:
        if guess_task(patients[target]) == "regression":
            msg = (
                f"{target!r} holds numbers such as {patients[target][0]}; measures of robustness "
                "are of classes: name a column of classes"
            )
            raise RobustnessError(msg)
        names, label_P = class_labels(patients, target)
        classes = tuple(names)
    of_patients = pl.DataFrame(
        {
            "slide_id": patients["slide_ids"],
            "patient_id": patients["patient_id"],
            "label": label_P,
            "site": sites,
        }
    )
    rows = of_patients.explode("slide_id").with_columns(tile_id=pl.lit(None, pl.Int64))
    return Samples(
        rows=rows.select(_COLUMNS).sort("slide_id"),
        classes=classes,
        unit="slide",
        missing=cohort.missing,
        surplus=cohort.surplus,
        notes=cohort.notes,
        sha256="" if table is None else table.sha256,
    )


def _all_patients(lake: "Lake") -> Cohort:
    """Return the patients of all ready slides; a slide without one is surplus."""
    ready = lake.slides().filter(pl.col("state") == "ready").select("slide_id", "patient_id")
    slides = ready.collect()
    of_patients = (
        slides.drop_nulls().group_by("patient_id").agg(slide_ids=pl.col("slide_id").sort())
    )
    if of_patients.is_empty():
        msg = "the lake knows no patients; name a table of them by --labels"
        raise RobustnessError(msg)
    return Cohort(
        patients=of_patients.sort("patient_id"),
        missing=[],
        surplus=sorted(slides.filter(pl.col("patient_id").is_null())["slide_id"]),
    )


def _tiles_of_slides(lake: "Lake", samples: Samples, mpp: float) -> Samples:
    """Return the tiles of labelled slides, each with its slide's class and site."""
    slides = samples.rows.drop("tile_id")
    tiles = lake.tiles(mpp=mpp).filter(pl.col("slide_id").is_in(slides["slide_id"].to_list()))
    rows = tiles.select("slide_id", "tile_id").collect().join(slides, on="slide_id")
    return replace(samples, rows=rows.select(_COLUMNS).sort("slide_id", "tile_id"), unit="tile")
