"""A MIL model of a cell: trained on one inner split, stopped by the split's validation patients.

Shape letters: P patients, C outputs, N tiles.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from downstream.cells.cell_patients import CellPatients
from downstream.splits.split import PARTS

if TYPE_CHECKING:
    from downstream.kept.kept_model import KeptModel
    from downstream.mil.objective import Objective
    from downstream.splits.folds import Split

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class TrainedMilModel:
    """A trained MIL model's logits.

    Attributes:
        train: logits of the training patients [P, C]; empty unless `with_train`.
        validation: logits of the validation patients.
        test: logits of the test patients.
        attention: attention over each test patient's tiles.
        kept: the model in the form in which a run keeps it.
        training_record: epochs and losses of the training, as JSON.
    """

    train: Floats
    validation: Floats
    test: Floats
    attention: list[NDArray[np.float32]]
    kept: "KeptModel"
    training_record: dict[str, Any]


def train_mil_on_split(
    patients: CellPatients, split: "Split", objective: "Objective", *, with_train: bool = False
) -> TrainedMilModel:
    """Train a MIL model and predict its validation and test patients."""
    from downstream.kept.mil_models import kept_mil
    from downstream.mil.predict import predict
    from downstream.mil.train import train_mil

    study = patients.cell.study
    encoder = patients.encoder(split)
    parts = {
        part: patients.examples(split.patients(part), soft=part == "train", encoder=encoder)
        for part in PARTS
    }
    fit = train_mil(
        patients.cell.arm.model,
        parts["train"],
        parts["validation"],
        objective,
        patients.settings,
        widths=patients.widths,
        ratios=ratios_of(study.mpps),
        covariate_fusion=study.covariate_fusion,
        seed=patients.cell.random_seed(split.inner),
        device=best_device(),
    )
    test, attention = predict(fit.model, parts["test"].bags, parts["test"].covariates)
    none = np.empty((0, test.shape[1]))

    def logits_of(part: Literal["train", "validation", "test"]) -> Floats:
        return predict(fit.model, parts[part].bags, parts[part].covariates)[0]

    return TrainedMilModel(
        train=logits_of("train") if with_train else none,
        validation=logits_of("validation") if split.validation else none,
        test=test,
        attention=attention,
        kept=kept_mil(
            fit.model,
            patients.cell.arm.model,
            objective,
            patients.settings,
            widths=patients.widths,
            ratios=ratios_of(study.mpps),
            encoder=encoder,
            covariate_fusion=study.covariate_fusion,
        ),
        training_record={
            "inner": split.inner,
            "epochs": fit.epochs,
            "train_loss": list(fit.train_loss),
            "validation_loss": list(fit.validation_loss),
        },
    )


def ratios_of(mpps: Sequence[float]) -> tuple[int, ...]:
    """Return the side of a tile in tiles of the next finer mpp, coarse to fine; empty for one mpp.

    >>> ratios_of([0.5, 8.0, 2.0])
    (4, 4)
    """
    levels = sorted(mpps, reverse=True)
    return tuple(round(coarse / fine) for coarse, fine in itertools.pairwise(levels))


def best_device() -> str:
    """Return the torch device of this worker: its GPU if it has one, else the CPU."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
