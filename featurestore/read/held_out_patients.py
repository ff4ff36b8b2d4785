"""Held-out patients. A patient is in one part only, whatever the number of slides."""

import hashlib
import math

import polars as pl

from featurestore.errors import LakeError
from featurestore.messages import counted


def holdout_patients(slides: pl.DataFrame, *, share: float, seed: int) -> set[str]:
    """Return the patients that no statistic and no training may use.

    They are chosen by a hash of the patient, so that the choice does not depend on row order.

    Args:
        slides: rows with slide_id and patient_id; a slide without patient is its own patient.
        share: share of the patients, rounded up.
        seed: seed of the choice.

    Raises:
        LakeError: fewer than two patients, or none would be left to train on.
    """
    patients = patient_of(slides)["patient"].unique().to_list()
    count = math.ceil(share * len(patients))
    if not 0 < count < len(patients):
        msg = f"{counted(len(patients), 'patient')} can't be split with a held-out share of {share}"
        raise LakeError(msg)
    return set(sorted(patients, key=lambda p: _rank(p, seed))[:count])


def patient_of(slides: pl.DataFrame) -> pl.DataFrame:
    """Return the slides with a column `patient`: patient_id, or slide_id where there is none."""
    return slides.with_columns(patient=pl.coalesce("patient_id", "slide_id"))


def _rank(patient: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}:{patient}".encode()).hexdigest()
