"""How the results of a study or a probe are printed."""

from typing import TYPE_CHECKING, Any

from cluster.progress_text import counted
from downstream.run.outcome_text import outcome_text

if TYPE_CHECKING:
    from downstream.report.heatmaps.heatmap_files import HeatmapFolder


def study_text(study: dict[str, Any]) -> str:
    """Return a line for each arm, then comparisons, and what was left out."""
    lines = []
    for name, measure in study["metrics"].items():
        estimate = "undefined on these patients"
        if measure["estimate"] is not None:
            estimate = f"{measure['estimate']:.3f} ({measure['low']:.3f} to {measure['high']:.3f})"
        lines.append(f"{name}: {measure['metric']} {estimate}")
    lines += [comparison_line(row) for row in study["comparisons"]]
    patients, slides = (counted(study[f"{noun}s"], noun) for noun in ("patient", "slide"))
    counts = f"{patients}, {slides}, {study['folds']} folds"
    for key, reason in (
        ("missing", "labelled but not used"),
        ("surplus", "without a label"),
    ):
        if study[key]:
            number = counted(len(study[key]), "slide") if key == "surplus" else len(study[key])
            counts += f"; {number} {reason}"
    of_outcomes = outcome_text(study["outcomes"], study["patients"])
    return "\n".join(
        [*lines, of_outcomes, counts, *study["notes"], f"runs/{study['run']}/report.html"]
    )


def probe_text(probe: dict[str, Any]) -> str:
    """Return a line for each measure of each arm, then comparisons, and what was left out."""
    lines = [
        f"{arm}: {name} {measure['estimate']:.3f} ({measure['low']:.3f} to {measure['high']:.3f})"
        for arm, metrics in probe["metrics"].items()
        for name, measure in metrics["measures"].items()
    ]
    lines += [comparison_line(row) for row in probe["comparisons"]]
    lines += [
        *probe["notes"],
        f"{counted(len(probe['missing']), 'label', 'are')} of no tile with features",
    ]
    lines.append(
        f"{counted(probe['tiles'], 'tile')} of {counted(probe['patients'], 'patient')}, "
        f"{probe['folds']} folds"
    )
    return "\n".join([*lines, f"runs/{probe['run']}/report.html"])


def comparison_line(row: dict[str, Any]) -> str:
    """Return a line on the difference of two arms, and on non-inferiority if there is a margin."""
    pair = f"{row['one']} - {row['other']}"
    if row["p_value"] is None:
        return f"{pair}: not tested: {row['why']}"
    verdict = ""
    if row["margin"] is not None:
        shown = "not inferior" if row["not_inferior"] else "not shown to be as good"
        verdict = f", margin {row['margin']:g}: {shown}"
    return (
        f"{pair}: {row['estimate']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f}), "
        f"p {row['p_holm']:.3f} (Holm) over {counted(row['parts'], 'test part')}{verdict}"
    )


def heatmaps_answer(written: "HeatmapFolder") -> dict[str, Any]:
    """Return a folder of heatmaps as JSON."""
    return {
        "page": str(written.folder / "index.html"),
        "heatmaps": len(written.records),
        "new": written.new,
        "files": [str(written.folder / name) for one in written.records for name in one.files],
        "failed": written.failed,
    }


def heatmap_lines(written: "HeatmapFolder") -> list[str]:
    """Return lines on a folder of heatmaps: how many, and where their page is."""
    kept = len(written.records) - written.new
    kept_text = f", {kept} were there" if kept else ""
    return [
        f"{counted(written.new, 'heatmap')} written{kept_text}",
        str(written.folder / "index.html"),
    ]
