"""What is wrong with a cohort, and how ids are listed in messages."""

from collections.abc import Sequence

_SHOWN = 10
"""Most ids that one message lists."""


class CohortError(ValueError):
    """An error for labels that cannot be read, are contradictory, or do not match the lake.

    Examples:
        >>> sl.run_mil("my-lake", "labels.csv", "grades", ["student"], mpps=[0.5])
        Traceback (most recent call last):
            ...
        downstream.cohorts.cohort_errors.CohortError: the labels have no column 'grades'; ...
    """


def listing(ids: Sequence[str]) -> str:
    """Return ids as text for a message: the first ten, and the number of the others.

    >>> listing(["a", "b"])
    'a, b'
    """
    from featurestore import listing as list_names  # with it comes Lance

    return list_names(ids, most=_SHOWN)
