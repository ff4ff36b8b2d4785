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
from downstream.run.model_tables import AGGREGATORS
from downstream.run.study_errors import StudyError

if TYPE_CHECKING:
    from downstream.cohorts.cohort import Cohort
    from downstream.run.fit_settings import MilSettings
    from downstream.run.study import Outcome, Study
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
    cohort: "Cohort", columns: Sequence[str], task: str
) -> "tuple[Outcome, list[str], NDArray[np.float64]]":
    """Return the task, the names of its classes, and the outcomes [P, K]."""
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


def named_classes(classes: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return the classes under the names that the settings give their values.

    Raises:
        StudyError: An entry is not VALUE=NAME, or two classes would have one name.

    >>> named_classes(["0", "1"], ["0=wild type", "1=mutant"])
    ['wild type', 'mutant']
    """
    pairs = [entry.partition("=") for entry in names]
    name_of = {value.strip(): name.strip() for value, _, name in pairs}
    named = [name_of.get(one, one) for one in classes]
    if not all(sign and name.strip() for _, sign, name in pairs) or len({*named}) < len(named):
        msg = (
            f"class names {', '.join(names)} of classes {', '.join(classes)}; give each value one "
            "name of its own, as 0=normal"
        )
        raise StudyError(msg)
    return named


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
    >>> event_strata(np.array([True, True, True, False, False, False]), folds=2)
    [1, 1, 1, 0, 0, 0]
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
