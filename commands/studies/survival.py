"""`slidelake survival`: cross-validated survival of patients."""

from dataclasses import dataclass
from typing import Annotated

import typer

from commands.options.dataclass_options import command
from commands.options.field_options import Changes, FieldOption, FieldOptions
from commands.options.printing import print_answer
from commands.studies.study_lines import study_text
from commands.studies.study_options import (
    COMPARISON_OPTIONS,
    COVARIATE_OPTIONS,
    FEATURE_OPTIONS,
    FOLD_OPTIONS,
    FUSION_OPTION,
    LABEL_OPTION,
    LAST_OPTIONS,
    SURVIVAL_TEMPLATE,
    TABLE_OPTIONS,
    TRAINING,
    TRAINING_OPTIONS,
    StudyOptions,
    study_spec,
)
from downstream.run.model_tables import AGGREGATORS, POOLED

app = typer.Typer()
BAG_MODELS = [name for name, entry in AGGREGATORS.items() if not entry.labels_tiles]

SURVIVAL_OPTIONS = (
    LABEL_OPTION,
    FieldOption(
        flag="--time",
        path="labels.time",
        required=True,
        text="Column of the time to the event or to the end of follow-up.",
    ),
    FieldOption(
        flag="--event",
        path="labels.event",
        required=True,
        text="Column that is 1 where the event was observed and 0 for a censored patient.",
    ),
    FieldOption(flag="--event-means", path="labels.event_means"),
    FieldOption(flag="--cause", path="labels.cause", metavar="VALUE"),
    FieldOption(flag="--censored", path="labels.censored", metavar="VALUE"),
    *FEATURE_OPTIONS,
    FieldOption(
        flag="--model",
        path="models.names",
        default=("cox",),
        text=f"Model of survival on pooled features: {', '.join(POOLED)}; or of bags: "
        f"{', '.join(BAG_MODELS)}; covariates sees those alone. Repeat to compare.",
    ),
    FieldOption(
        flag="--head",
        path="models.head",
        panel=TRAINING,
        text="Prediction of a model of bags: hazards (of time bins) or cox (a log hazard ratio).",
    ),
    FieldOption(
        flag="--bins", path="fit.bins", panel=TRAINING, text="Time bins of the head hazards."
    ),
    *COVARIATE_OPTIONS,
    FUSION_OPTION,
    *FOLD_OPTIONS,
    *TRAINING_OPTIONS,
    *COMPARISON_OPTIONS,
    *TABLE_OPTIONS,
    *LAST_OPTIONS,
)


@dataclass(frozen=True, kw_only=True)
class SurvivalCommandOptions(StudyOptions):
    """Options of `slidelake survival`: fields of the study's settings, and where it runs."""

    settings: Annotated[Changes, FieldOptions(SURVIVAL_TEMPLATE, SURVIVAL_OPTIONS)]


@command(app, "survival", without_pandas=True)
def survival_command(options: SurvivalCommandOptions) -> None:
    """Predict survival, cross-validated over patients; a higher risk is a worse outlook.

    Bins, risk groups and censoring weights come from training patients. The C-index and all other
    measures have an interval over patients.

    Example: slidelake survival my-lake --labels labels.csv --time months --event dead
    --features uni2_h
    """
    spec = study_spec(SURVIVAL_TEMPLATE, options.settings, options, SURVIVAL_OPTIONS)
    from downstream import run_study

    study_result = run_study(options.lake, spec, resources=options.run_resources())
    print_answer(study_result, as_json=options.json, text=study_text(study_result))
