"""The settings of a study: all that decides its result, and apart from it what it runs on.

A `StudySpec` is saved in the folder of its run (`config.json`), so that another run can start from
it. Field descriptions stand in the `Attributes` sections; commands print them as their help.
Importing this module imports nothing but dataclasses.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from downstream.run.fit_settings import MilSettings, SurvivalSettings
from downstream.run.spec_json import JsonSettings
from downstream.run.study_errors import StudyError
from downstream.splits.fold_plan import Plan

Kind = Literal["mil", "survival"]
TaskName = Literal["auto", "binary", "multiclass", "multilabel", "ordinal", "regression"]
Head = Literal["hazards", "cox"]
ProtocolName = Literal["none", "patho-bench", "stamp", "clam"]
EventMeans = Literal["auto", "event", "censored"]
PatientsFrom = Literal["agree", "labels"]
CovariateFusionName = Literal["late", "gated"]
DEFAULT_MODELS: dict[str, tuple[str, ...]] = {"mil": ("abmil",), "survival": ("cox",)}


@dataclass(frozen=True, kw_only=True)
class LabelOptions:
    """The table of labels and its columns.

    Attributes:
        table: Path or URI of the table with `slide_id` and/or `patient_id` and the labels, or
            `lake:NAME` for an annotation of the lake.
        test_table: A second table with the same columns, of other patients: all of them are tested
            by models of the patients of `table` (external validation).
        target: Column to predict, or several columns of 0 and 1 that do not exclude each other;
            of two classes the last in order is the positive one.
        class_names: Names of the target's values on pages and in files, each as VALUE=NAME.
        task: `binary`, `multiclass`, `multilabel`, `ordinal` (classes in an order: numbers by
            value, texts by `order`) or `regression`; `auto` decides by the column's values.
        order: Classes from the lowest to the highest; they are then `ordinal`.
        time: Survival: column of the time to the event or to the end of follow-up.
        event: Survival: column that is 1 where the event was observed and 0 where the patient is
            censored.
        event_means: Survival: what 1 means in that column: `event`, or `censored` (MCAT, SurvPath:
            `censorship`). `auto` is `event`, and refuses a column whose name says the opposite.
        cause: Survival, where the event column holds several kinds of events: the value of the
            event of interest; others but `censored` are competing events.
        censored: Survival with `cause`: the value of patients without an event.
        slide_table: Table that lists the slides of each patient, where the labels do not.
        patient_column: Column of the patient, where it has another name or several could be it.
        slide_column: Column of the slide, likewise.
        distinct_ids: Whether ids that differ by case, blanks or Unicode form only are different;
            else they are refused.
        patients_from: `agree` refuses slides whose patient is another in the labels than in the
            lake; `labels` takes the labels' word.
        covariates: Clinical covariates: columns of the labels that models see beside the tiles,
            such as age and grade. Numbers are standardised, texts are categories; both by the
            training patients of each fold.
    """

    table: str
    test_table: str | None = None
    target: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    task: TaskName = "auto"
    order: tuple[str, ...] = ()
    time: str | None = None
    event: str | None = None
    event_means: EventMeans = "auto"
    cause: str | None = None
    censored: str = "0"
    slide_table: str | None = None
    patient_column: str | None = None
    slide_column: str | None = None
    distinct_ids: bool = False
    patients_from: PatientsFrom = "agree"
    covariates: tuple[str, ...] = ()

    @property
    def is_ordered(self) -> bool:
        """Whether the classes are in an order."""
        return bool(self.order) or self.task == "ordinal"

    @property
    def id_options(self) -> dict[str, Any]:
        """Return the options of `load_labels` that differ from its defaults."""
        options = {
            "slides": self.slide_table,
            "patient_column": self.patient_column,
            "slide_column": self.slide_column,
            "distinct_ids": self.distinct_ids or None,
            "patients_from": None if self.patients_from == "agree" else self.patients_from,
        }
        return {name: option for name, option in options.items() if option is not None}


def label_id_options(ids: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return options of `load_labels` under the names that `LabelOptions` has for them."""
    options = dict(ids or {})
    return {"slide_table" if name == "slides" else name: options[name] for name in options}


