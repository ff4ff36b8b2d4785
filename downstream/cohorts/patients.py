"""Whose slide it is: the patient by the labels and by the lake, which must not contradict.

A patient under two names is in training and test at once, and no measure would show it.
"""

import polars as pl

from cluster import counted
from downstream.cohorts.cohort_errors import CohortError, listing


def settle_patients(
    joined: pl.DataFrame, *, from_labels: bool, distinct_ids: bool = False
) -> pl.DataFrame:
    """Return labelled slides with one `patient_id`: that of the labels, else that of the lake.

    Args:
        joined: rows with `slide_id`, `patient_id` by the labels, and `patient_id_lake`; one of the
            two patients may be missing.
        from_labels: whether the labels' patient counts where the lake knows another one; else that
            is refused.
        distinct_ids: whether ids that differ by case, blanks or Unicode form only are different.

    Raises:
        CohortError: The labels and the lake name different patients, a slide has no patient or two,
            or patients differ by case, blanks or Unicode form only.
    """
    if "patient_id" not in joined.columns:
        joined = joined.rename({"patient_id_lake": "patient_id"})
    if "patient_id_lake" in joined.columns:
        if not from_labels:
            _refuse_contradictions(joined)
        patient = pl.coalesce("patient_id", "patient_id_lake").alias("patient_id")
        joined = joined.with_columns(patient).drop("patient_id_lake")
    _refuse_unknown_patients(joined)
    if not distinct_ids:
        _refuse_near_patients(joined)
    return joined


def _refuse_contradictions(joined: pl.DataFrame) -> None:
    """Refuse slides whose patient is one in the labels and another in the lake."""
    differ = joined.filter(pl.col("patient_id") != pl.col("patient_id_lake"))
    if differ.is_empty():
        return
    rows = differ.select("slide_id", "patient_id", "patient_id_lake").unique().sort("slide_id")
    shown = [
        f"{slide}: {ours} in the labels, {lakes} in the lake"
        for slide, ours, lakes in rows.iter_rows()
    ]
    slides = rows["slide_id"].n_unique()
    msg = (
        f"{counted(slides, 'slide', 'have')} another patient in the labels than in the lake: "
        f"{listing(shown)}; "
        "correct the labels, or leave the patient out of them, or say by --patients-from labels "
        "(patients_from='labels' in Python) that the labels are right"
    )
    raise CohortError(msg)


def _refuse_unknown_patients(joined: pl.DataFrame) -> None:
    """Refuse slides without a patient, and slides that the labels assign to two patients."""
    orphans = sorted(joined.filter(pl.col("patient_id").is_null())["slide_id"].unique())
    if orphans:
        msg = (
            f"{counted(len(orphans), 'labelled slide', 'have')} no patient, neither in the labels "
            f"nor in the lake: {listing(orphans)}; add a patient_id column to the labels (equal to "
            "slide_id where every slide is a patient of its own)"
        )
        raise CohortError(msg)
    owners = joined.group_by("slide_id").agg(pl.col("patient_id").n_unique().alias("n"))
    shared = sorted(owners.filter(pl.col("n") > 1)["slide_id"])
    if shared:
        msg = (
            f"{counted(len(shared), 'slide', 'belong')} to more than one patient: "
            f"{listing(shared)}; correct patient_id in the labels"
        )
        raise CohortError(msg)


def _refuse_near_patients(joined: pl.DataFrame) -> None:
    """Refuse patient ids that differ from another by case, blanks or Unicode form only."""
    from featurestore.usertables import refuse_near, tables_raise

    with tables_raise(CohortError):
        refuse_near(joined["patient_id"].unique(), "patients of the labels and the lake")
