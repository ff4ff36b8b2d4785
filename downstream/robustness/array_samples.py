"""The passport of features that are no column of a lake, such as a student's on held-out tiles.

Shape letters: N samples, D width of the features.
"""

from collections.abc import Sequence
from typing import Any

import polars as pl
from numpy.typing import NDArray

from downstream.robustness.column_passport import Passport, SampleCodes, column_passport
from downstream.robustness.robustness_samples import check_samples, draw_in_turn
from downstream.robustness.robustness_spec import RobustnessOptions


def array_passport(
    x_ND: NDArray[Any],
    labels: Sequence[int],
    sites: Sequence[str],
    patients: Sequence[str],
    *,
    classes: Sequence[str],
    column: str,
    options: RobustnessOptions,
) -> Passport:
    """Measure how far features know classes from sites; see `column_passport`.

    Args:
        x_ND: features of the samples.
        labels: index of the class of each sample.
        sites: site of each sample.
        patients: patient of each sample.
        classes: names of the classes.
        column: where the sites come from, for messages.
        options: settings of the measures; at most `samples` are drawn.

    Raises:
        RobustnessError: One site, one class, or classes and sites that go wholly together.
    """
    rows = pl.DataFrame(
        {"label": labels, "site": sites, "patient_id": patients, "row": range(len(sites))},
        schema={"label": pl.Int64, "site": pl.String, "patient_id": pl.String, "row": pl.Int64},
    )
    drawn = draw_in_turn(rows, options.samples, seed=options.seed)
    check_samples(drawn, classes, column)
    codes = SampleCodes.of(
        drawn["label"].to_list(), drawn["site"].to_list(), drawn["patient_id"].to_list()
    )
    return column_passport(x_ND[drawn["row"].to_numpy()], codes, options)
