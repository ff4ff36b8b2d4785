"""The predictions of one trained model of a cell.

Shape letters: P patients, T times.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from downstream.kept.kept_model import KeptModel
    from downstream.splits.folds import Split

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Member:
    """A trained model's predictions.

    Attributes:
        split: the split that the model was trained on.
        validation: outcomes of the validation patients, [P, ...].
        test: outcomes of the test patients, [P, ...]: probabilities, numbers, or risks.
        high: for survival, whether each test patient's risk is above the training median, [P].
        validation_high: for survival, the same of the validation patients.
        curve: for survival, S(t) of the test patients [P, T].
        validation_curve: for survival, S(t) of the validation patients.
        attention: attention over each test patient's tiles; None for a model without attention.
        kept: the model in the form in which a run keeps it; None if it has none.
        training_record: epochs and losses of the training, as JSON.
    """

    split: "Split"
    validation: Floats
    test: Floats
    high: NDArray[np.bool_] | None = None
    validation_high: NDArray[np.bool_] | None = None
    curve: Floats | None = None
    validation_curve: Floats | None = None
    attention: list[NDArray[np.float32]] | None = None
    kept: "KeptModel | None" = None
    training_record: dict[str, Any] = field(default_factory=dict)
