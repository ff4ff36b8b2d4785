"""A fitted model as a file of its run: arrays in safetensors, and a description in JSON.

Nothing is pickled: whoever opens a run that somebody else made runs no code of theirs.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from downstream.run.model_tables import load

if TYPE_CHECKING:
    from downstream.cohorts.covariates import CovariateRow
    from downstream.run.feature_bags import PatientBag

Floats = NDArray[np.float64]

_KEY = "slidelake"


class KeptModelError(ValueError):
    """An error for a run whose models were not kept, or that do not fit these slides.

    Examples:
        >>> issubclass(sl.KeptModelError, ValueError)  # run the study again, or choose another run
        True
    """


class PatientReader(Protocol):
    """Bags and pooled features of patients."""

    def bag(self, patient_id: str) -> "PatientBag":
        """Return the bag of a patient: all tiles of all slides."""

    def pooled(self, ids: Sequence[str]) -> Floats:
        """Return one vector per patient, the mean over slides of mean tiles [P, D]."""

    def covariates(self, names: Sequence[str], ids: Sequence[str]) -> "list[CovariateRow]":
        """Return the covariates of patients in the order of the names.

        Raises:
            KeptModelError: The reader has no covariates.
        """


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """The outcomes that a fitted model predicts for some patients.

    Attributes:
        outcome: probabilities [P, C] (two classes too), numbers [P], or risks [P] (HIGHER = WORSE).
        attention: attention over each patient's tiles; None for a model without attention.
    """

    outcome: Floats
    attention: list[NDArray[np.float32]] | None = None


@dataclass(frozen=True, kw_only=True)
class KeptModel:
    """A fitted model in the form in which it is kept.

    Attributes:
        kind: kind of model, a name in `RESTORERS`.
        fields: all that is not an array, as JSON.
        arrays: arrays by name.
    """

    kind: str
    fields: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Return the content of the model's file."""
        from safetensors.numpy import save

        description = json.dumps({"kind": self.kind, "fields": self.fields}, sort_keys=True)
        arrays = {name: np.ascontiguousarray(array) for name, array in self.arrays.items()}
        return bytes(save(arrays, metadata={_KEY: description}))

    @classmethod
    def from_bytes(cls, content: bytes) -> "KeptModel":
        """Return the model of a file.

        Raises:
            KeptModelError: The file holds no model of ours.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load as load_arrays

        try:
            size = int.from_bytes(content[:8], "little")
            header = json.loads(content[8 : 8 + size])
            description = json.loads(header["__metadata__"][_KEY])
            arrays = load_arrays(content)
        except (SafetensorError, ValueError, KeyError) as err:
            msg = f"the file holds no model of a run ({err}); run the study again"
            raise KeptModelError(msg) from err
        return cls(kind=description["kind"], fields=description["fields"], arrays=arrays)


Apply = Callable[[PatientReader, Sequence[str]], Predicted]
"""What a fitted model says of some patients."""

RESTORERS = {
    "probe": "downstream.kept.probe_models:restored_probe",
    "mil": "downstream.kept.mil_models:restored_mil",
    "cox": "downstream.kept.cox_models:restored_cox",
}
"""By kind of model the function that makes it of its kept form."""


def restored(model: KeptModel) -> Apply:
    """Return a fitted model, ready for patients.

    Raises:
        KeptModelError: The kind of model is not known.
    """
    if model.kind not in RESTORERS:
        msg = f"models of kind {model.kind!r} are not known here; update slidelake"
        raise KeptModelError(msg)
    restore: Callable[[KeptModel], Apply] = load(RESTORERS[model.kind])
    return restore(model)
