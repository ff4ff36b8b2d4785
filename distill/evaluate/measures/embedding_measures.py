"""Measures of one embedding: fidelity to teachers, classes and retrieval of labelled tiles.

Pure functions of arrays; the lake is read elsewhere.

Shape letters: N tiles, D embedding, E a teacher's features.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from distill.errors import DistillError
from distill.evaluate.measures.class_scores import class_scores, mean_scores
from distill.evaluate.measures.readout import Ridge, chosen_ridges, linear_probe, nearest
from distill.evaluate.measures.similarity import (
    cka,
    cka_debiased,
    cosines,
    neighbours,
    overlap,
    retrieval,
)

NEIGHBOURS = 10
FEWEST_CKA = 4
NEAREST = (1, 10, 20)
MUCH_WORSE = 0.15  # gap in centred cosine between the best mpp and the worst

Array = npt.NDArray[np.floating]
Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]
Numbers = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class EmbeddedTiles:
    """One embedding of the tiles of one mpp.

    Attributes:
        x: embeddings [N, D].
        features: raw features [N, E], by teacher.
        patient: a number for each patient [N].
    """

    x: Array
    features: Mapping[str, Array]
    patient: Int64Array


Parts = Mapping[float, EmbeddedTiles]


def fidelity(train: Parts, held: Parts) -> dict[str, dict[float, Numbers]]:
    """Measure how well an embedding predicts each teacher's features, on held-out tiles, per mpp.

    One ridge is fitted from the embedding to a teacher's raw features, on training tiles of all
    mpps together, both around their means at each mpp: so it can't be better by recognising
    the mpp, and an encoder with another representation at each mpp is detected.

    Returns:
        Per teacher and mpp: `cosine` of read-out and truth; `baseline`, the cosine of the training
        tiles' mean feature at the mpp and truth; `centred`, the cosine after this mean is
        subtracted from both, 0 without skill; `r2`, the share of the squared distance from this
        mean that is explained; `cka`, `cka_debiased`, `knn_overlap` with the teacher and
        `knn_chance`; `tiles`, their number.
        All but the baseline and chance are better when higher. NaN where there are too few tiles:
        4 for CKA, more than 11 for neighbours.
    """
    teachers = list(next(iter(train.values())).features)
    means = {mpp: _means(part) for mpp, part in train.items()}
    targets = {
        name: np.concatenate([p.features[name] - means[mpp][name] for mpp, p in train.items()])
        for name in teachers
    }
    readouts = chosen_ridges(
        np.concatenate([part.x - means[mpp][""] for mpp, part in train.items()]),
        targets,
        np.concatenate([part.patient for part in train.values()]),
    )
    return {
        name: {
            mpp: {**_readout(part, name, readouts[name], means[mpp]), **_similarity(part, name)}
            for mpp, part in held.items()
        }
        for name in teachers
    }


def _means(part: EmbeddedTiles) -> dict[str, Float64Array]:
    """Return the mean features by teacher, and the mean embedding under the empty name."""
    means = {name: x.mean(axis=0, dtype=np.float64) for name, x in part.features.items()}
    return {**means, "": part.x.mean(axis=0, dtype=np.float64)}


def _readout(
    part: EmbeddedTiles, teacher: str, readout: Ridge, means: Mapping[str, Float64Array]
) -> Numbers:
    mean = means[teacher]
    truth_NE = part.features[teacher].astype(np.float64)
    guess_NE = readout(part.x - means[""]) + mean
    spread = float(np.square(truth_NE - mean).sum())
    error = float(np.square(truth_NE - guess_NE).sum())
    return {
        "cosine": float(cosines(guess_NE, truth_NE).mean()),
        "baseline": float(cosines(np.broadcast_to(mean, truth_NE.shape), truth_NE).mean()),
        "centred": float(cosines(guess_NE - mean, truth_NE - mean).mean()),
        "r2": 1 - error / spread if spread > 0 else float("nan"),
    }


def _similarity(part: EmbeddedTiles, teacher: str) -> Numbers:
    teacher_NE, count, unknown = part.features[teacher], len(part.x), float("nan")
    numbers = dict.fromkeys(("cka", "cka_debiased", "knn_overlap", "knn_chance"), unknown)
    if count >= FEWEST_CKA:
        numbers["cka"], numbers["cka_debiased"] = (
            cka(part.x, teacher_NE),
            cka_debiased(part.x, teacher_NE),
        )
    if count > NEIGHBOURS + 1:
        near = (neighbours(x, NEIGHBOURS) for x in (part.x, teacher_NE))
        numbers["knn_overlap"] = overlap(*near)
        numbers["knn_chance"] = NEIGHBOURS / (count - 1)
    return {**numbers, "tiles": float(count)}


def mode_switching(by_mpp: Mapping[float, Numbers]) -> Numbers | None:
    """Detect an embedding that represents a teacher much worse at one mpp; None for a single mpp.

    Returns:
        `best_mpp` and `worst_mpp` by centred cosine, the `gap` between them, and `flagged`: 1 where
        the gap is above 0.15, else 0. The gap of a PCA of the teachers shows how much of the gap
        comes from the tiles.
    """
    if len(by_mpp) < 2:
        return None
    best, worst = (f(by_mpp, key=lambda mpp: by_mpp[mpp]["centred"]) for f in (max, min))
    gap = by_mpp[best]["centred"] - by_mpp[worst]["centred"]
    return {
        "best_mpp": best,
        "worst_mpp": worst,
        "gap": gap,
        "flagged": float(gap > MUCH_WORSE),
    }


# ---------------------------------------------------------------------- labels


@dataclass(frozen=True, kw_only=True)
class LabelledEmbeddings:
    """One embedding of labelled tiles of one mpp.

    Attributes:
        x: embeddings [N, D].
        label: class of each tile [N].
        patient: a number for each patient [N].
    """

    x: Array
    label: Int64Array
    patient: Int64Array


def probes(train: LabelledEmbeddings, held: LabelledEmbeddings) -> dict[str, dict[str, Numbers]]:
    """Classify held-out tiles by a linear probe, and by the 1, 10 and 20 nearest training tiles.

    Returns:
        Per classifier (`linear`, `knn1`, ...) `balanced_accuracy` and `macro_f1`, each with
        `estimate`, `low` and `high`, a 95 % bootstrap interval over held-out patients.

    Raises:
        DistillError: the training tiles are of one class.
    """
    predicted = {"linear": linear_probe(train.x, train.label, train.patient, held.x)[0]}
    for k in NEAREST:
        predicted[f"knn{k}"] = nearest(train.x, train.label, held.x, k)
    return {name: class_scores(held.label, y, held.patient) for name, y in predicted.items()}


def retrieval_scores(
    held: LabelledEmbeddings, *, ks: Sequence[int] = (1, 3, 5)
) -> dict[str, Numbers]:
    """Score the retrieval of held-out tiles among those of other held-out patients.

    Returns:
        `acc@1`, `acc@3`, `acc@5` and `map`, each with `estimate`, `low`, `high` as in `probes`, and
        `queries`, the number of tiles with a class that another patient has too.

    Raises:
        DistillError: there is one patient, or no class that two patients have.
    """
    tile_scores = retrieval(held.x, held.label, held.patient, ks=ks)
    queries_with_answer = int((~np.isnan(tile_scores["ap"])).sum())
    if not queries_with_answer:
        msg = "retrieval needs a class that labelled tiles of two held-out patients have"
        raise DistillError(msg)
    tile_scores["map"] = tile_scores.pop("ap")
    queries = {
        "estimate": float(queries_with_answer),
        "low": float(queries_with_answer),
        "high": float(queries_with_answer),
    }
    return {**mean_scores(tile_scores, held.patient), "queries": queries}
