"""The targets of a study from its label columns, and checks of the models that predict them.

Shape letters: P patients, C labels, K columns.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cluster import counted
from downstream.cohorts.outcomes import (
    class_labels,
    guess_task,
    multilabel_labels,
    refuse_near_numbers,
    regression_labels,
)
from downstream.run.model_tables import AGGREGATORS, CLINICAL
from downstream.run.study_errors import StudyError

if TYPE_CHECKING:
    from downstream.cohorts.cohort import Cohort
    from downstream.run.fit_settings import MilSettings
    from downstream.run.study import Outcome, Study
    from downstream.run.study_spec import StudySpec
    from downstream.splits.fold_plan import Plan


def check_models(models: Sequence[str], allowed: Collection[str], mpps: Sequence[float]) -> None:
    """Refuse unknown models, and models that do not support these mpps.

    Raises:
        StudyError: No model, an unknown one, one named twice, or several mpps for another model
            than `hierarchical`.
    """
    wrong = [name for name in models if name not in allowed or list(models).count(name) > 1]
    if wrong or not models:
        msg = (
            f"models {', '.join(models) or 'none'}; name each once, of {', '.join(sorted(allowed))}"
        )
        raise StudyError(msg)
    several = [name for name, entry in AGGREGATORS.items() if entry.several_mpps]
    unfit = [name for name in models if (name in several) != (len(mpps) > 1)]
    if unfit:
        msg = (
            f"{unfit[0]!r} with mpps {', '.join(map(str, mpps))}; {', '.join(several)} takes "
            "several nested ones, such as 0.5 and 2.0, and all other models one"
        )
        raise StudyError(msg)


def check_covariates(spec: "StudySpec") -> None:
    """Refuse models that do not fit a study's covariates, or its lack of them.

    Raises:
        StudyError: A model of the covariates without any; neighbours or experts with covariates.
    """
    models, names = spec.model_names, spec.labels.covariates
    alone = [model for model in models if model in CLINICAL]
    if alone and not names:
        msg = f"model {alone[0]!r} without covariates; name their columns by --covariates"
        raise StudyError(msg)
    if names and "knn" in models:
        msg = "model 'knn' takes no covariates: a distance has no place for them; take linear"
        raise StudyError(msg)
    if names and spec.fit.experts:
        msg = "experts take no covariates; leave out one of the two"
        raise StudyError(msg)


def check_tails(settings: "MilSettings", task: str, plan: "Plan") -> None:
    """Refuse settings that need classes or several inner splits, in a study without them.

    Raises:
        StudyError: A setting needs classes, or several inner splits.
    """
    soft = settings.soft_labels
    if (settings.experts or soft) and task not in {"binary", "multiclass"}:
        msg = f"experts and soft labels are for classes that exclude each other, not {task}"
        raise StudyError(msg)
    if soft and (plan.inner < 2 or plan.file is not None or not 0 < soft <= 1):
        msg = (
            f"soft_labels={soft} with {plan.inner} inner splits; give a share above 0 and at most "
            "1, and two inner splits or more, so that each patient has a model that has not seen it"
        )
        raise StudyError(msg)


def read_target(
    cohort: "Cohort", columns: Sequence[str], task: str, *, order: Sequence[str] = ()
) -> "tuple[Outcome, list[str], NDArray[np.float64]]":
    """Return the task, the names of its classes, and the outcomes [P, K].

    Args:
        cohort: the patients.
        columns: label columns.
        task: see `LabelOptions.task`.
        order: see `LabelOptions.order`.

    Raises:
        StudyError: A task that does not fit the column, or classes without an order.
    """
    if order or task == "ordinal":
        names, label = ordered_labels(cohort, columns, task, order)
        return "multiclass", names, label.astype(np.float64)[:, None]
    if len(columns) > 1 or task == "multilabel":
        names, label_PC = multilabel_labels(cohort.patients, columns)
        return "multilabel", names, label_PC.astype(np.float64)
    if task == "auto":
        refuse_near_numbers(cohort.patients, columns[0])
    kind = guess_task(cohort.patients[columns[0]]) if task == "auto" else task
    if kind == "regression":
        return "regression", [], regression_labels(cohort.patients, columns[0])[:, None]
    classes, label = class_labels(cohort.patients, columns[0])
    class_task: Outcome = "binary" if len(classes) == 2 else "multiclass"
    if kind not in {"binary", "multiclass"} or (kind == "binary" and class_task != "binary"):
        msg = (
            f"task {task!r} of {columns[0]!r} with {counted(len(classes), 'value')}; it is one "
            "of auto, "
            "binary (two values), multiclass, multilabel, regression"
        )
        raise StudyError(msg)
    return class_task, classes, label.astype(np.float64)[:, None]


def value_names(names: Sequence[str]) -> dict[str, str]:
    """Return the name of each value from entries VALUE=NAME; an entry without a name has none."""
    pairs = [entry.partition("=") for entry in names]
    return {label.strip(): name.strip() for label, _, name in pairs}


def named_classes(classes: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return the classes under the names that the settings give their values.

    Raises:
        StudyError: An entry is not VALUE=NAME, or two classes would have one name.

    >>> named_classes(["0", "1"], ["0=wild type", "1=mutant"])
    ['wild type', 'mutant']
    """
    name_of = value_names(names)
    named = [name_of.get(one, one) for one in classes]
    if len(name_of) < len(names) or not all(name_of.values()) or len({*named}) < len(named):
        msg = (
            f"class names {', '.join(names)} of classes {', '.join(classes)}; give each value one "
            "name of its own, as 0=normal"
        )
        raise StudyError(msg)
    return named


