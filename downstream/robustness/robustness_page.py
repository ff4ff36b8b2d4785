"""The page of a robustness run: `runs/<run>/report.html`, one file that needs no network.

Everything is read from the run's files, so a page can be written again at any time.
"""

import io
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import polars as pl

from downstream.report.lake_holding import package_versions
from downstream.report.plots.plots_robustness import confounding_svg, margins_svg, panels_svg
from downstream.report.report_page import render
from downstream.report.run_tables import listed
from downstream.report.views.picture_sections import Picture
from downstream.robustness.robustness_measures import MEASURES
from downstream.run.run_result import find_result
from ingest.pages import data_uri

if TYPE_CHECKING:
    from featurestore import Lake

Json = dict[str, Any]

_PANELS = 4
_MARGIN = "margin:"


def write_robustness_page(lake: "Lake", run: str) -> None:
    """Write `runs/<run>/report.html` of a finished run."""
    from featurestore.storage import read_named

    passport = find_result(lake, run)
    assert passport is not None  # the caller has just written it
    content = read_named(lake.store, f"runs/{run}/samples.parquet", passport)
    page = robustness_page(lake.uri, passport, pl.read_parquet(io.BytesIO(content)))
    lake.write_bytes(f"runs/{run}/report.html", page.encode())


def robustness_page(lake_uri: str, passport: Json, samples: pl.DataFrame) -> str:
    """Return the HTML of the page.

    Args:
        lake_uri: the lake.
        passport: content of `result.json`.
        samples: the table `samples.parquet`.
    """
    config = passport["config"]
    with_classes = bool(config["classes"])
    return render(
        "robustness.html.j2",
        result=passport,
        lake_uri=lake_uri,
        written=datetime.now(UTC),
        title=(
            f"Robustness: {passport['target']} against {config['site']}"
            if with_classes
            else f"Site probe: {config['site']}"
        ),
        heads=_heads(passport),
        rows=_rows(passport),
        undefined=_undefined(passport),
        panels=_panels(passport),
        differences=_differences(passport),
        pictures=_pictures(passport, samples) if with_classes else [],
        worst=_worst(passport, samples),
        measures=[MEASURES[name] for name in _names(passport)],
        details=[(column, _detail_text(part)) for column, part in passport["details"].items()],
        missing=listed(passport["missing"]),
        surplus=listed(passport["surplus"]),
        settings=[
            (key.replace("_", " "), setting)
            for key, setting in config.items()
            if setting not in ("", [], None)
        ],
        versions=package_versions(),
    )


def _names(passport: Json) -> list[str]:
    """Return the names of the measures, in the order of `MEASURES`."""
    first = next(iter(passport["metrics"].values()))
    return [name for name in MEASURES if name in first["measures"]]


def _heads(passport: Json) -> list[Json]:
    """Return the heads of the table of columns."""
    return [
        {"name": MEASURES[name].shown, "higher_is_better": MEASURES[name].higher_is_better}
        for name in _names(passport)
    ]


def _rows(passport: Json) -> list[Json]:
    """Return the rows of the table of columns, with a cell for each measure."""
    return [
        {
            "arm": column,
            "features": column,
            "model": None,
            "cells": [
                {"why": "", **metrics["measures"][name]}
                | {"why": metrics["measures"][name].get("undefined", "")}
                for name in _names(passport)
            ],
        }
        for column, metrics in passport["metrics"].items()
    ]


def _undefined(passport: Json) -> list[str]:
    """Return a sentence for each measure without a value, once for all columns with one reason."""
    columns_of: dict[tuple[str, str], list[str]] = {}
    for column, metrics in passport["metrics"].items():
        for name, measure in metrics["measures"].items():
            if measure.get("undefined"):
                columns_of.setdefault((name, measure["undefined"]), []).append(column)
    every = len(passport["metrics"])
    of_columns = {
        key: "" if len(columns) == every else f" of {', '.join(columns)}"
        for key, columns in columns_of.items()
    }
    return [
        f"{MEASURES[name].shown}{columns}: {why}" for (name, why), columns in of_columns.items()
    ]


