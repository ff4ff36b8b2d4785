"""`slidelake mil`: cross-validated classes, labels or numbers of patients."""

from dataclasses import dataclass
from typing import Annotated

import typer

from commands.options.dataclass_options import command
from commands.options.field_options import Changes, FieldOption, FieldOptions
from commands.options.printing import print_answer
from commands.studies.study_lines import study_text
from commands.studies.study_options import (
    COMPARISON,
    COMPARISON_OPTIONS,
    COVARIATE_OPTIONS,
    FEATURE_OPTIONS,
    FOLD_OPTIONS,
    FUSION_OPTION,
    LABEL_OPTION,
    LAST_OPTIONS,
    MIL_TEMPLATE,
    SPLITS,
    TABLE_OPTIONS,
    TRAINING,
    TRAINING_OPTIONS,
    StudyOptions,
    study_spec,
)
from downstream.run.model_tables import AGGREGATORS, PROBES

app = typer.Typer()

MIL_OPTIONS = (
    LABEL_OPTION,
    FieldOption(flag="--target", path="labels.target", required=True, more="Repeat for several."),
    *FEATURE_OPTIONS,
    FieldOption(
        flag="--model",
        path="models.names",
        default=("abmil",),
        text=f"Model of a patient's tiles: {', '.join(AGGREGATORS)} (hierarchical takes several "
        f"--mpp), or on pooled features {', '.join(PROBES)}; "
        "covariates sees those alone. Repeat to compare.",
    ),
    FieldOption(flag="--task", path="labels.task"),
    FieldOption(
        flag="--order",
        path="labels.order",
        metavar="CLASS,...",
        more="Joined by commas: low,middle,high.",
        commas=True,
    ),
    *COVARIATE_OPTIONS,
    FUSION_OPTION,
    *FOLD_OPTIONS,
    FieldOption(flag="--shots", path="folds.shots", panel=SPLITS),
    FieldOption(
        flag="--experts",
        path="fit.experts",
        panel=TRAINING,
        single=True,
        text="Two heads for long-tailed classes, one of which sees rare classes as often as "
        "common ones.",
    ),
    FieldOption(
        flag="--soft-labels",
        path="fit.soft_labels",
        panel=TRAINING,
        text="Weight, in 0..1, of the ensemble's out-of-fold prediction in a training label; needs "
        "--inner 2 or more.",
    ),
    FieldOption(
        flag="--pseudo-tiles",
        path="fit.pseudo_tiles",
        panel=TRAINING,
        text="Number of tiles with the highest, and as many with the lowest, scores of each bag to "
        "train a tile classifier on (MILTS); 0 for none.",
    ),
    *TRAINING_OPTIONS,
    *COMPARISON_OPTIONS,
    FieldOption(flag="--accuracy", path="comparison.accuracy", panel=COMPARISON),
    FieldOption(flag="--guarantee", path="comparison.guarantee", panel=COMPARISON),
    *TABLE_OPTIONS,
    *LAST_OPTIONS,
)


@dataclass(frozen=True, kw_only=True)
class MilCommandOptions(StudyOptions):
    """Options of `slidelake mil`: fields of the study's settings, and where it runs."""

    settings: Annotated[Changes, FieldOptions(MIL_TEMPLATE, MIL_OPTIONS)]


@command(app, "mil", without_pandas=True)
def mil_command(options: MilCommandOptions) -> None:
    """Predict classes, labels or a number from a patient's tiles, cross-validated over patients.

    Validation patients within each fold decide when training stops, and the threshold;
    test patients are only scored. Every measure has an interval over patients. A killed run goes on
    with the same command; all predictions, the splits and a page are kept in the lake's runs/.

    Example: slidelake mil my-lake --labels labels.csv --target grade --features uni2_h
    """
    spec = study_spec(MIL_TEMPLATE, options.settings, options, MIL_OPTIONS)
    from downstream import run_study

    study_result = run_study(options.lake, spec, resources=options.run_resources())
    print_answer(study_result, as_json=options.json, text=study_text(study_result))