@dataclass(frozen=True, kw_only=True)
class FeatureOptions:
    """The features that models read from the lake.

    Attributes:
        names: Feature sets: a teacher, or several joined by `+`; each is an arm with each model.
        mpps: Microns per pixel of the tiles: one, or several nested ones for a model that takes
            several, such as `hierarchical`.
        version: Version of the lake, or name of a snapshot; the newest if None.
        unseen_students: Whether only those folds are run in which no student among the features
            was trained on a tested patient.
    """

    names: tuple[str, ...]
    mpps: tuple[float, ...] = (0.5,)
    version: int | str | None = None
    unseen_students: bool = False


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The models that are trained on each feature set.

    Attributes:
        names: Names of models, each of which is an arm with each feature set; none for `abmil`, or
            `cox` in a survival study.
        head: Survival: what a MIL model predicts: `hazards` of time bins, or `cox`, a log hazard
            ratio.
        seeds: Trainings of every model with different random numbers.
        tune: Random draws of learning rate, weight decay, dropout and width that are tried in each
            fold and judged by its validation patients; 0 for none.
        covariate_fusion: How covariates meet the tiles of a MIL model: `late` adds linear terms to
            its output, `gated` multiplies both by gates that see both. Models on pooled features
            take them as further linear terms or inputs.

    Raises:
        StudyError: Another head, or another fusion.
    """

    names: tuple[str, ...] = ()
    head: Head = "hazards"
    seeds: int = 1
    tune: int = 0
    covariate_fusion: CovariateFusionName = "late"

    def __post_init__(self) -> None:
        """Check the head and the fusion."""
        if self.covariate_fusion not in get_args(CovariateFusionName):
            msg = f"covariate_fusion {self.covariate_fusion!r}; it is late or gated"
            raise StudyError(msg)
        if self.head not in get_args(Head):
            msg = f"head {self.head!r}; a MIL model of survival predicts hazards or cox"
            raise StudyError(msg)


@dataclass(frozen=True, kw_only=True)
class ComparisonOptions:
    """Comparison of arms, and selective prediction.

    Attributes:
        reference: Arm that the others are compared with; the first if None.
        margin: Non-inferiority margin: how much worse than the reference still counts as not
            worse; None for no such test.
        accuracy: Selective prediction of classes: the accuracy on the patients that are answered.
            The confidence threshold is chosen on validation patients.
        guarantee: Conformal sets of classes: the share of patients whose set is to hold their
            class; deferral allows the rest as wrong ones among the patients that are answered.

    Raises:
        StudyError: The guarantee is not between 0 and 1.
    """

    reference: str | None = None
    margin: float | None = None
    accuracy: float = 0.95
    guarantee: float = 0.9

    def __post_init__(self) -> None:
        """Check the guarantee."""
        if not 0 < self.guarantee < 1:
            msg = f"guarantee={self.guarantee}; give a share above 0 and below 1, such as 0.9"
            raise StudyError(msg)


@dataclass(frozen=True, kw_only=True)
class StudySpec(JsonSettings):
    """A study: cross-validated models on the feature sets of a lake.

    Attributes:
        kind: `mil` for classes, labels or a number; `survival` for times with censoring.
        labels: The table of labels and its columns.
        features: The features that models read from the lake.
        models: The models that are trained on each feature set.
        folds: Plan of the folds.
        fit: Settings of MIL models and their training.
        pooled: Settings of survival models on pooled features.
        comparison: Settings of the comparison of arms, and of selective prediction.
        protocol: Protocol of another tool that sets folds, model and measures: `patho-bench`,
            `stamp` or `clam`. What differs from it is told on the page.
        seed: Seed of folds, training and bootstrap.

    Raises:
        StudyError: Columns that the kind of study needs are missing.
    """

    kind: Kind = "mil"
    labels: LabelOptions
    features: FeatureOptions
    models: ModelOptions = field(default_factory=ModelOptions)
    folds: Plan = field(default_factory=Plan)
    fit: MilSettings = field(default_factory=MilSettings)
    pooled: SurvivalSettings = field(default_factory=SurvivalSettings)
    comparison: ComparisonOptions = field(default_factory=ComparisonOptions)
    protocol: ProtocolName = "none"
    seed: int = 0

    def __post_init__(self) -> None:
        """Check that the columns of the kind are named."""
        if self.kind == "mil" and not self.labels.target:
            msg = "labels.target is empty; name the column to predict"
            raise StudyError(msg)
        if self.kind == "survival" and None in (self.labels.time, self.labels.event):
            msg = (
                f"labels.time={self.labels.time!r}, labels.event={self.labels.event!r}; a survival "
                "study needs the column of the time and that of the event"
            )
            raise StudyError(msg)
        predicted = {column for column in self.label_columns if column}
        both = [name for name in self.labels.covariates if name in predicted]
        twice = len(set(self.labels.covariates)) < len(self.labels.covariates)
        if both or twice:
            msg = (
                f"covariates {', '.join(self.labels.covariates)}; name each once, and none of the "
                f"columns that are predicted ({', '.join(self.label_columns)})"
            )
            raise StudyError(msg)

    @property
    def model_names(self) -> tuple[str, ...]:
        """Return the names of the models, the kind's default where none is named."""
        return self.models.names or DEFAULT_MODELS[self.kind]

    @property
    def label_columns(self) -> tuple[str, ...]:
        """Return the columns of the labels that are predicted: targets, or time and event."""
        if self.kind == "mil":
            return self.labels.target
        return tuple(column for column in (self.labels.time, self.labels.event) if column)


@dataclass(frozen=True, kw_only=True)
class Resources:
    """The machines that a study runs on; they do not change its result.

    Attributes:
        address: Ray cluster to join; None for one on this machine.
        num_cpus: Cores of a cluster on this machine; None for all of them.
        cpus_per_worker: Cores that each training reserves.
        gpus_per_worker: GPUs that each training reserves; 0.25 lets four share one.
    """

    address: str | None = None
    num_cpus: int | None = None
    cpus_per_worker: float = 1.0
    gpus_per_worker: float = 0.0
