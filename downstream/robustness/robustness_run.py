"""Robustness passports of some columns of a lake, kept as a run: `runs/robustness-<hash>/`.

A run is a pure function of the table, the columns and the settings; the finished result is found
again. Everything runs in this process, one column at a time.
"""

import hashlib
import json
import time
from collections.abc import Sequence
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

import polars as pl

from cluster import progress
from downstream.cohorts.student_patients import seen_patients
from downstream.robustness.column_passport import (
    Passport,
    SampleCodes,
    column_passport,
    differences,
    steps_of_passport,
)
from downstream.robustness.robustness_page import write_robustness_page
from downstream.robustness.robustness_samples import Samples, features_of_samples, read_samples
from downstream.robustness.robustness_spec import RobustnessOptions, RobustnessSpec
from downstream.run.cells import parquet_bytes
from downstream.run.feature_bags import feature_identity
from downstream.run.run_result import find_result, write_result
from downstream.run.saved_specs import save_spec
from downstream.run.study import check_features
from downstream.run.study_spec import FeatureOptions, LabelOptions

if TYPE_CHECKING:
    from featurestore import Lake

FORMAT = 1
_UNEVEN = 0.02
"""Version of how a passport comes about; part of the run's name."""


def run_passport(lake_uri: str, spec: RobustnessSpec) -> dict[str, Any]:
    """Measure how far columns know classes from sites; return the result.

    Args:
        lake_uri: the lake; its `runs/` folder gets the result.
        spec: all settings that determine the result.

    Returns:
        The content of `result.json`: `metrics` per column with all `measures` and their 95 %
        intervals; `differences` from the first column on the same resamples of patients; `details`
        per column; `site` with Cramér's V of class and site. Measures without a value on these
        samples have `undefined`, the reason.

    Raises:
        CohortError: Labels that cannot be read or do not meet the lake.
        RobustnessError: One site, one class, or classes and sites that go wholly together.
        StudyError: No column, or one named twice.
        LakeError: No lake there, or none with this mpp or teacher.
    """
    from featurestore import ResultDict, open_lake

    began = time.monotonic()
    names = check_features(spec.features.names)
    lake = open_lake(lake_uri, version=spec.features.version)
    samples = read_samples(lake, spec)
    config = _config(lake, samples, spec, names)
    text = json.dumps(config, sort_keys=True)
    run = f"robustness-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    save_spec(lake, run, spec)
    passport_result = find_result(lake, run)
    if passport_result is None:
        passports = _passports(lake, samples, spec, names)
        facts = _result(lake, samples, spec, passports, config)
        files = {"samples.parquet": parquet_bytes(_sample_table(samples, passports))}
        seconds = time.monotonic() - began
        passport_result = write_result(lake, run, {**facts, "run": run, "seconds": seconds}, files)
    if not lake.exists(f"runs/{run}/report.html"):
        write_robustness_page(lake, run)
    return ResultDict(passport_result, name="robustness", uri=lake.uri)


def run_robustness(
    lake_uri: str,
    labels: str | PathLike[str],
    target: str,
    features: Sequence[str],
    *,
    sites: str,
    mpp: float,
    options: RobustnessOptions | None = None,
    version: int | str | None = None,
) -> dict[str, Any]:
    """Measure how far columns know classes from sites: `run_passport` by single settings.

    Args:
        lake_uri: the lake; its `runs/` folder gets the result.
        labels: table of slides, patients or tiles with their classes and sites.
        target: column of classes.
        features: see `FeatureOptions.names`.
        sites: column of the site, or `tcga` to read it off TCGA barcodes.
        mpp: microns per pixel of the tiles.
        options: settings of the measures.
        version: see `FeatureOptions.version`.

    Returns:
        See `run_passport`.

    Raises:
        ValueError: See `run_passport`.

    Examples:
        >>> quick = sl.RobustnessOptions(trials=2)
        >>> passport = sl.run_robustness("my-lake", "labels.csv", "grade", ["student"],
        ...                              sites="hospital", mpp=0.5, options=quick)
        >>> list(passport["metrics"]["student"]["measures"])[:4]
        ['croma', 'croma_worst_tenth', 'croma_below_0', 'ri']
    """
    spec = RobustnessSpec(
        labels=LabelOptions(table=fspath(labels), target=(target,)),
        features=FeatureOptions(names=tuple(features), mpps=(mpp,), version=version),
        sites=sites,
        measures=options or RobustnessOptions(),
    )
    return run_passport(lake_uri, spec)


def _passports(
    lake: "Lake", samples: Samples, spec: RobustnessSpec, names: Sequence[str]
) -> dict[str, Passport]:
    """Return the passport of each column, on the same samples."""
    rows = samples.rows
    labels = rows["label"].to_list() if samples.classes else []
    codes = SampleCodes.of(labels, rows["site"].to_list(), rows["patient_id"].to_list())
    slides = rows["slide_id"].n_unique()
    steps = slides + steps_of_passport(codes, spec.measures)
    passports = {}
    with progress("robustness", total=steps * len(names), unit="steps") as bar:
        for number, name in enumerate(names):
            x_ND = features_of_samples(
                lake, samples, name, mpp=spec.features.mpps[0], advance=bar.advance
            )
            passports[name] = column_passport(x_ND, codes, spec.measures, advance=bar.advance)
            bar.advance(max(0, steps * (number + 1) - bar.snapshot().done))
    return passports


