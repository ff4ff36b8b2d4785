"""Which slides a slide finds first among those of other patients, and whether they are right.

Shape letters: S slides, Q queries, D width of the features, K neighbours, C classes, R resamples.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from downstream.measures.class_measures import Measure, UndefinedMetricError

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
Flags = NDArray[np.bool_]

DEPTHS = (1, 3, 5)
VOTES = (3, 5)
NOBODY = -1


@dataclass(frozen=True, kw_only=True)
class Hits:
    """Whether queries found their class; a row per query.

    Attributes:
        any_of: by number of neighbours, whether one of them is of the query's class [Q].
        majority_of: by number of neighbours, whether most of them are [Q].
    """

    any_of: dict[int, Flags]
    majority_of: dict[int, Flags]


def ranked_slides(vector_SD: Floats, patient_S: Labels, query_Q: Labels, k: int) -> Labels:
    """Return the k slides nearest to each query by cosine, nearest first, without its own patient.

    Args:
        vector_SD: features of all slides, none all zero.
        patient_S: number of each slide's patient.
        query_Q: numbers of the slides that search.
        k: number of neighbours.

    Returns:
        Numbers of slides [Q, K]; -1 where other patients have fewer slides. Of equally near slides
        the first one comes first.
    """
    unit_SD = vector_SD / np.linalg.norm(vector_SD, axis=1, keepdims=True)
    ranked_QK = np.full((len(query_Q), k), NOBODY, np.int64)
    for row, query in enumerate(query_Q.tolist()):
        similarity_S = unit_SD @ unit_SD[query]
        similarity_S[patient_S == patient_S[query]] = -np.inf
        chosen = _greatest(similarity_S, k)
        chosen = chosen[np.isfinite(similarity_S[chosen])]
        ranked_QK[row, : len(chosen)] = chosen
    return ranked_QK


def _greatest(value_S: Floats, k: int) -> Labels:
    """Return the places of the k greatest values, greatest first, and of equal ones the first."""
    if k < len(value_S):
        least = np.partition(value_S, len(value_S) - k)[len(value_S) - k]
        places = np.flatnonzero(value_S >= least)
    else:
        places = np.arange(len(value_S))
    return places[np.argsort(-value_S[places], kind="stable")][:k]


def hits_of(ranked_QK: Labels, label_S: Labels, query_Q: Labels) -> Hits:
    """Return whether queries found their class among their nearest slides.

    Args:
        ranked_QK: see `ranked_slides`.
        label_S: class of each slide.
        query_Q: numbers of the slides that searched.
    """
    wanted_Q = label_S[query_Q]
    found_QK = np.where(ranked_QK == NOBODY, NOBODY, label_S[ranked_QK])
    return Hits(
        any_of={k: (found_QK[:, :k] == wanted_Q[:, None]).any(axis=1) for k in DEPTHS},
        majority_of={k: majority_votes(found_QK[:, :k]) == wanted_Q for k in VOTES},
    )


def majority_votes(class_QK: Labels) -> Labels:
    """Return the class of most neighbours of each query [Q]; of a tie, the one that is nearest.

    Args:
        class_QK: classes of the neighbours, nearest first; -1 where there is none.

    >>> majority_votes(np.array([[2, 0, 0], [2, 0, 1], [1, -1, -1]])).tolist()
    [0, 2, 1]
    """
    count_QK = (class_QK[:, :, None] == class_QK[:, None, :]).sum(axis=2)
    count_QK[class_QK == NOBODY] = 0
    # the first of the greatest counts is the nearest of the tied
    nearest_Q = count_QK.argmax(axis=1)
    return class_QK[np.arange(len(class_QK)), nearest_Q]


def share(label_Q: Labels, hit_Q: Flags) -> float:
    """Return the share of queries that are right."""
    del label_Q
    return float(hit_Q.mean())


def mean_share(label_Q: Labels, hit_Q: Flags) -> float:
    """Return the mean over classes of the share of queries that are right.

    Raises:
        UndefinedMetricError: There is no query.
    """
    if not len(label_Q):
        msg = "no query has a class"
        raise UndefinedMetricError(msg)
    return float(np.mean([hit_Q[label_Q == label].mean() for label in np.unique(label_Q)]))


def shares(w_RQ: Floats, label_Q: Labels, hit_Q: Flags) -> Floats:
    """Return `share` of many resamples [R], from how often each query was drawn."""
    del label_Q
    right_R: Floats = (w_RQ @ hit_Q.astype(np.float64)) / w_RQ.sum(axis=1)
    return right_R


def mean_shares(w_RQ: Floats, label_Q: Labels, hit_Q: Flags) -> Floats:
    """Return `mean_share` of many resamples [R]; NaN where a class was not drawn."""
    right_RC = []
    for label in np.unique(label_Q):
        of_class = label_Q == label
        drawn_R = w_RQ[:, of_class].sum(axis=1)
        right_R = w_RQ[:, of_class] @ hit_Q[of_class].astype(np.float64)
        right_RC.append(np.divide(right_R, drawn_R, out=np.full_like(right_R, np.nan),
                                  where=drawn_R > 0))  # fmt: skip
    mean_R: Floats = np.mean(right_RC, axis=0)
    return mean_R


def measures_of(hits: Hits) -> list[tuple[Measure, Flags]]:
    """Return the measures of a search with what each of them is computed from, in their order."""
    single = [(f"acc@{k}", hit_Q) for k, hit_Q in hits.any_of.items()]
    single += [(f"mvacc@{k}", hit_Q) for k, hit_Q in hits.majority_of.items()]
    rows = [(Measure(name=name, value=share, resampled=shares), hit_Q) for name, hit_Q in single]
    last = hits.majority_of[max(VOTES)]
    return [
        *rows,
        (Measure(name=f"mmv@{max(VOTES)}", value=mean_share, resampled=mean_shares), last),
    ]
