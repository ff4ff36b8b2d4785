"""The page of a lake: numbers as people read them, and the template.

Autoescape is on and the template marks nothing as safe: ids and reasons come from users.
"""

import shlex
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import polars as pl

from downstream.report.run_tables import p_text, signed_text
from ingest.pages import environment

if TYPE_CHECKING:
    from downstream.report.lake_holding import Holding, Json
    from featurestore import Lake

MOST_REASONS = 100
_TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, **context: Any) -> str:  # noqa: ANN401 - variables of the template
    """Return the HTML of a page, from its template and the template's variables."""
    made = environment(_TEMPLATES)
    made.filters |= {"words": words, "p_value": p_text, "signed": signed_text}
    return made.get_template(template).render(context)


def notice(about: Mapping[str, Any]) -> str | None:
    """Return the warning on synthetic slides for the top of a page, or None."""
    if not about.get("synthetic"):
        return None
    real = about.get("real_slide")
    except_for = f" except the real slide {PurePosixPath(str(real)).stem}" if real else ""
    return (
        f"The slides of this cohort{except_for} are synthetic: the figures show that the machinery "
        "works, they say nothing about medicine."
    )


def overview(holding: "Holding") -> "Json":
    """Return counts of slides, patients, tiles and features."""
    slides = holding.slides
    ready = slides.filter(pl.col("state") == "ready")
    students = {part.name for part in holding.students}
    return {
        "patients": ready["patient_id"].drop_nulls().n_unique(),
        "without_patient": ready["patient_id"].null_count(),
        "bytes": int(ready["bytes"].sum()),
        "scanned_mpp": _range_text(ready["mpp"].drop_nulls()),
        "mpp_sources": _counts_text(ready["mpp_source"]),
        "vendors": _counts_text(ready["vendor"]),
        "verdicts": _counts_text(slides["verdict"]),
        "features": [
            {**row, "kind": "student" if row["teacher"] in students else "teacher"}
            for row in holding.info["features"]
        ],
        "encoders": len({row["teacher"] for row in holding.info["features"]}),
        "failed": holding.failed[:MOST_REASONS],
        "failed_left_out": max(0, len(holding.failed) - MOST_REASONS),
    }


def _range_text(column: pl.Series) -> str:
    """Return the least and greatest number of a column as text.

    >>> _range_text(pl.Series([0.5, 0.25])), _range_text(pl.Series([], dtype=pl.Float64))
    ('0.250 to 0.500', 'not known')
    """
    if column.is_empty():
        return "not known"
    low, high = (float(end) for end in (column.to_numpy().min(), column.to_numpy().max()))
    return f"{low:.3f}" if low == high else f"{low:.3f} to {high:.3f}"


def _counts_text(column: pl.Series) -> str:
    """Return the distinct entries of a column with their counts as text, the commonest first.

    >>> _counts_text(pl.Series(["b", "a", "b", None]))
    'b (2), a (1)'
    """
    counts = column.drop_nulls().rename("value").value_counts().sort("count", "value")
    return ", ".join(f"{name} ({count})" for name, count in counts.reverse().iter_rows())


def recorded_seconds(holding: "Holding") -> dict[str, float]:
    """Return the computing times in seconds that the lake records, by stage."""
    seconds_of_stage = {"cutting slides": float(holding.slides["seconds"].sum())}
    for part in holding.students:
        seconds_of_stage[f"training {part.name}"] = float(part.content.get("seconds", 0.0))
    for runs in holding.runs.values():
        for part in runs:
            seconds_of_stage[part.name] = float(part.content.get("seconds", 0.0))
    return {name: seconds for name, seconds in seconds_of_stage.items() if seconds}


def example_commands(lake: "Lake", holding: "Holding") -> list[tuple[str, str]]:
    """Return example commands for this lake, as (question, command)."""
    return [
        ("What the lake holds", f"slidelake info {shlex.quote(lake.uri)}"),
        *(
            (answer, f"slidelake query {shlex.quote(lake.uri)} {shlex.quote(sql)}")
            for answer, sql in example_queries(lake, holding)
        ),
    ]


def example_queries(lake: "Lake", holding: "Holding") -> list[tuple[str, str]]:
    """Return example queries for this lake, as (question, SQL statement)."""
    from featurestore import mpp_name

    finest = f"tiles_mpp{mpp_name(lake.config.mpps[0]).replace('.', '_')}"
    states = "SELECT state, count(*) AS slides, avg(tissue) AS tissue FROM slides GROUP BY state"
    most = (
        f"SELECT slide_id, count(*) AS tiles FROM {finest} "
        "GROUP BY slide_id ORDER BY tiles DESC LIMIT 5"
    )
    features = (
        "SELECT teacher, mpp, sum(tiles) AS tiles FROM catalog "
        "WHERE teacher IS NOT NULL GROUP BY teacher, mpp"
    )
    failed = "SELECT slide_id, reason FROM slides WHERE state = 'failed'"
    queries = [
        ("Slides by state, with their share of tissue", states),
        ("Slides with the most tiles", most),
        ("Which features are there", features),
    ]
    return [("Which slides failed, and why", failed), *queries] if holding.failed else queries


def words(json_value: Any) -> str:  # noqa: ANN401 - JSON is what it is
    """Return a JSON value as one line of text.

    >>> words({"patients": 24, "sites": ["A", "B"], "pen_marks": True})
    'patients 24, sites A B, pen marks yes'
    """
    if isinstance(json_value, dict):
        return ", ".join(
            f"{key} {words(part)}".replace("_", " ") for key, part in json_value.items()
        )
    if isinstance(json_value, (list, tuple)):
        return " ".join(words(part) for part in json_value)
    if isinstance(json_value, bool):
        return "yes" if json_value else "no"
    return str(json_value)
