"""What stain normalisation does to a column: its robustness passport, and a probe on another site.

    python -m benchmarks.stain_normalisation [--patients 24] [--shift 3]

Slides are generated, at two sites whose stains and their strengths differ by `--shift` times what
the demo's do; nothing else differs between the sites. The encoder, efficientnet_lite0, was trained
on photographs. The probe is a logistic regression of the grade on mean features of slides, trained
on one site and tested on the other, both ways. No clock runs.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import numpy as np
import polars as pl
import typer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import slidelake
from benchmarks.recipes import LITE0
from benchmarks.report import write_report
from examples import slide_render
from examples.cohort import make_cohort
from featurestore import Lake, open_lake

MPP, TILE_PX = 1.0, 256
COLUMNS = (LITE0, f"{LITE0}@macenko", f"{LITE0}@reinhard")


def shifted_lake(folder: Path, *, patients: int, shift: float) -> tuple[str, Path]:
    """Make slides whose sites' stains differ, a lake of them and its columns; return its labels."""
    strengths = {
        site: tuple(1 + shift * (strength - 1) for strength in both)
        for site, both in slide_render.SITE_STRENGTHS.items()
    }
    shifts = {
        site: tuple(tuple(shift * part for part in stain) for stain in stains)
        for site, stains in slide_render.SITE_SHIFTS.items()
    }
    with (
        mock.patch.dict(slide_render.SITE_STRENGTHS, strengths),
        mock.patch.dict(slide_render.SITE_SHIFTS, shifts),
    ):  # in this process alone, where all slides are made
        labels = make_cohort(
            folder / "cohort",
            patients=patients,
            slides=patients,
            width_px=2560,
            height_px=2304,
            workers=1,
        )
    lake = str(folder / "lake")
    slidelake.ingest(lake, [str(labels)], slidelake.LakeConfig(tile_px=TILE_PX, mpps=(MPP,)))
    slidelake.extract(lake, COLUMNS)
    return lake, labels


def other_site_auroc(lake: Lake, labels: pl.DataFrame, column: str) -> dict[str, float]:
    """Return the AUROC of the grade at each site by a probe that was trained on the other."""
    means = np.stack(
        [lake.bag(name, column, mpp=MPP).features.mean(axis=0, dtype=np.float64)
         for name in labels["slide_id"]]
    )  # fmt: skip
    grades = (labels["label"] == "grade_3").to_numpy()
    at_site = labels["site"].to_numpy()
    scores = {}
    for site in sorted(set(at_site.tolist())):
        train, test = at_site != site, at_site == site
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
        probe.fit(means[train], grades[train])
        scores[site] = float(roc_auc_score(grades[test], probe.decision_function(means[test])))
    return scores


def measured(lake_uri: str, table: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Return the robustness and the probe of each column."""
    lake, labels = open_lake(lake_uri), pl.read_csv(table)
    passport = slidelake.run_robustness(lake_uri, table, "label", columns, sites="site", mpp=MPP)
    rows = []
    for column in columns:
        measures = passport["metrics"][column]["measures"]
        row: dict[str, Any] = {"column": column}
        row |= {
            name: {key: measure.get(key) for key in ("estimate", "low", "high")}
            for name, measure in measures.items()
        }
        row["auroc on the other site"] = other_site_auroc(lake, labels, column)
        rows.append(row)
    return rows


def main(
    patients: Annotated[int, typer.Option(help="a slide each, half of them at each site")] = 32,
    shift: Annotated[float, typer.Option(help="of the sites' stains, in times the demo's")] = 3.0,
    out: Annotated[Path, typer.Option(help="folder of the results")] = Path(__file__).parent
    / "results",
) -> None:
    """Print the measures of each column and write them as JSON."""
    rows: list[Any] = []
    for factor in (1.0, shift):
        with tempfile.TemporaryDirectory(prefix="slidelake-bench-") as folder:
            lake, labels = shifted_lake(Path(folder), patients=patients, shift=factor)
            for row in measured(lake, labels, COLUMNS):
                rows.append({"shift": factor, **row})
                typer.echo(str(rows[-1]))
    settings = {"patients": patients, "shift": shift}
    typer.echo(f"-> {write_report(out, rows, settings, name='stain-normalisation')}")


if __name__ == "__main__":
    typer.run(main)
