"""The page of an evaluation: one HTML file that needs no network, made of `report.json`.

Autoescape is on and the template marks nothing as safe: names come from users.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.evaluate.evaluation_plots import amortisation_png, bars_png, robustness_png
from downstream.robustness import MEASURES
from ingest.pages import data_uri, environment

_TEMPLATES = Path(__file__).parent / "templates"

KINDS = {
    "student": "student",
    "single_teacher": "student of one teacher",
    "undistilled": "same network, untrained",
    "pca": "principal components of all teachers",
    "teacher": "teacher",
}
FIDELITY = ("cosine", "baseline", "centred", "r2", "cka_debiased", "cka", "knn_overlap")
ROBUST = ("cosine", "top1", "top3", "top5", "top10")

Report = Mapping[str, Any]
Spread = Mapping[str, float | None]


def evaluation_page(report: Report) -> str:
    """Render a report as HTML."""
    templates = environment(_TEMPLATES)
    templates.filters |= {
        "mean": mean_text,
        "range": range_text,
        "interval": interval_text,
        "kind": KINDS.get,
    }
    teachers = list(dict.fromkeys(t for e in report["embeddings"] for t in e["fidelity"]))
    return templates.get_template("evaluate.html.j2").render(
        report=report,
        teachers=teachers,
        fidelity=FIDELITY,
        robust=ROBUST,
        flagged=list(flagged_students(report)),
        robustness_rows=list(_robustness_rows(report)),
        site_measures=MEASURES,
        site_mpps=_site_mpps(report),
        label_mpps=_label_mpps(report),
        pictures=draw_pictures(report, teachers),
    )


def draw_pictures(report: Report, teachers: Sequence[str]) -> dict[str, str]:
    """Draw the pictures for which the report has numbers; return data URIs by name."""
    embeddings = report["embeddings"]
    pngs = {f"fidelity {name}": bars_png(embeddings, name) for name in teachers}
    if any(e.get("robustness") for e in embeddings):
        pngs["robustness"] = robustness_png(embeddings)
    if report["amortisation"]:
        pngs["amortisation"] = amortisation_png(report["amortisation"])
    return {name: data_uri(png, "image/png") for name, png in pngs.items()}


def flagged_students(report: Report) -> Iterator[dict[str, Any]]:
    """Yield the students that represent a teacher much worse at one mpp than at another."""
    for embedding in report["embeddings"]:
        for teacher, switching in embedding["mode_switching"].items():
            if embedding["kind"] == "student" and switching["flagged"]["max"]:
                yield {"name": embedding["name"], "teacher": teacher, **switching}


def _robustness_rows(report: Report) -> Iterator[tuple[str, str]]:
    """Yield the key and the text of each row of the robustness table."""
    first: Mapping[str, Any] = next(
        (e["robustness"] for e in report["embeddings"] if e.get("robustness")), {}
    )
    texts = {
        "all": "all pairs",
        "cross_scanner": "other scanner",
        "cross_stain": "other stain",
        "cross_both": "both",
    }
    for key in first:
        if key not in {"board", "chance"}:
            yield key, texts.get(key, f"original and {key}")


def _label_mpps(report: Report) -> list[str]:
    """Return the mpps at which labelled tiles were measured."""
    measured = (e.get(kind) or {} for e in report["embeddings"] for kind in ("probe", "retrieval"))
    return sorted({mpp for part in measured for mpp in part})


def _site_mpps(report: Report) -> list[str]:
    """Return the mpps at which robustness to sites was measured."""
    return sorted({mpp for e in report["embeddings"] for mpp in e.get("sites") or {}})


def mean_text(spread: Spread | None, digits: int = 3) -> str:
    """Write the mean over runs.

    >>> mean_text({"mean": 0.5, "min": 0.4, "max": 0.6})
    '0.500'
    """
    return _number(spread["mean"] if spread else None, digits)


def range_text(spread: Spread | None, digits: int = 3) -> str:
    """Write the least and the greatest of the runs, if they differ.

    >>> range_text({"mean": 0.5, "min": 0.4, "max": 0.6}, 1)
    '0.4 to 0.6'
    >>> range_text({"mean": 0.5, "min": 0.5, "max": 0.5})
    ''
    """
    if not spread or spread["mean"] is None:
        return ""
    low, high = (_number(spread[name], digits) for name in ("min", "max"))
    return "" if low == high else f"{low} to {high}"


def interval_text(spread: Spread | None) -> str:
    """Write the bootstrap interval of a number.

    >>> interval_text({"mean": 0.5, "low": 0.25, "high": 0.75})
    '0.250 to 0.750'
    """
    if not spread or spread.get("low") is None:
        return "\N{EN DASH}"
    return f"{_number(spread['low'], 3)} to {_number(spread['high'], 3)}"


def _number(number: float | None, digits: int) -> str:
    show: Callable[[float], str] = f"{{:,.{digits}f}}".format
    return "\N{EN DASH}" if number is None else show(number)
