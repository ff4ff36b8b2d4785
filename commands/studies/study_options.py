"""Options that `slidelake mil` and `slidelake survival` share: fields of a `StudySpec`.

A study starts from its defaults, or with `--like RUN` from the settings of another run; options
that are given change them, and `--set` changes any field at last.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import typer

from commands.options.completion import complete_teacher
from commands.options.field_options import Changes, FieldOption
from commands.options.path_kind import PathKind
from commands.options.set_fields import parse_assignment, with_values
from commands.options.shared_options import AddressOpt, JsonOpt, LakeArg, LikeOpt, QuietOpt, SetOpt
from downstream.protocols.protocols import protocol_settings
from downstream.run.study_spec import FeatureOptions, LabelOptions, Resources, StudySpec

SPLITS, TRAINING, TABLES, COMPARISON = "Splits", "Training", "Tables", "Comparison"
ANY_FEATURES = FeatureOptions(names=())

#: Settings without a cohort, whose values are the defaults of the options.
MIL_TEMPLATE = StudySpec(
    kind="mil", labels=LabelOptions(table="", target=("",)), features=ANY_FEATURES
)
SURVIVAL_TEMPLATE = StudySpec(
    kind="survival", labels=LabelOptions(table="", time="", event=""), features=ANY_FEATURES
)

TEST_TABLE_OPTION = FieldOption(
    flag="--test-labels",
    path="labels.test_table",
    path_kind=PathKind.FILES,
    panel=SPLITS,
    metavar="FILE",
)
PROTOCOL_OPTION = FieldOption(flag="--protocol", path="protocol", panel=SPLITS)
LABEL_OPTION = FieldOption(
    flag="--labels",
    path="labels.table",
    required=True,
    more="CSV, TSV, XLSX or Parquet; the tables of CLAM, STAMP and Patho-Bench as they are. Ids "
    "are text: 0012 is not 12.",
    path_kind=PathKind.FILES,
)
FEATURE_OPTIONS = (
    FieldOption(
        flag="--features",
        path="features.names",
        required=True,
        more="Repeat to compare.",
        complete=complete_teacher,
    ),
    FieldOption(flag="--mpp", path="features.mpps", more="Repeat for several."),
)
FUSION_OPTION = FieldOption(flag="--fusion", path="fit.fusion", panel=TRAINING)
COVARIATE_OPTIONS = (
    FieldOption(
        flag="--covariates",
        path="labels.covariates",
        metavar="COLUMN,...",
        more="Joined by commas: age,grade.",
        commas=True,
    ),
    FieldOption(flag="--covariate-fusion", path="models.covariate_fusion", panel=TRAINING),
)
UNSEEN_OPTION = FieldOption(
    flag="--unseen-students", path="features.unseen_students", panel=SPLITS, single=True
)
FOLD_OPTIONS = (
    FieldOption(flag="--folds", path="folds.folds", panel=SPLITS),
    FieldOption(flag="--inner", path="folds.inner", panel=SPLITS),
    FieldOption(flag="--repeats", path="folds.repeats", panel=SPLITS),
    FieldOption(
        flag="--splits",
        path="folds.file",
        path_kind=PathKind.FILES,
        panel=SPLITS,
        metavar="FILE",
        text="Splits to use: CLAM's folder, Patho-Bench's k=all.tsv, STAMP's splits.json, or a "
        "run's splits.parquet. All other options of splits but --shots are then ignored.",
    ),
    FieldOption(flag="--split", path="folds.split", panel=SPLITS),
    TEST_TABLE_OPTION,
    PROTOCOL_OPTION,
    UNSEEN_OPTION,
    FieldOption(flag="--site", path="folds.sites", panel=SPLITS, metavar="COLUMN"),
)
TRAINING_OPTIONS = (
    FieldOption(flag="--seeds", path="models.seeds", panel=TRAINING),
    FieldOption(flag="--epochs", path="fit.epochs", panel=TRAINING),
    FieldOption(flag="--learning-rate", path="fit.learning_rate", panel=TRAINING),
    FieldOption(flag="--batch-patients", path="fit.batch_patients", panel=TRAINING),
    FieldOption(flag="--max-tiles", path="fit.max_tiles", panel=TRAINING),
    FieldOption(flag="--precision", path="fit.precision", panel=TRAINING),
    FieldOption(flag="--tune", path="models.tune", panel=TRAINING),
)
COMPARISON_OPTIONS = (
    FieldOption(flag="--reference", path="comparison.reference", panel=COMPARISON),
    FieldOption(flag="--margin", path="comparison.margin", panel=COMPARISON),
)
ID_COLUMN_OPTIONS = (
    FieldOption(flag="--patient-column", path="labels.patient_column", panel=TABLES),
    FieldOption(flag="--slide-column", path="labels.slide_column", panel=TABLES),
    FieldOption(flag="--distinct-ids", path="labels.distinct_ids", panel=TABLES, single=True),
    FieldOption(flag="--patients-from", path="labels.patients_from", panel=TABLES),
)
TABLE_OPTIONS = (
    FieldOption(
        flag="--slide-table",
        path="labels.slide_table",
        panel=TABLES,
        metavar="FILE",
        path_kind=PathKind.FILES,
    ),
    *ID_COLUMN_OPTIONS,
)
LAST_OPTIONS = (
    FieldOption(flag="--seed", path="seed"),
    FieldOption(flag="--at", path="features.version", value_type=str | None),
)


TaskFolderOpt = Annotated[
    str | None,
    typer.Option(
        "--task-folder",
        metavar="DIR",
        rich_help_panel=TABLES,
        help="A task of Patho-Bench as it is: config.yaml and k=all.tsv give labels and folds. "
        "ROOT/TRAIN==TEST--TASK trains on one source and tests on another.",
    ),
    PathKind.FILES,
]


@dataclass(frozen=True, kw_only=True)
class ResourceOptions:
    """The share of a machine that each training gets.

    Attributes:
        cpus_per_worker: Cores that each training reserves.
        gpus_per_worker: GPUs that each training reserves; 0.25 lets four share one.
    """

    PANEL = "Cores and GPUs"

    cpus_per_worker: float = 1.0
    gpus_per_worker: float = 0.0


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """Options of a study; a command marks `settings` with its options for fields of a `StudySpec`.

    Attributes:
        settings: fields of the study's settings that options set, by path.
    """

    lake: LakeArg
    settings: Changes
    task_folder: TaskFolderOpt = None
    assignments: SetOpt = ()
    like: LikeOpt = None
    address: AddressOpt = None
    resources: ResourceOptions
    quiet: QuietOpt = False
    json: JsonOpt = False

    def run_resources(self) -> Resources:
        """Return the resources in the form for `run_study`."""
        return Resources(
            address=self.address,
            cpus_per_worker=self.resources.cpus_per_worker,
            gpus_per_worker=self.resources.gpus_per_worker,
        )


def study_spec(
    template: StudySpec,
    settings: Changes,
    options: StudyOptions,
    field_options: Sequence[FieldOption],
) -> StudySpec:
    """Return the settings that the command line describes.

    Args:
        template: defaults, where no run is named by `--like`.
        settings: fields that options set, by path.
        options: `--like`, `--set` and the lake.
        field_options: options of the command.

    Raises:
        BadParameter: a required field is not set, `--set` names no field, or the run of
            `--like` is a study of another kind.
    """
    base = template if options.like is None else _spec_of_run(options, template.kind)
    assigned = {**settings, **dict(parse_assignment(base, text) for text in options.assignments)}
    changes = {**_changes_of_task(options, template.kind), **assigned}
    protocol = changes.get("protocol", "none")
    if protocol != "none":
        changes = {**protocol_settings(str(protocol), template.kind), **changes}
    if options.like is None and (msg := missing_option(field_options, changes)):
        raise typer.BadParameter(msg)
    return with_values(base, changes)


def _changes_of_task(options: StudyOptions, kind: str) -> Changes:
    """Return the fields of the settings that a task folder sets; none without one."""
    if options.task_folder is None:
        return {}
    from downstream.protocols.task_folders import read_task_folder

    return read_task_folder(options.task_folder).changes(kind)


def _spec_of_run(options: StudyOptions, kind: Literal["mil", "survival"]) -> StudySpec:
    from downstream import saved_spec
    from featurestore import open_lake

    spec = saved_spec(open_lake(options.lake), str(options.like))
    if spec.kind != kind:
        msg = f"--like {options.like}: the run is of `slidelake {spec.kind}`, not of {kind}"
        raise typer.BadParameter(msg)
    return spec


def missing_option(options: Sequence[FieldOption], changes: Changes) -> str:
    """Return a message on the first missing required option; empty if none is missing."""
    for option in options:
        if option.required and option.path not in changes:
            return f"Missing option '{option.flag}': give it, or a run that has it by --like RUN"
    return ""
