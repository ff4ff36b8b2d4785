"""Tables and pictures of students and runs for the lake's page, as its template reads them.

The arm and the slide of a picture follow from a rule that the page names; nothing is picked by
hand. Pictures of runs are those of the runs' own pages.
"""

from typing import TYPE_CHECKING

from downstream.report.cases import cases
from downstream.report.finished_run import read_run
from downstream.report.kept_attention import arms_with_attention, attention_files, owners
from downstream.report.plots.plots_report import curves_svg, fidelity_svg
from downstream.report.run_tables import (
    arm_rows,
    how_tested,
    measure_heads,
    question_of,
    shown_name,
)
from downstream.report.tile_pictures import maps
from downstream.report.views.run_views import forest, summary_section
from ingest.pages import data_uri

if TYPE_CHECKING:
    from downstream.report.finished_run import Run
    from downstream.report.lake_holding import HoldingPart, Json
    from featurestore import Lake


def estimates(run: "HoldingPart | None") -> dict[str, dict[str, float | None]]:
    """Return the main measure (estimate, low, high) by arm; empty without a run."""
    if run is None:
        return {}
    names = ("estimate", "low", "high")
    metrics: dict[str, Json] = run.content["metrics"]
    return {name: {key: metrics[name][key] for key in names} for name in run.content["metrics"]}


def student_view(student: "HoldingPart") -> "Json":
    """Return the view of one student: facts, fidelity per teacher and mpp, pictures."""
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
        "recipe": _flat_recipe(report.get("recipe", {})),
        "rows": rows,
        "bars": _svg_uri(fidelity_svg(bars)) if bars else None,
        "curves": _svg_uri(curves_svg(curves, xlabel="epoch", ylabel="training loss"))
        if curves
        else None,
    }


def _flat_recipe(recipe: "Json") -> "Json":
    """Return a recipe's settings by name without nesting, with its terms and their weights."""
    flat: Json = {}
    for key, setting in recipe.items():
        flat |= setting if isinstance(setting, dict) else {key: setting}
    terms = recipe.get("terms", [])
    shown = {"terms": [f"{term['weight']:g} x {term['kind']}" for term in terms]} if terms else {}
    return {**flat, **shown}


def _fidelity_rows(report: "Json") -> list["Json"]:
    """Return fidelity rows, for each teacher one over all tiles and one per mpp."""
    rows: list[Json] = []
    for teacher, whole in report["fidelity"].items():
        rows.append({"teacher": teacher, "mpp": "all", **whole})
        parts = report.get("fidelity_per_mpp", {}).get(teacher, {})
        rows += [{"teacher": teacher, "mpp": mpp, **part} for mpp, part in parts.items()]
    return rows


def shown_arm(run: "Run", students: list[str]) -> str:
    """Return the arm whose pictures are shown: the newest student's, else the first arm."""
    described = run.result.get("arms", {})
    of = {arm: described.get(arm, {}).get("features", arm) for arm in run.arms}
    return next((arm for name in students for arm in run.arms if of[arm] == name), run.arms[0])


def mil_view(lake: "Lake", part: "HoldingPart", students: list[str]) -> "Json":
    """Return the view of the newest MIL run: table, intervals, curves, attention maps."""
    run = read_run(lake, part.name)
    shown = shown_arm(run, students)
    return {
        **_run_view(run, shown),
        "classes": _class_counts(run, shown),
        "pictures": summary_section(run, shown),
        **_attention(lake, run, shown),
    }


def survival_view(lake: "Lake", part: "HoldingPart", students: list[str]) -> "Json":
    """Return the view of the newest survival run: table, intervals, Kaplan-Meier curves."""
    run = read_run(lake, part.name)
    shown = shown_arm(run, students)
    return {
        **_run_view(run, shown),
        "events": int(run.once(shown)["event"].sum()),
        "pictures": summary_section(run, shown),
    }


def _run_view(run: "Run", shown: str) -> "Json":
    """Return the parts that the views of classification and survival runs share."""
    return {
        "name": run.name,
        "result": run.result,
        "task": run.task,
        "shown": shown,
        "question": question_of(run),
        "tested": how_tested(run),
        "metric": shown_name(run.metric),
        "found": run.estimates(run.metric).get(shown),
        "heads": measure_heads(run)[:1],
        "rows": [{**row, "cells": row["cells"][:1]} for row in arm_rows(run)],
        "forest": forest(run),
    }


def _class_counts(run: "Run", shown: str) -> dict[str, int]:
    """Return the number of patients of each class; empty for tasks without classes."""
    if run.task not in ("binary", "multiclass"):
        return {}
    labels = run.once(shown)["label"].to_list()
    return {name: labels.count(name) for name in run.classes}


def _attention(lake: "Lake", run: "Run", shown: str) -> "Json":
    """Return attention maps of the surest right patient, and notes on omitted slides."""
    files = attention_files(lake, run.name)
    arms, _ = arms_with_attention(lake, run, files)
    arm = shown if shown in arms else next(iter(arms), None)
    if arm is None:
        return {"maps": [], "map_notes": ["None: no model of this run says which tiles it weighs."]}
    arm_files = [file for file in files if file.arm == arm]
    arm_cases = cases(run, arm)
    if not arm_cases:
        return {"maps": [], "map_notes": [f"None: nobody fits the rule with {arm}."]}
    drawn, notes = maps(lake, arm_cases[0], arm, arm_files, owners(lake, arm_files))
    return {"maps": drawn[:1], "map_notes": notes}


def _svg_uri(svg: bytes) -> str:
    return data_uri(svg, "image/svg+xml")
