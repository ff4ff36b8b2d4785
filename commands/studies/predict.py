"""`slidelake predict`: the models of a run on the slides of a lake."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from cluster.progress_text import counted
from commands.options.completion import complete_run
from commands.options.dataclass_options import command
from commands.options.path_kind import PathKind
from commands.options.printing import print_answer
from commands.options.shared_options import JsonOpt, LakeArg, QuietOpt
from commands.studies.study_lines import heatmap_lines, heatmaps_answer

if TYPE_CHECKING:
    from downstream.kept.predict_patients import PatientPredictions
    from downstream.report.finished_run import Run
    from featurestore import Lake

app = typer.Typer()


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """Options of `slidelake predict`.

    Attributes:
        run: Name of a finished run of `mil` or `survival`.
        run_lake: Lake that holds the run, where it is another one.
        arm: Arm of the run; the first if not given.
        labels: Table of labels, with the columns of the run: then measures are told, too.
        covariates: Table with the covariates of the run, where it has any.
        out: Write the predictions: .csv, .parquet, or .html for a page that can be sorted, with a
            CSV beside it.
        heatmaps: Folder for the attention of every slide: picture, GeoJSON, top tiles, and
            index.html; what is there whole is not drawn again.
        unseen_students: Leave out patients that a student among the features was trained on.
        at: Version of the lake, or a snapshot.
    """

    lake: LakeArg
    run: Annotated[str, typer.Option(metavar="RUN", autocompletion=complete_run)]
    run_lake: Annotated[str | None, typer.Option(metavar="LAKE"), PathKind.LAKE] = None
    arm: str | None = None
    labels: Annotated[str | None, typer.Option(metavar="FILE"), PathKind.FILES] = None
    covariates: Annotated[str | None, typer.Option(metavar="FILE"), PathKind.FILES] = None
    out: Annotated[Path | None, typer.Option(metavar="FILE"), PathKind.OUTPUT] = None
    heatmaps: Annotated[Path | None, typer.Option(metavar="DIR"), PathKind.OUTPUT] = None
    unseen_students: Annotated[bool, typer.Option("--unseen-students")] = False
    at: str | None = None
    quiet: QuietOpt = False
    json: JsonOpt = False


@command(app, "predict")
def predict_command(options: PredictOptions) -> None:
    """Apply the models that a run has trained to all patients of a lake, of this or another one.

    Models of all folds are averaged; a patient of the run itself is predicted only by models that
    were not trained on them.

    Example: slidelake predict other-lake --run mil-0123456789ab --run-lake my-lake --out new.csv
    """
    from downstream.kept.predict_patients import predict_patients

    predictions = predict_patients(
        options.lake,
        options.run,
        run_lake=options.run_lake,
        arm=options.arm,
        covariates=options.covariates,
        version=options.at,
        unseen_students=options.unseen_students,
        heatmaps=options.heatmaps,
    )
    measures = _measures(predictions, options) if options.labels else {}
    if options.out is not None:
        _write(predictions, options, measures)
    answer = {
        "run": predictions.run,
        "arm": predictions.arm,
        "task": predictions.task,
        "patients": predictions.rows.to_dicts(),
        "measures": measures,
        "lost": list(predictions.lost),
        "notes": list(predictions.notes),
    }
    failed: list[str] = []
    if predictions.heatmaps is not None:
        _write_heatmap_page(predictions)
        answer["heatmaps"] = heatmaps_answer(predictions.heatmaps)
        failed = predictions.heatmaps.failed
    lines = _lines(predictions, measures, options)
    print_answer(answer, as_json=options.json, errors=failed, text="\n".join(lines))
    raise typer.Exit(1 if failed else 0)


def _write(
    predictions: "PatientPredictions", options: PredictOptions, measures: dict[str, Any]
) -> None:
    """Write the predictions as Parquet, as CSV, or as a page with a CSV beside it.

    The slides of a patient stand in one cell of a CSV.
    """
    import polars as pl

    out = cast("Path", options.out)
    if out.suffix == ".parquet":
        predictions.rows.write_parquet(out)
        return
    table = predictions.rows.with_columns(pl.col("slide_ids").list.join(" "))
    if out.suffix != ".html":
        table.write_csv(out)
        return
    from downstream.report.listing.prediction_page import write_prediction_page

    csv = out.with_suffix(".csv")
    table.write_csv(csv)
    write_prediction_page(
        predictions,
        out,
        csv_name=csv.name,
        measures=measures,
        truth=_truth(predictions, options) if options.labels else None,
    )


def _write_heatmap_page(predictions: "PatientPredictions") -> None:
    """Write the page that lists the heatmaps, with the prediction of each patient."""
    from downstream.report.heatmaps.heatmap_page import write_heatmap_page
    from downstream.report.listing.listing import number_entry, text_entry

    rows = predictions.rows.to_dicts()
    score = {row["patient_id"]: number_entry(row["score"]) for row in rows if "score" in row}
    called = {row["patient_id"]: text_entry(row["predicted"]) for row in rows if "predicted" in row}
    facts = {"predicted": called} if called else {}
    if score:
        facts["score"] = score
    assert predictions.heatmaps is not None  # the caller has looked
    write_heatmap_page(
        predictions.heatmaps,
        title=f"Heatmaps of {predictions.run}",
        lead=f"Attention of {predictions.arm}, the mean over the models that predict the patient. "
        "Colours are ranks within the slide.",
        notes=predictions.notes,
        facts=facts,
    )


def _measures(predictions: "PatientPredictions", options: PredictOptions) -> dict[str, Any]:
    """Return the measures on labelled patients, seen and unseen apart."""
    from downstream.kept.measured import measured_predictions
    from downstream.run.saved_specs import saved_settings

    lake, home, run = _lakes_and_run(options)
    saved = saved_settings(home, options.run)["labels"]
    return measured_predictions(
        lake,
        predictions,
        str(options.labels),
        run.result["config"]["columns"],
        classes=run.classes,
        class_names=saved.get("class_names", ()),
        # whether 1 is the event of interest was settled with the causes
        event_means="event" if saved.get("cause") else saved.get("event_means", "auto"),
        cause=saved.get("cause"),
        censored=saved.get("censored", "0"),
    )


def _truth(predictions: "PatientPredictions", options: PredictOptions) -> dict[str, str]:
    """Return the label of each labelled patient as text."""
    from downstream.kept.measured import labelled_rows
    from downstream.run.saved_specs import saved_settings

    lake, home, run = _lakes_and_run(options)
    columns = run.result["config"]["columns"]
    rows, _ = labelled_rows(
        lake,
        predictions,
        str(options.labels),
        columns,
        class_names=saved_settings(home, options.run)["labels"].get("class_names", ()),
    )
    return {
        row["patient_id"]: ", ".join(str(row[column]) for column in columns)
        for row in rows.to_dicts()
    }


def _lakes_and_run(options: PredictOptions) -> "tuple[Lake, Lake, Run]":
    """Return the lake that is predicted, the lake of the run, and the run."""
    from downstream.report.finished_run import read_run
    from featurestore import open_lake

    lake = open_lake(options.lake, version=options.at)
    home = lake if options.run_lake is None else open_lake(options.run_lake)
    return lake, home, read_run(home, options.run)


def _lines(
    predictions: "PatientPredictions", measures: dict[str, Any], options: PredictOptions
) -> list[str]:
    """Return what is printed: counts, measures, where the rows are."""
    unseen = predictions.rows.filter(~predictions.rows["seen"]).height
    patients = counted(predictions.rows.height, "patient")
    lines = [
        f"{patients} predicted by {predictions.arm} of {predictions.run}, {unseen} new to the run"
    ]
    for group, part in measures.items():
        if not part["measures"]:
            lines.append(f"{group}: {counted(part['patients'], 'labelled patient')}")
        lines += [
            f"{group} ({counted(part['patients'], 'patient')}): {name} "
            + (
                one["undefined"]
                if "undefined" in one
                else f"{one['estimate']:.3f} ({one['low']:.3f} to {one['high']:.3f})"
            )
            for name, one in part["measures"].items()
        ]
    if options.out is None and not measures:
        shown = predictions.rows.drop("slide_ids").head(10)
        lines += [str(row) for row in shown.to_dicts()]
        if predictions.rows.height > 10:
            lines.append(f"and {predictions.rows.height - 10} more; --out FILE writes all of them")
    lines += predictions.notes
    if predictions.heatmaps is not None:
        lines += heatmap_lines(predictions.heatmaps)
    if predictions.lost:
        lines.append(f"{len(predictions.lost)} not predicted: {', '.join(predictions.lost[:5])}")
    return [*lines, f"-> {options.out}"] if options.out else lines
