"""Tile probes: classes of labelled tiles read from frozen features, cross-validated over patients.

A run is a pure function of the labels, the lake's features and the options; the finished result is
found again. Everything runs in this process: on one core a linear probe of 2,000 tiles of 1,024
numbers and 4 classes takes 9 s a fold (a busy Xeon), neighbours 0.3 s.

Shape letters: N labelled tiles, D width of a feature set, T draws of few shots (1 without), C
classes.
"""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from downstream.cohorts.cohort import listing
from downstream.cohorts.student_patients import (
    seen_patients,
    student_facts,
    student_notes,
    unseen_splits,
)
from downstream.measures.fold_test import overlap_of
from downstream.probes.probe_folds import ProbeScores, counts_of, scored, tile_splits
from downstream.probes.probe_labels import TileLabels, read_tile_labels, sample_labels
from downstream.probes.probe_result import compare_probes, metrics_of
from downstream.probes.probe_spec import ProbeError, ProbeOptions, ProbeSpec
from downstream.report.run_page import write_run_page
from downstream.robustness.study_sites import tile_sites
from downstream.run.cells import parquet_bytes
from downstream.run.feature_bags import feature_identity, teachers_of
from downstream.run.run_result import find_result, write_result
from downstream.run.saved_specs import save_spec
from downstream.run.study import check_features
from downstream.run.study_errors import StudyError
from downstream.run.study_spec import (
    ComparisonOptions,
    FeatureOptions,
    LabelOptions,
    label_id_options,
)
from downstream.splits.split_tables import to_table

if TYPE_CHECKING:
    from downstream.splits.split import Split
    from featurestore import Lake


FORMAT = 3
"""Version of how a probe's result comes about; part of the run's name."""


def run_tile_probe(lake_uri: str, spec: ProbeSpec) -> dict[str, Any]:
    """Probe feature sets by labelled tiles, cross-validated over patients; return the result.

    Args:
        lake_uri: the lake; its `runs/` folder gets the result.
        spec: all settings that determine the result.

    Returns:
        The content of `result.json`: `metrics` per arm (`FEATURES / MODEL`) with intervals over
        patients; with few shots the mean over draws, and its spread.

    Raises:
        CohortError: Labels that cannot be read or do not meet the lake.
        SplitError: Too few patients for the folds, or a class with fewer tiles than shots.
        StudyError: No feature set, one named twice, or a reference that is no arm.
        BagError: A slide lacks the features of a teacher.
        LakeError: No lake there, or none with this mpp or teacher.
    """
    from featurestore import ResultDict, open_lake

    began = time.monotonic()
    (target,), (mpp,), options = spec.labels.target, spec.features.mpps, spec.probe
    names = check_features(spec.features.names)
    lake = open_lake(lake_uri, version=spec.features.version)
    labels = read_tile_labels(
        lake, spec.labels.table, target, mpp=mpp, ids=spec.labels.id_options, sites=spec.sites
    )
    labels = sample_labels(labels, options.tiles, seed=options.seed)
    arms = [arm for arm, _, _ in _arms(names, options)]
    if spec.comparison.reference not in (None, *arms):
        msg = f"reference {spec.comparison.reference!r}; the arms are {', '.join(arms)}"
        raise StudyError(msg)
    config = {
        **_config(lake, labels, target, names, mpp, options),
        "reference": spec.comparison.reference or arms[0],
        "margin": spec.comparison.margin,
        "unseen_students": spec.features.unseen_students,
        **({"site": spec.sites} if spec.sites else {}),
    }
    run = f"probe-{hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:12]}"
    save_spec(lake, run, spec)
    probe_result = find_result(lake, run)
    if probe_result is None:
        probe_result, files = _probe_arms(lake, labels, config, run, options)
        probe_result = write_result(
            lake, run, {**probe_result, "seconds": time.monotonic() - began}, files
        )
    if not lake.exists(f"runs/{run}/report.html"):
        write_run_page(lake, run)
    return ResultDict(probe_result, name="probe", uri=lake.uri)


