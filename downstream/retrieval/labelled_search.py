"""How well a search finds slides of the same class: every labelled slide searches the others.

Slides of the query's own patient are left out, for they would be found by their stain and scanner.
Judged by accuracy, storage and time together, as Lahr et al. ask (arXiv 2403.01271).

Shape letters: S slides, Q queries, D width of the features.
"""

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cluster import counted
from downstream.cohorts.cohort import LabelledSlides, listing, load_labels, slide_table
from downstream.cohorts.outcomes import class_labels
from downstream.measures.intervals import bca_or_percentile, interval
from downstream.retrieval.ranked_slides import DEPTHS, Hits, hits_of, measures_of, ranked_slides
from downstream.retrieval.search_options import LabelledSearchOptions
from downstream.retrieval.search_query import RetrievalError, slide_vectors
from downstream.run.feature_bags import (
    feature_width,
    is_of_slides,
    slides_with_features,
    tile_columns,
)

if TYPE_CHECKING:
    from downstream.cohorts.label_tables import LabelTable
    from featurestore import Lake

Json = dict[str, Any]
Labels = NDArray[np.int64]

#: A value of the vector of a slide is a float32.
VALUE_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class LabelledSet:
    """The slides that are searched, and those of them that search.

    Attributes:
        slide_ids: slides with a label and features of all columns [S], sorted.
        label: class of each slide [S].
        patient: number of each slide's patient [S].
        classes: names of the classes.
        query: numbers of the slides that search [Q]: of classes that another patient has, too.
    """

    slide_ids: list[str]
    label: Labels
    patient: Labels
    classes: list[str]
    query: Labels

    def slides_by_class(self) -> dict[str, int]:
        """Return the number of slides of each class."""
        sizes = np.bincount(self.label, minlength=len(self.classes))
        return dict(zip(self.classes, sizes.tolist(), strict=True))

    def of_class(self, label: int) -> Labels:
        """Return the places among the queries of the slides of one class."""
        return np.flatnonzero(self.label[self.query] == label)


def evaluate_search(
    lake_uri: str, options: LabelledSearchOptions, *, out: Path | None = None
) -> Json:
    """Return how often a labelled slide finds slides of its class first, among other patients'.

    Args:
        lake_uri: the lake.
        options: the labels and the columns that are compared.
        out: page to write, as .html.

    Returns:
        target, mpp, classes (slides by class), slides, patients, queries, unknown_patients,
        columns (by name: `measures`, each with estimate, low, high; `classes`, the estimates of
        each; width, bytes_per_slide, tile_bytes_per_slide, seconds_per_query, seconds_to_read),
        warnings, notes, missing, surplus, lake_version, picture.

    Raises:
        LakeError: There is no such lake or column.
        CohortError: Labels that can't be used.
        RetrievalError: Fewer than two patients of every class, or no file of this ending.
    """
    from featurestore import ResultDict, open_lake
    from featurestore.annotations import labels_of

    if out is not None:
        check_page(out)
    lake = open_lake(lake_uri, version=options.version)
    mpp = lake.known_mpp(options.mpp)
    for name in options.features:
        feature_width(lake, name, mpp=mpp)
    table = load_labels(labels_of(lake, options.labels))
    labelled = slide_table(_slides(lake, table), table, options.target)
    vectors, lost, seconds = _vectors(lake, labelled.rows["slide_id"].to_list(), options, mpp)
    examined = _labelled_set(labelled.rows, options.target, set(next(iter(vectors.values()))))
    unknown = int((labelled.rows["slide_id"] == labelled.rows["patient_id"]).sum())
    answer: Json = {
        "target": options.target,
        "mpp": mpp,
        "classes": examined.slides_by_class(),
        "slides": len(examined.slide_ids),
        "patients": int(examined.patient.max()) + 1,
        "queries": len(examined.query),
        "unknown_patients": unknown,
        "columns": {
            name: _column(lake, name, mpp, examined, vectors[name], seconds[name], options.seed)
            for name in options.features
        },
        "warnings": _warnings(examined, unknown, labelled),
        "notes": [*labelled.notes, *_lost_notes(lost)],
        "missing": labelled.missing,
        "surplus": labelled.surplus,
        "lake_version": lake.version,
        "picture": None,
    }
    if out is not None:
        from downstream.retrieval.labelled_page import write_page

        answer["picture"] = str(write_page(answer, out))
    return ResultDict(answer, name="search", uri=lake.uri)


