"""A page of one finished run: `runs/<run>/report.html`, one file that needs no network.

Everything is read from the run's files, and tiles' pixels from the lake's shards where they are, so
a page can be written again at any time. Nothing on it was picked by hand: the caption of each
picture names the rule that chose its patients.
"""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from downstream.report.cases import cases
from downstream.report.finished_run import read_run
from downstream.report.kept_attention import arms_with_attention, attention_files, owners
from downstream.report.lake_holding import package_versions
from downstream.report.listing.listing import script_policy
from downstream.report.listing.run_listing import listing_text, patient_listings, predictions_csv
from downstream.report.mistakes import mistakes
from downstream.report.report_page import render
from downstream.report.run_tables import (
    arm_rows,
    comparison_rows,
    fold_rows,
    how_tested,
    listed,
    measure_heads,
    protocol_rows,
    question_of,
    setting_rows,
    title,
    warnings,
)
from downstream.report.tile_pictures import maps, strips
from downstream.report.views.run_views import differences, forest, sections
from downstream.run.outcome_text import outcome_text

if TYPE_CHECKING:
    from downstream.report.finished_run import Run
    from downstream.report.views.picture_sections import Picture
    from featurestore import Lake

PREDICTIONS_CSV = "predictions.csv"


def write_run_page(lake: "Lake", run: str) -> None:
    """Write `runs/<run>/report.html`, and the CSV of predictions that it leads to.

    Args:
        lake: the lake, at any version; a slide that is not in it any more is left out with a note.
        run: name of a finished run.

    Raises:
        RunError: There is no such run, or it is not finished.
    """
    finished = read_run(lake, run)
    lake.write_bytes(f"runs/{run}/{PREDICTIONS_CSV}", predictions_csv(finished))
    lake.write_bytes(f"runs/{run}/report.html", run_page(lake, finished).encode())


def run_page(lake: "Lake", run: "Run") -> str:
    """Return the HTML of a run's page."""
    return render(
        "run.html.j2",
        run=run,
        result=run.result,
        lake_uri=lake.uri,
        written=datetime.now(UTC),
        title=title(run),
        question=question_of(run),
        tested=how_tested(run),
        heads=measure_heads(run),
        rows=arm_rows(run),
        warnings=warnings(run),
        folds=fold_rows(run),
        protocol=run.result.get("protocol"),
        protocol_rows=protocol_rows(run),
        forest=forest(run),
        comparisons=comparison_rows(run),
        differences=differences(run),
        sections=sections(run),
        listings=patient_listings(run),
        listing_text=listing_text(run),
        csv_name=PREDICTIONS_CSV,
        policy=script_policy(),
        attention=attention_view(lake, run) if run.unit == "patient" else None,
        mistakes=mistakes(lake, run) if run.unit == "tile" else None,
        outcomes=outcome_text(run.result.get("outcomes", {}), run.result["patients"]),
        missing=listed(run.result["missing"]),
        surplus=listed(run.result["surplus"]),
        settings=setting_rows(run),
        versions=package_versions(),
    )


def attention_view(lake: "Lake", run: "Run") -> dict[str, Any]:
    """Return attention maps of some patients, by the first arm that weighs tiles.

    Returns:
        `arm` (None without any), `others` (arms that weigh tiles too), `strips`, `pictures`,
        `notes`.
    """
    files = attention_files(lake, run.name)
    arms, alike = arms_with_attention(lake, run, files)
    notes = [f"{arm} weighs all tiles of a slide alike: there is nothing to rank." for arm in alike]
    if not arms:
        notes = notes or ["No model of this run says which tiles it weighs."]
        return {"arm": None, "others": [], "strips": [], "pictures": [], "notes": notes}
    arm_files = [file for file in files if file.arm == arms[0]]
    slides = owners(lake, arm_files)
    pictures: list[Picture] = []
    for case in cases(run, arms[0]):
        drawn, map_notes = maps(lake, case, arms[0], arm_files, slides)
        pictures += drawn
        notes += map_notes
    return {
        "arm": arms[0],
        "others": arms[1:],
        "strips": strips(lake, run, arms[0], arm_files, slides),
        "pictures": pictures,
        "notes": notes,
    }