def run_probe(
    lake_uri: str,
    labels: str | PathLike[str],
    target: str,
    features: Sequence[str],
    *,
    mpp: float,
    options: ProbeOptions | None = None,
    reference: str | None = None,
    margin: float | None = None,
    ids: Mapping[str, Any] | None = None,
    version: int | str | None = None,
) -> dict[str, Any]:
    """Probe feature sets by labelled tiles: `run_tile_probe` by single settings.

    Args:
        lake_uri: the lake; its `runs/` folder gets the result.
        labels: table of tiles, see `read_tile_labels`.
        target: column of classes.
        features: see `FeatureOptions.names`.
        mpp: microns per pixel of the tiles.
        options: settings of the probes.
        reference: see `ComparisonOptions.reference`.
        margin: see `ComparisonOptions.margin`.
        ids: options of `load_labels`: which columns name slides and patients.
        version: see `FeatureOptions.version`.

    Returns:
        See `run_tile_probe`.

    Raises:
        ValueError: See `run_tile_probe`.

    Examples:
        >>> report = sl.run_probe("my-lake", "regions.csv", "tissue", ["student"], mpp=0.5)
        >>> sorted(report["arms"])
        ['student / knn', 'student / linear']
    """
    spec = ProbeSpec(
        labels=LabelOptions(table=fspath(labels), target=(target,), **label_id_options(ids)),
        features=FeatureOptions(names=tuple(features), mpps=(mpp,), version=version),
        probe=options or ProbeOptions(),
        comparison=ComparisonOptions(reference=reference, margin=margin),
    )
    return run_tile_probe(lake_uri, spec)


def _arms(names: Sequence[str], options: ProbeOptions) -> list[tuple[str, str, str]]:
    """Return the name, feature set and model of each arm."""
    return [(f"{name} / {model}", name, model) for name in names for model in options.models]