def _config(
    lake: "Lake", samples: Samples, spec: RobustnessSpec, names: Sequence[str]
) -> dict[str, Any]:
    """Return all settings that determine the result, as JSON."""
    slides = samples.rows["slide_id"].unique().sort().to_list()
    mpp = spec.features.mpps[0]
    table = samples.rows.sort("slide_id", "tile_id", "label").write_csv().encode()
    return {
        "format": FORMAT,
        "features": list(names),
        "mpps": [mpp],
        "columns": list(spec.labels.target) or [spec.sites],
        "classes": list(samples.classes),
        "site": spec.sites,
        **spec.to_json()["measures"],
        "unit": samples.unit,
        "samples_sha256": hashlib.sha256(table).hexdigest(),
        "labels_sha256": samples.sha256,
        "identities": {name: feature_identity(lake, slides, name, mpp=mpp) for name in names},
    }


def _result(
    lake: "Lake",
    samples: Samples,
    spec: RobustnessSpec,
    passports: dict[str, Passport],
    config: dict[str, Any],
) -> dict[str, Any]:
    """Return the content of `result.json`, but for the run's name and time."""
    rows, main = samples.rows, "croma" if samples.classes else "site_auroc"
    first = next(iter(passports))
    by_chance = passports[first].details.get("ri_by_chance")
    slides_of = {
        str(patient): part["slide_id"].unique().to_list()
        for (patient,), part in rows.group_by("patient_id")
    }
    return {
        "kind": "robustness",
        "task": "robustness",
        "target": config["columns"][0],
        "arms": {name: {"features": name, "model": None} for name in passports},
        "metrics": {
            name: {"metric": main, **passport.measures[main], "measures": passport.measures}
            for name, passport in passports.items()
        },
        "details": {name: passport.details for name, passport in passports.items()},
        "differences": {
            name: differences(passport, passports[first])
            for name, passport in passports.items()
            if name != first
        },
        "site": samples.facts(spec.sites),
        "folds": spec.measures.folds,
        "repeats": 1,
        "seeds": 1,
        "patients": rows["patient_id"].n_unique(),
        "slides": rows["slide_id"].n_unique(),
        "samples": rows.height,
        "unit": samples.unit,
        "cells": _cells(samples),
        "lake_version": lake.version,
        "missing": samples.missing,
        "surplus": samples.surplus,
        "notes": [
            *samples.notes,
            *_chance_notes(by_chance),
            *_student_notes(lake, tuple(passports), slides_of),
        ],
        "config": config,
    }


def _cells(samples: Samples) -> list[dict[str, Any]]:
    """Return the numbers of samples and patients of each class at each site."""
    counts = samples.rows.group_by("site", "label").agg(
        samples=pl.len(), patients=pl.col("patient_id").n_unique()
    )
    return [
        {**row, "label": samples.classes[row["label"]] if samples.classes else ""}
        for row in counts.sort("site", "label").to_dicts()
    ]


def _chance_notes(by_chance: float | None) -> list[str]:
    """Return a note where the numbers of samples alone move RI and CRoMa from their neutral values.

    >>> _chance_notes(0.5), len(_chance_notes(2 / 3))
    ([], 1)
    """
    if by_chance is None or abs(by_chance - 0.5) < _UNEVEN:
        return []
    side = "above" if by_chance > 0.5 else "below"
    note = (
        f"a column that knows neither class nor site has an RI of about {by_chance:.2f} on these "
        f"samples, not 0.50, and a CRoMa {side} 0: classes and sites are not two of each in equal "
        "numbers; compare columns with each other"
    )
    return [note]


def _student_notes(
    lake: "Lake", names: Sequence[str], slides_of: dict[str, list[str]]
) -> list[str]:
    """Return notes on students that were trained on patients of the samples."""
    notes = []
    for name, patients in seen_patients(lake, names, slides_of).items():
        if patients:
            notes.append(
                f"student {name!r} was trained on {len(patients)} of these {len(slides_of)} "
                "patients: on others it may be less robust"
            )
    return notes


def _sample_table(samples: Samples, passports: dict[str, Passport]) -> pl.DataFrame:
    """Return the samples with the margin of each in each column."""
    names = [samples.classes[label] if samples.classes else None for label in samples.rows["label"]]
    table = samples.rows.with_columns(pl.Series("label", names, pl.String))
    margins = [
        pl.Series(f"margin:{name}", passport.margin, pl.Float64, nan_to_null=True)
        for name, passport in passports.items()
        if len(passport.margin)
    ]
    return table.with_columns(margins)
