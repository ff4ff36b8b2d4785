"""The report: one HTML file that needs no network, and the same numbers as JSON, in the lake.

Everything is read from the lake's files, so a report can be written at any time, by anyone, of a
lake that others fill. `report.json` is written last: where it is, `report.html` is whole.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from downstream.report.lake_holding import package_versions, read_earlier, read_holding
from downstream.report.report_page import (
    example_commands,
    notice,
    overview,
    recorded_seconds,
    render,
)
from downstream.report.result_views import estimates, mil_view, student_view, survival_view
from ingest.pages import PEN_SHOWN, choose_slides, make_cards

if TYPE_CHECKING:
    from downstream.report.lake_holding import Holding, Json
    from featurestore import Lake

MOST_SLIDES = 36
MOST_FAILED = 12


def write_report(
    lake_uri: str,
    *,
    stages: Mapping[str, float] | None = None,
    about: Mapping[str, Any] | None = None,
    version: int | str | None = None,
) -> dict[str, Any]:
    """Write `report.html` and `report.json` at the root of a lake.

    Args:
        lake_uri: the lake; it may lack students, runs or slides.
        stages: stage -> seconds that it took, in order; None keeps those of an earlier report.
        about: facts that are not in the lake, as JSON; None keeps those of an earlier report, so
            that a cohort once marked synthetic stays so. `synthetic` puts a notice on top,
            `real_slide` is the file name of a slide that is not synthetic and is shown first;
            anything else is listed.
        version: version of the lake, or name of a snapshot; the newest if None.

    Returns:
        The content of `report.json`: stages, lake (`Lake.info()`), fidelity per teacher of the
        newest student (of all under `students` if there are several), mil and survival per arm of
        the newest run, failed, synthetic, about, lake_version.

    Raises:
        LakeError: There is no lake.

    Examples:
        >>> report = sl.write_report("my-lake")
        >>> report["lake"]["tiles"]
        {'0.5': 312, '2.0': 13}
    """
    from featurestore import ResultDict, open_lake

    lake = open_lake(lake_uri, version=version)
    holding = read_holding(lake)
    earlier = read_earlier(lake)
    stages = earlier.get("stages", {}) if stages is None else dict(stages)
    about = earlier.get("about", {}) if about is None else dict(about)
    report = _report(lake, holding, stages, about)
    lake.write_bytes("report.html", _page(lake, holding, report).encode())
    lake.write_json("report.json", report)
    return ResultDict(report, name="report", uri=lake.uri)


def _report(lake: "Lake", holding: "Holding", stages: "Json", about: "Json") -> "Json":
    """Return the content of `report.json`."""
    fidelity = {part.name: part.content["fidelity"] for part in holding.students}
    report = {
        "stages": stages,
        "lake": holding.info,
        "fidelity": next(iter(fidelity.values()), {}),
        "mil": estimates(holding.newest("mil")),
        "survival": estimates(holding.newest("survival")),
        "failed": holding.failed,
        "synthetic": bool(about.get("synthetic")),
        "about": about,
        "lake_version": lake.version,
    }
    return {**report, "students": fidelity} if len(fidelity) > 1 else report


def _page(lake: "Lake", holding: "Holding", report: "Json") -> str:
    """Return the HTML of the lake's page."""
    names = [part.name for part in holding.students]
    mil, survival = holding.newest("mil"), holding.newest("survival")
    chosen = choose_slides(
        holding.slides,
        most=MOST_SLIDES,
        most_failed=MOST_FAILED,
        first=report["about"].get("real_slide"),
    )
    return render(
        "report.html.j2",
        report=report,
        holding=holding,
        config=lake.config,
        written=datetime.now(UTC),
        notice=notice(report["about"]),
        overview=overview(holding),
        recorded=recorded_seconds(holding),
        cards=make_cards(lake, chosen),
        pen_shown=PEN_SHOWN,
        left_out=holding.slides.height - chosen.height,
        students=[student_view(part) for part in holding.students],
        mil=mil_view(lake, mil, names) if mil else None,
        survival=survival_view(lake, survival, names) if survival else None,
        commands=example_commands(lake, holding),
        versions=package_versions(),
    )