def _probe_arms(
    lake: "Lake", labels: TileLabels, config: dict[str, Any], run: str, options: ProbeOptions
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Fit and measure every arm; return the result and the files that belong to it."""
    names, classes = config["features"], len(labels.classes)
    features_of, rows, lost = _features(lake, labels, names, config["mpps"][0])
    slides_of = _slides_of_patients(rows)
    trained_on = seen_patients(lake, names, slides_of)
    splits = tile_splits(rows, options)
    if config["unseen_students"]:
        splits = list(unseen_splits(splits, trained_on))
    tested = [patient for split in splits for patient in split.test]
    facts = student_facts(trained_on, tested)
    site, notes = tile_sites(rows, features_of, config.get("site"), seed=options.seed)
    arms = _arms(names, options)
    scores = {
        arm: scored(features_of[name], rows, splits, model, classes, options)
        for arm, name, model in arms
    }
    is_tested = rows["patient_id"].is_in(tested)
    rows, scores = rows.filter(is_tested), {arm: part.only(is_tested.to_numpy())
                                            for arm, part in scores.items()}  # fmt: skip
    files = _result_files(rows, splits, scores, labels.classes)
    label_N, patients = rows["label"].to_numpy(), rows["patient_id"].to_list()
    fold_N = next(iter(scores.values())).fold
    probe_result = {
        "kind": "probe",
        "task": "binary" if classes == 2 else "multiclass",
        "target": config["columns"][0],
        "arms": {arm: {"features": name, "model": model} for arm, name, model in arms},
        "metrics": _metrics(rows, scores, options),
        "comparisons": compare_probes(
            label_N,
            fold_N,
            {arm: part.scores for arm, part in scores.items()},
            patients,
            reference=config["reference"],
            overlap=overlap_of(splits),
            margin=config["margin"],
            seed=options.seed,
        ),
        "folds": options.folds,
        "repeats": 1,
        "inner": 1,
        "seeds": 1,
        "patients": rows["patient_id"].n_unique(),
        "slides": rows["slide_id"].n_unique(),
        "tiles": rows.height,
        "tiles_of_class": dict(zip(labels.classes, counts_of(rows, classes), strict=True)),
        "lake_version": lake.version,
        "run": run,
        "missing": sorted([*labels.missing, *lost]),
        "surplus": [],
        "notes": [*labels.notes, *notes, *student_notes(facts)],
        "students": facts,
        **({"site": site} if site else {}),
        "config": config,
    }
    return probe_result, files


def _slides_of_patients(rows: pl.DataFrame) -> dict[str, list[str]]:
    """Return the slides of each patient with labelled tiles."""
    return {
        str(patient): slides["slide_id"].unique().to_list()
        for (patient,), slides in rows.group_by("patient_id")
    }


def _config(
    lake: "Lake",
    labels: TileLabels,
    target: str,
    names: Sequence[str],
    mpp: float,
    options: ProbeOptions,
) -> dict[str, Any]:
    """Return all settings that determine the result of a probe, as JSON."""
    slides = labels.rows["slide_id"].unique().sort().to_list()
    tiles = labels.rows.write_csv().encode()
    return {
        "format": FORMAT,
        "features": list(names),
        "models": list(options.models),
        "mpps": [mpp],
        "columns": [target],
        "classes": list(labels.classes),
        "folds": options.folds,
        "shots": options.shots,
        "draws": options.rounds,
        "seed": options.seed,
        "tiles_sha256": hashlib.sha256(tiles).hexdigest(),
        "labels_sha256": labels.sha256,
        "identities": {name: feature_identity(lake, slides, name, mpp=mpp) for name in names},
    }


def _features(
    lake: "Lake", labels: TileLabels, names: Sequence[str], mpp: float
) -> tuple[dict[str, NDArray[np.float32]], pl.DataFrame, list[str]]:
    """Return features [N, D] by feature set, the rows that all have, and slides left out.

    Raises:
        ProbeError: A class of which no tile has features.
    """
    parts: dict[str, list[NDArray[np.float32]]] = {name: [] for name in names}
    kept: list[pl.DataFrame] = []
    lost: list[str] = []
    for (slide,), rows in labels.rows.group_by("slide_id", maintain_order=True):
        keys = rows["tile_id"].to_numpy()
        bags = {name: lake.bag(str(slide), teachers_of(name), mpp=mpp) for name in names}
        has = np.all([np.isin(keys, bag.tile_id) for bag in bags.values()], axis=0)
        lost += [f"{slide} tile {key}" for key in keys[~has]]
        kept.append(rows.filter(has))
        for name, bag in bags.items():
            at = np.searchsorted(bag.tile_id, keys[has])
            parts[name].append(bag.features[at].astype(np.float32))
    rows = pl.concat(kept)
    empty = [labels.classes[c] for c, n in enumerate(counts_of(rows, len(labels.classes))) if not n]
    if empty:
        msg = f"no tile of {listing(empty)} has features of all of {', '.join(names)}; they were "
        msg += "extracted of a part of the tiles: label others, or leave the class out"
        raise ProbeError(msg)
    return {name: np.concatenate(part) for name, part in parts.items()}, rows, lost


def _metrics(
    rows: pl.DataFrame, scores: Mapping[str, ProbeScores], options: ProbeOptions
) -> dict[str, dict[str, Any]]:
    """Return the metrics of each arm as JSON."""
    label_N, patients = rows["label"].to_numpy(), rows["patient_id"].to_list()
    return {
        arm: metrics_of(
            label_N,
            arm_scores.fold,
            arm_scores.scores,
            patients,
            seed=options.seed,
            spread=options.shots is not None,
        )
        for arm, arm_scores in scores.items()
    }


def _result_files(
    rows: pl.DataFrame,
    splits: Sequence["Split"],
    scores: Mapping[str, ProbeScores],
    classes: Sequence[str],
) -> dict[str, bytes]:
    """Return the files of predictions (mean over draws) and splits, by name, as Parquet bytes."""
    named = rows.with_columns(
        pl.Series("label", [classes[label] for label in rows["label"]]),
        pl.lit("test").alias("part"),
        *(pl.lit(0, pl.Int32).alias(name) for name in ("repeat", "seed")),
    )
    parts = []
    for arm, arm_scores in scores.items():
        mean_NC = arm_scores.scores.mean(axis=1)
        binary = mean_NC[:, 1] if mean_NC.shape[1] == 2 else None
        columns = [
            pl.Series("arm", [arm] * rows.height, pl.String),
            pl.Series("fold", arm_scores.fold, pl.Int32),
            pl.Series("probabilities", mean_NC.tolist(), pl.List(pl.Float64)),
            pl.Series("score", binary if binary is not None else [None] * rows.height, pl.Float64),
            # classes weigh the same, so that class 1 is predicted from one half on
            pl.lit(None if binary is None else 0.5, pl.Float64).alias("threshold"),
        ]
        parts.append(named.with_columns(columns))
    return {
        "predictions.parquet": parquet_bytes(pl.concat(parts)),
        "splits.parquet": parquet_bytes(to_table(splits)),
    }