def check_page(out: Path) -> None:
    """Raise RetrievalError unless it is an .html file in a folder that is there."""
    if out.suffix.lower() != ".html" or not out.parent.is_dir():
        msg = f"{out} can't be written: name an .html file in a folder that is there"
        raise RetrievalError(msg)


def _slides(lake: "Lake", table: "LabelTable") -> pl.LazyFrame:
    """Return the lake's slides; one without a patient is its own, unless the labels name them."""
    slides = lake.slides()
    if "patient_id" in table.table.columns:
        return slides
    return slides.with_columns(pl.coalesce("patient_id", "slide_id").alias("patient_id"))


def _vectors(
    lake: "Lake", slide_ids: list[str], options: LabelledSearchOptions, mpp: float
) -> tuple[dict[str, dict[str, NDArray[np.float64]]], list[str], dict[str, float]]:
    """Return the mean of each slide's tiles by column, slides without one, and seconds of reading.

    All columns have the same slides.
    """
    usable = set(lake.tiles_of(mpp=mpp).filter(pl.col("tiles") > 0)["slide_id"])
    for name in options.features:
        usable &= slides_with_features(lake, name, mpp=mpp)
    names = [slide for slide in slide_ids if slide in usable]
    vectors: dict[str, dict[str, NDArray[np.float64]]] = {}
    seconds = {}
    for name in options.features if names else ():
        begun = time.perf_counter()
        if is_of_slides(name):
            vectors[name] = dict(zip(*slide_vectors(lake, names, name, mpp=mpp), strict=True))
        else:
            frame = lake.slide_means(name, mpp=mpp, slide_ids=names, dtype="float64")
            rows = zip(frame["slide_id"], frame[name].to_list(), strict=True)
            vectors[name] = {slide: np.array(row) for slide, row in rows if row and any(row)}
        seconds[name] = time.perf_counter() - begun
    kept = set(names).intersection(*(set(part) for part in vectors.values()))
    lost = sorted(set(slide_ids) - kept)
    if not kept:
        msg = f"no labelled slide has features of {', '.join(options.features)}: {listing(lost)}"
        raise RetrievalError(msg)
    same = {name: {s: v for s, v in part.items() if s in kept} for name, part in vectors.items()}
    return same, lost, seconds


def _labelled_set(rows: pl.DataFrame, target: str, kept: set[str]) -> LabelledSet:
    """Return the slides with their classes and patients, and which of them search.

    Raises:
        RetrievalError: No class has slides of two patients.
    """
    rows = rows.filter(pl.col("slide_id").is_in(list(kept))).sort("slide_id")
    classes, label_S = class_labels(rows, target)
    patient_S = np.unique(rows["patient_id"].to_numpy(), return_inverse=True)[1].astype(np.int64)
    patients_of = [len(np.unique(patient_S[label_S == label])) for label in range(len(classes))]
    query_Q = np.flatnonzero(np.array(patients_of)[label_S] > 1)
    if not len(query_Q):
        msg = (
            f"no class of {target!r} has slides of two patients, so that no slide can be found: "
            f"{listing(classes)}; choose a column of classes"
        )
        raise RetrievalError(msg)
    return LabelledSet(
        slide_ids=rows["slide_id"].to_list(),
        label=label_S,
        patient=patient_S,
        classes=classes,
        query=query_Q,
    )