def _detail_text(details: Json) -> str:
    """Return the numbers behind a column's measures in words.

    >>> _detail_text({"k": 3, "tau": 0.25, "ri_support": 0.5, "clusters": 2})
    'k 3, tau 0.25, RI and MaRI from 50 % of the samples; 2 clusters'
    """
    parts = []
    if "k" in details:
        support = f"RI and MaRI from {100 * details['ri_support']:.0f} % of the samples"
        parts.append(f"k {details['k']}, tau {details['tau']:.3g}, {support}")
    if "clusters" in details:
        parts.append(f"{details['clusters']} clusters")
    if details.get("sites_without_probe"):
        parts.append(f"sites that are not probed: {', '.join(details['sites_without_probe'])}")
    return "; ".join(parts)


def _panels(passport: Json) -> list[Picture]:
    """Return pictures of all defined measures, four panels in each."""
    columns = list(passport["metrics"])
    drawn = []
    for name in _names(passport):
        estimates = {
            column: (measure["estimate"], measure["low"], measure["high"])
            for column in columns
            if (measure := passport["metrics"][column]["measures"][name])["estimate"] is not None
        }
        if estimates:
            measure_name = MEASURES[name]
            better = "" if measure_name.higher_is_better else ", lower is better"
            drawn.append((measure_name.shown + better, measure_name.neutral, estimates))
    pictures = []
    for first in range(0, len(drawn), _PANELS):
        shown = drawn[first : first + _PANELS]
        names = ", ".join(name for name, _, _ in shown)
        pictures.append(
            Picture(
                src=data_uri(panels_svg(shown, columns), "image/svg+xml"),
                alt=f"{names} of each column with intervals",
                text=f"{names}. Lines are 95 % intervals; the dashed line is where biology and "
                "site weigh the same, or nothing is lost.",
                width=260 * len(shown) + 120,
            )
        )
    return pictures


def _differences(passport: Json) -> list[Json]:
    """Return rows of the differences from the first column: one for each column and measure."""
    return [
        {
            "column": column,
            "measure": MEASURES[name].shown,
            **gap,
            "verdict": _verdict(gap),
        }
        for column, gaps in passport["differences"].items()
        for name, gap in gaps.items()
    ]


def _verdict(gap: Json) -> str:
    """Return in words what the interval of a difference says.

    >>> _verdict({"low": 0.1, "high": 0.2}), _verdict({"low": -0.1, "high": 0.2})
    ('better', 'not settled')
    """
    if gap["low"] > 0:
        return "better"
    return "worse" if gap["high"] < 0 else "not settled"


def _pictures(passport: Json, samples: pl.DataFrame) -> list[Picture]:
    """Return pictures of the margins, and of the confounded probes where there are some."""
    margins = {
        name.removeprefix(_MARGIN): samples[name].drop_nulls().to_numpy()
        for name in samples.columns
        if name.startswith(_MARGIN) and samples[name].drop_nulls().len()
    }
    curves = {
        column: details["confounding"]
        for column, details in passport["details"].items()
        if "confounding" in details
    }
    pictures = []
    if margins:
        support = next(iter(passport["details"].values()))["croma_support"]
        pictures.append(
            Picture(
                src=data_uri(margins_svg(margins), "image/svg+xml"),
                alt="Margins of the samples of each column, in order",
                text="CRoMa's margin of each sample, lowest first: below the dashed line samples "
                "of another class from the same site are nearer than those of the same class from "
                f"other sites. The grey band is the worst tenth. {100 * support:.0f} % of the "
                "samples have five neighbours of each type, and with them a margin.",
            )
        )
    if curves:
        first = next(iter(curves.values()))
        pictures.append(
            Picture(
                src=data_uri(confounding_svg(curves), "image/svg+xml"),
                alt="Balanced accuracy of probes over the confounding of their training",
                text="Balanced accuracy of probes of the class on the same test patients, as class "
                "and site go together in training: 0 not at all, 1 wholly. A column that leans on "
                f"the site falls. {first['training_patients']} training and "
                f"{first['test_patients']} test patients in each of {first['replicates']} draws "
                f"of {first['patients']} patients.",
            )
        )
    return pictures


def _worst(passport: Json, samples: pl.DataFrame) -> list[Json]:
    """Return for each column the class and site whose samples have the lowest median margin."""
    weakest = []
    for column in passport["metrics"]:
        name = f"{_MARGIN}{column}"
        if name not in samples.columns:
            continue
        cells = (
            samples.drop_nulls(name)
            .group_by("label", "site")
            .agg(margin=pl.col(name).median(), samples=pl.len())
            .sort("margin", "label", "site")
        )
        weakest += [{"column": column, **row} for row in cells.head(1).to_dicts()]
    return weakest
