"""What the report says of students and runs: tables and pictures, each as the template takes it.

Which feature set and which slide a picture shows follows from a rule that the page names, so that
nobody has picked the nicest one.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from downstream.metrics import Estimate
from downstream.plots import COLOURS, attention_png, km_png, roc_png
from downstream.report_plots import curves_png, fidelity_png, forest_png, plain
from downstream.study import safe_name
from ingest.slide_pictures import data_uri, decode_rgb, encode_jpeg, scaled

if TYPE_CHECKING:
    from collections.abc import Mapping

    from downstream.report_lake import Json, Part
    from featurestore import Lake

_ATTENTION_PX = 640
_CHART = {"mil": "AUROC", "survival": "concordance index"}


def estimates(run: Part | None) -> dict[str, dict[str, float]]:
    """Feature set -> estimate, low, high; empty without a run."""
    if run is None:
        return {}
    names = ("estimate", "low", "high")
    metrics: Mapping[str, Json] = run.content["metrics"]
    return {name: {key: metrics[name][key] for key in names} for name in run.content["metrics"]}


def student_view(student: Part) -> Json:
    """One student: facts, fidelity per teacher and mpp, pictures."""
    report = student.content
    rows = _fidelity_rows(report)
    per_mpp = [row for row in rows if row["mpp"] != "all"] or rows
    bars = [(f"{r['teacher']}, {r['mpp']} mpp", r["cosine"], r["baseline"]) for r in per_mpp]
    history = report.get("history", [])
    curves = {
        name: [epoch["loss"][name] for epoch in history]
        for name in (history[0]["loss"] if history else {})
    }
    return {
        "name": student.name,
        "report": report,
        "recipe": _flat(report.get("recipe", {})),
        "rows": rows,
        "bars": _png(fidelity_png(bars)) if bars else None,
        "curves": _png(curves_png(curves, xlabel="epoch", ylabel="training loss"))
        if curves
        else None,
    }


def _flat(recipe: Json) -> Json:
    """A recipe as pairs of name and value: what its parts say, and its terms with their weights."""
    found: Json = {}
    for key, value in recipe.items():
        found |= value if isinstance(value, dict) else {key: value}
    terms = recipe.get("terms", [])
    shown = {"terms": [f"{term['weight']:g} x {term['kind']}" for term in terms]} if terms else {}
    return {**found, **shown}


def _fidelity_rows(report: Json) -> list[Json]:
    """Teacher by teacher: a row over all tiles, and a row per mpp."""
    rows: list[Json] = []
    for teacher, whole in report["fidelity"].items():
        rows.append({"teacher": teacher, "mpp": "all", **whole})
        parts = report.get("fidelity_per_mpp", {}).get(teacher, {})
        rows += [{"teacher": teacher, "mpp": mpp, **part} for mpp, part in parts.items()]
    return rows


def shown_set(run: Part, students: list[str]) -> str:
    """The feature set whose pictures are shown: the newest student, else the first one."""
    names = list(run.content["metrics"])
    return next((name for name in students if name in names), names[0])


def mil_view(lake: Lake, run: Part, students: list[str]) -> Json:
    """A classification: table, intervals, ROC curves, attention over one slide."""
    predictions = _predictions(lake, run)
    shown = shown_set(run, students)
    return {
        **_common(run, predictions, "mil"),
        "shown": shown,
        "classes": _class_counts(predictions, run),
        "roc": _roc(predictions, run),
        "attention": _attention(lake, run, predictions, shown),
    }


def survival_view(lake: Lake, run: Part, students: list[str]) -> Json:
    """A survival analysis: table, intervals, Kaplan-Meier curves of one feature set."""
    predictions = _predictions(lake, run)
    shown = shown_set(run, students)
    part = predictions.filter(pl.col("features") == shown)
    time, event, high = (part[name].to_numpy() for name in ("time", "event", "high"))
    return {
        **_common(run, predictions, "survival"),
        "shown": shown,
        "events": int(event.sum()),
        "km": _png(km_png(time, event, high, xlabel=plain(_columns(run)[0]))),
    }


def _common(run: Part, predictions: pl.DataFrame, kind: str) -> Json:
    found = estimates(run)
    lines = {name: (e["estimate"], e["low"], e["high"]) for name, e in found.items()}
    return {
        "name": run.name,
        "result": run.content,
        "metrics": run.content["metrics"],
        "patients": predictions["patient_id"].n_unique(),
        "forest": _png(forest_png(lines, xlabel=f"{_CHART[kind]}, 95 % interval over patients")),
    }


def _predictions(lake: Lake, run: Part) -> pl.DataFrame:
    return pl.read_parquet(io.BytesIO(lake.read_bytes(f"runs/{run.name}/predictions.parquet")))


def _columns(run: Part) -> list[str]:
    columns: list[str] = run.content["config"]["columns"]
    return columns


def _positive(run: Part) -> str:
    """The class that scores are of: the last one."""
    classes: list[str] = run.content["config"]["classes"]
    return classes[-1]


def _class_counts(predictions: pl.DataFrame, run: Part) -> dict[str, int]:
    labels = predictions.unique("patient_id")["label"].to_list()
    return {name: labels.count(name) for name in run.content["config"]["classes"]}


def _roc(predictions: pl.DataFrame, run: Part) -> str | None:
    """ROC curves of at most as many feature sets as there are colours; None with three classes."""
    if len(run.content["config"]["classes"]) != 2:
        return None
    curves = {}
    for name in list(run.content["metrics"])[: len(COLOURS)]:
        part = predictions.filter(pl.col("features") == name)
        label = (part["label"] == _positive(run)).to_numpy().astype(np.int64)
        curves[name] = (label, part["score"].to_numpy())
    known = {
        name: Estimate(redrawn=run.content["metrics"][name]["redrawn"], **found)
        for name, found in estimates(run).items()
    }
    return _png(roc_png(curves, estimates=known, seed=run.content["config"]["seed"]))


def _attention(lake: Lake, run: Part, predictions: pl.DataFrame, shown: str) -> Json | None:
    """Attention over a slide of the surest of the rightly classified positive patients.

    None if there is no such patient, or the lake has no picture of any slide of theirs.
    """
    part = predictions.filter((pl.col("features") == shown) & (pl.col("label") == _positive(run)))
    part = part.with_columns(sure=pl.col("probabilities").list.last())
    right = pl.col("probabilities").list.arg_max() == len(run.content["config"]["classes"]) - 1
    owners = lake.slides().select("slide_id", "patient_id", "slide", "width_px", "height_px")
    slides = owners.collect().sort("slide_id")
    for patient in part.filter(right).sort("sure", descending=True).iter_rows(named=True):
        for slide in slides.filter(pl.col("patient_id") == patient["patient_id"]).to_dicts():
            picture = _attention_picture(lake, run, patient, slide)
            if picture is not None:
                return {"slide": slide["slide_id"], "picture": picture, **patient}
    return None


def _attention_picture(lake: Lake, run: Part, patient: Json, slide: Json) -> str | None:
    """The slide beside the slide under attention, or None without a thumbnail or its tiles."""
    thumbnail = lake.pictures(slide["slide_id"])["thumbnail"]
    mpp = run.content["config"]["mpp"]
    place = lake.tiles_of(mpp=mpp).filter(pl.col("slide") == slide["slide"])
    path = f"runs/{run.name}/cells/{safe_name(patient['features'])}-{patient['fold']}"
    tiles = pl.read_parquet(io.BytesIO(lake.read_bytes(f"{path}.attention.parquet")))
    tiles = tiles.filter(pl.col("slide_id") == slide["slide_id"])
    if thumbnail is None or tiles.is_empty() or place.is_empty():
        return None
    drawn = attention_png(
        scaled(decode_rgb(thumbnail), _ATTENTION_PX),
        *(tiles[name].to_numpy() for name in ("x", "y", "attention")),
        tile_px_level0=place["tile_px_level0"][0],
        width_px=slide["width_px"],
        height_px=slide["height_px"],
        title="thumbnail",
    )
    # as JPEG: photographs in PNG would be a quarter of the whole page
    return data_uri(encode_jpeg(decode_rgb(drawn), sharp=True), "image/jpeg")


def _png(data: bytes) -> str:
    return data_uri(data, "image/png")