def check_ordered(spec: "StudySpec") -> None:
    """Refuse models that have no place for an order of classes, in a study of ordered classes.

    Raises:
        StudyError: A model with a branch for each class, or experts.
    """
    if not spec.labels.is_ordered:
        return
    branched = [name for name in spec.model_names if _has_class_branches(name)]
    if branched or spec.fit.experts:
        named = f"model {branched[0]!r}, with a branch for each class," if branched else "experts"
        msg = f"{named} and classes in an order, which have one score; take another model"
        raise StudyError(msg)


def _has_class_branches(model: str) -> bool:
    """Whether a model has an embedding of its own for each class."""
    return model in AGGREGATORS and bool(AGGREGATORS[model].options.get("multi_branch"))


def ordered_labels(
    cohort: "Cohort", columns: Sequence[str], task: str, order: Sequence[str]
) -> tuple[list[str], NDArray[np.int64]]:
    """Return the classes from the lowest to the highest, and the class index of each patient.

    Raises:
        StudyError: Another task than `ordinal`, several columns, texts without an order, an order
            that does not name each class once, or two classes only.
    """
    if task not in {"auto", "ordinal"} or len(columns) > 1:
        msg = (
            f"an order of classes with task {task!r} and {counted(len(columns), 'column')}; it is "
            "for one column, and its task is ordinal"
        )
        raise StudyError(msg)
    classes, label_P = class_labels(cohort.patients, columns[0])
    is_text = not cohort.patients[columns[0]].dtype.is_numeric()
    if not order and is_text:
        msg = (
            f"{columns[0]!r} holds {', '.join(classes[:5])}: the order of texts is not known; give "
            "it from the lowest to the highest by --order (order in Python)"
        )
        raise StudyError(msg)
    if order and sorted(order) != sorted(classes):
        msg = (
            f"order {', '.join(order)}; the classes of {columns[0]!r} are {', '.join(classes)}: "
            "name each once, from the lowest to the highest"
        )
        raise StudyError(msg)
    if len(classes) < 3:
        msg = f"{columns[0]!r} has two classes; their task is binary, an order adds nothing"
        raise StudyError(msg)
    names = list(order or classes)
    place_C = np.array([names.index(name) for name in classes])
    return names, place_C[label_P]


def strata_of(task: "Outcome", outcome: NDArray[np.float64], *, folds: int) -> list[Any]:
    """Return the strata of folds: the class, the combination of labels, or quarters of a number.

    A number has fewer parts where a quarter would not fill all folds twice.
    """
    from downstream.splits.folds import strata

    if task == "regression":
        bins = max(1, min(4, len(outcome) // (2 * folds)))
        return list(strata(outcome[:, 0].tolist(), bins=bins))
    if task == "multilabel":
        return common_combinations(outcome, least=2 * folds)
    return list(outcome[:, 0].astype(int).tolist())


def common_combinations(label_PC: NDArray[np.float64], *, least: int) -> list[str]:
    """Return the combination of labels of each patient; rare ones share one stratum.

    If the rare ones together are still too few, they join the commonest combination.

    >>> common_combinations(np.array([[0, 1], [0, 1], [1, 1], [0, 0]]), least=2)
    ['01', '01', 'rare', 'rare']
    >>> common_combinations(np.array([[0, 1], [0, 1], [1, 1]]), least=2)
    ['01', '01', '01']
    """
    texts = ["".join(str(int(label)) for label in row) for row in label_PC]
    counts = Counter(texts)
    rare = sum(count for count in counts.values() if count < least)
    other = "rare" if rare >= least or rare == len(texts) else counts.most_common(1)[0][0]
    return [text if counts[text] >= least else other for text in texts]


def event_strata(event_P: NDArray[np.bool_], *, folds: int, inner: int = 1) -> list[int]:
    """Return the strata of survival folds: the event, unless too few patients are censored.

    Censored patients that are fewer than folds, or than the inner splits of a fold need, cannot be
    in every part, and need not be.

    >>> event_strata(np.array([True, True, False]), folds=2)
    [0, 0, 0]
    >>> event_strata(np.array([True, True, False, False, False, False]), folds=2)
    [1, 1, 0, 0, 0, 0]
    """
    censored = int((~event_P).sum())
    beside_test = censored - -(-censored // folds)
    if censored < folds or beside_test < max(inner, 2):
        return [0] * len(event_P)
    return [int(event) for event in event_P]


def check_bins(study: "Study") -> None:
    """Refuse more time bins than the events of a training part fill, before anything is trained.

    Raises:
        StudyError: Names the fold, its events, and the number of bins.
    """
    if study.head != "hazards" or not any(model in AGGREGATORS for model in study.models):
        return
    from downstream.survival.risks import SurvivalError
    from downstream.survival.survival_losses import fit_bins

    outcome_of = {patient.patient_id: patient.outcome for patient in study.patients}
    for split in study.splits:
        outcome = np.array([outcome_of[one] for one in split.train])
        try:
            fit_bins(
                outcome[:, 0],
                outcome[:, 1] == 1,
                patients=list(split.train),
                bins=study.settings.bins,
            )
        except SurvivalError as error:
            msg = (
                f"repetition {split.repeat}, fold {split.fold}: {error}; or take --head cox, which "
                "has no bins"
            )
            raise StudyError(msg) from error