def _column(
    lake: "Lake",
    name: str,
    mpp: float,
    examined: LabelledSet,
    vectors: dict[str, NDArray[np.float64]],
    seconds_to_read: float,
    seed: int,
) -> Json:
    """Return the measures, the storage and the time of one column."""
    vector_SD = np.stack([vectors[slide] for slide in examined.slide_ids])
    begun = time.perf_counter()
    ranked_QK = ranked_slides(vector_SD, examined.patient, examined.query, max(DEPTHS))
    seconds = time.perf_counter() - begun
    hits = hits_of(ranked_QK, examined.label, examined.query)
    tiles = lake.tiles_of(mpp=mpp, slide_ids=examined.slide_ids)["tiles"].sum()
    width = vector_SD.shape[1]
    dims = lake.teachers(mpp=mpp)
    tile_width = sum(dims.get(column, 0) for column in tile_columns(lake, name))
    return {
        "measures": _measures(hits, examined, seed),
        "classes": _by_class(hits, examined),
        "width": width,
        "bytes_per_slide": VALUE_BYTES * width,
        "tile_bytes_per_slide": round(2 * tile_width * tiles / len(examined.slide_ids)),
        "seconds_per_query": seconds / len(examined.query),
        "seconds_to_read": round(seconds_to_read, 3),
    }


def _measures(hits: Hits, examined: LabelledSet, seed: int) -> dict[str, Json]:
    """Return the measures with intervals over patients; what is searched stays as it is."""
    label_Q = examined.label[examined.query]
    patients = [str(number) for number in examined.patient[examined.query]]
    measures = {}
    for measure, hit_Q in measures_of(hits):
        estimate = bca_or_percentile(
            partial(interval, measure, (label_Q,), hit_Q, seed=seed, patients=patients)
        )
        measures[measure.name] = {
            "estimate": estimate.estimate,
            "low": estimate.low,
            "high": estimate.high,
            "method": estimate.method,
        }
    return measures


def _by_class(hits: Hits, examined: LabelledSet) -> dict[str, Json]:
    """Return the shares of each class that has queries."""
    shares = {}
    for label, name in enumerate(examined.classes):
        at = examined.of_class(label)
        if len(at):
            shares[name] = {
                "queries": len(at),
                **{f"acc@{k}": float(hit_Q[at].mean()) for k, hit_Q in hits.any_of.items()},
                **{f"mvacc@{k}": float(hit_Q[at].mean()) for k, hit_Q in hits.majority_of.items()},
            }
    return shares


def _warnings(examined: LabelledSet, unknown: int, labelled: LabelledSlides) -> list[str]:
    """Return what makes the measures better or worse than they are."""
    warnings = []
    if unknown:
        warnings.append(
            f"{counted(unknown, 'slide')} of {labelled.rows.height} have no known patient and "
            "count as patients of their own: another slide of the same person may be found, and "
            "the measures be too good; name patients by `slidelake annotate --name patients`, or "
            "in a patient_id column of the labels"
        )
    alone = [
        name for label, name in enumerate(examined.classes) if not len(examined.of_class(label))
    ]
    if alone:
        warnings.append(
            f"slides of one patient only can't be found by another: {listing(alone)}; they are "
            "searched, but do not search"
        )
    return warnings


def _lost_notes(lost: list[str]) -> list[str]:
    """Return a note on labelled slides without features, if there are any."""
    if not lost:
        return []
    return [f"{counted(len(lost), 'labelled slide')} without features left out: {listing(lost)}"]


def labelled_text(answer: Json) -> str:
    """Return the answer as text: the measures of each column, then what they were measured on."""
    lines = []
    for column, one in answer["columns"].items():
        cost = f"{1e3 * one['seconds_per_query']:.2f} ms per query"
        lines.append(f"{column}: {one['bytes_per_slide']:,} bytes per slide, {cost}")
        lines += [f"  {name:8} {_interval_text(m)}" for name, m in one["measures"].items()]
    classes = ", ".join(f"{name} {slides:,}" for name, slides in answer["classes"].items())
    lines.append(f"{answer['target']}: {classes}")
    queries = counted(answer["queries"], "slide", "search")
    patients = counted(answer["patients"], "patient")
    lines.append(
        f"{queries} among {counted(answer['slides'], 'slide')} of {patients}, the query's own "
        "patient left out; 95 % intervals over patients"
    )
    lines += [f"warning: {warning}" for warning in answer["warnings"]]
    lines += answer["notes"]
    if answer["picture"]:
        lines.append(f"page: {answer['picture']}")
    return "\n".join(lines)


def _interval_text(measure: Json) -> str:
    """Return an estimate with its interval, as 0.812 (0.741-0.870)."""
    return f"{measure['estimate']:.3f} ({measure['low']:.3f}-{measure['high']:.3f})"
