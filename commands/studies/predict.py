"""`slidelake predict`: the models of a run on the slides of a lake."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.progress_text import counted
from commands.options.completion import complete_run
from commands.options.dataclass_options import command
from commands.options.path_kind import PathKind
from commands.options.printing import print_answer
from commands.options.shared_options import JsonOpt, LakeArg, QuietOpt

if TYPE_CHECKING:
    from downstream.kept.predict_patients import PatientPredictions

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
        out: Write the predictions: .csv or .parquet.
        at: Version of the lake, or a snapshot.
    """

    lake: LakeArg
    run: Annotated[str, typer.Option(metavar="RUN", autocompletion=complete_run)]
    run_lake: Annotated[str | None, typer.Option(metavar="LAKE"), PathKind.LAKE] = None
    arm: str | None = None
    labels: Annotated[str | None, typer.Option(metavar="FILE"), PathKind.FILES] = None
    covariates: Annotated[str | None, typer.Option(metavar="FILE"), PathKind.FILES] = None
    out: Annotated[Path | None, typer.Option(metavar="FILE"), PathKind.OUTPUT] = None
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
    )
    if options.out is not None:
        _write(predictions, options.out)
    measures = _measures(predictions, options) if options.labels else {}
    answer = {
        "run": predictions.run,
        "arm": predictions.arm,
        "task": predictions.task,
        "patients": predictions.rows.to_dicts(),
        "measures": measures,
        "lost": list(predictions.lost),
    }
    print_answer(
        answer, as_json=options.json, text="\n".join(_lines(predictions, measures, options))
    )


def _write(predictions: "PatientPredictions", out: Path) -> None:
    """Write the predictions as Parquet, or as CSV with the slides of a patient in one cell."""
    import polars as pl

    if out.suffix == ".parquet":
        predictions.rows.write_parquet(out)
    else:
        predictions.rows.with_columns(pl.col("slide_ids").list.join(" ")).write_csv(out)


def _measures(predictions: "PatientPredictions", options: PredictOptions) -> dict[str, Any]:
    """Return the measures on labelled patients, seen and unseen apart."""
    from downstream.kept.measured import measured_predictions
    from downstream.report.finished_run import read_run
    from downstream.run.saved_specs import saved_settings
    from featurestore import open_lake

    lake = open_lake(options.lake, version=options.at)
    home = lake if options.run_lake is None else open_lake(options.run_lake)
    run = read_run(home, options.run)
    columns = run.result["config"]["columns"]
    return measured_predictions(
        lake,
        predictions,
        str(options.labels),
        columns,
        classes=run.classes,
        event_means=saved_settings(home, options.run)["labels"].get("event_means", "auto"),
    )


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
    if predictions.lost:
        lines.append(f"{len(predictions.lost)} not predicted: {', '.join(predictions.lost[:5])}")
    return [*lines, f"-> {options.out}"] if options.out else lines
