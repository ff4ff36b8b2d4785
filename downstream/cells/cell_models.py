"""The models of a cell's classes, labels or numbers, and which function trains which model.

Shape letters: P patients.
"""

from typing import TYPE_CHECKING, Any

from downstream.cells.cell_patients import CellPatients
from downstream.cells.member import Member
from downstream.cells.mil_training import train_mil_on_split
from downstream.run.model_tables import trainer_of

if TYPE_CHECKING:
    from downstream.run.study import Cell
    from downstream.splits.folds import Split


def fit_member(patients: CellPatients, split: "Split") -> Member:
    """Train a model on one split and predict the split's validation and test patients."""
    cell = patients.cell
    member: Member = trainer_of(cell.study.kind, cell.arm.model)(patients, split)
    return member


def fit_mil_member(patients: CellPatients, split: "Split") -> Member:
    """Train a MIL model of classes, labels or a number, and apply it."""
    from downstream.mil.objective import LabelObjective

    study = patients.cell.study
    objective = LabelObjective.fit(
        task_of(patients.cell), patients.target(split.train), weighted=study.settings.weighted
    )
    fitted = train_mil_on_split(patients, split, objective)
    return Member(
        split=split,
        validation=objective.outcome(fitted.validation),
        test=objective.outcome(fitted.test),
        attention=fitted.attention,
        kept=fitted.kept,
        training_record=fitted.training_record,
    )


def fit_probe_member(patients: CellPatients, split: "Split") -> Member:
    """Fit a linear model or nearest neighbours on pooled features, and apply it."""
    from downstream.kept.probe_models import kept_probe
    from downstream.probes.fit import fit_probe

    study = patients.cell.study
    task = task_of(patients.cell)
    validation = None
    if split.validation:
        validation = (patients.pooled(split.validation), patients.target(split.validation))
    probe = fit_probe(
        patients.cell.arm.model,
        patients.pooled(split.train),
        patients.target(split.train),
        validation=validation,
        task=task.kind,
        classes=max(len(study.classes), 1),
        seed=patients.cell.random_seed(split.inner),
        inverse_penalty=study.settings.inverse_penalty,
    )
    test = probe.scores(patients.pooled(split.test))
    return Member(
        split=split,
        validation=test[:0] if validation is None else probe.scores(validation[0]),
        test=test,
        kept=kept_probe(probe),
        training_record={"inner": split.inner},
    )


def task_of(cell: "Cell") -> Any:  # noqa: ANN401 - a Task; torch is imported by workers only
    """Return the task of a MIL model; two classes are a softmax over two outputs."""
    from downstream.mil.losses import BagTask

    study = cell.study
    if study.task == "regression":
        return BagTask(kind="regression")
    return BagTask(
        kind="multilabel" if study.task == "multilabel" else "multiclass",
        outputs=len(study.classes),
    )
