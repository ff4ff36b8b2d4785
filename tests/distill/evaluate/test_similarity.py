"""Similarity of embeddings, against formulas over kernels, scikit-learn and loops."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score
from sklearn.neighbors import NearestNeighbors

from distill.errors import DistillError
from distill.evaluate.measures import similarity
from distill.evaluate.measures.similarity import (
    average_precision,
    cka,
    cka_debiased,
    cosines,
    neighbours,
    overlap,
    retrieval,
    similarity_rows,
    top_k,
    twin_ranks,
    unit_rows,
)

RNG = np.random.default_rng(0)


def pair(tiles: int = 40, dims: tuple[int, int] = (7, 11)) -> tuple[np.ndarray, np.ndarray]:
    """Two embeddings that share something, with means far from 0."""
    rng = np.random.default_rng(1)
    one = rng.normal(3, 1, (tiles, dims[0]))
    return one, one @ rng.normal(size=dims) + 2 * rng.normal(-1, 1, (tiles, dims[1]))


def kernels(one: np.ndarray, other: np.ndarray) -> list[np.ndarray]:
    return [x @ x.T for x in (one, other)]


def test_cka_equals_its_definition_by_centred_kernels() -> None:
    one, other = pair()
    count = len(one)
    centre = np.eye(count) - 1 / count
    one_kernel, other_kernel = (centre @ k @ centre for k in kernels(one, other))
    expected = (one_kernel * other_kernel).sum() / np.sqrt(
        (one_kernel**2).sum() * (other_kernel**2).sum()
    )
    assert cka(one, other) == pytest.approx(expected, rel=1e-10)
    assert 0.1 < expected < 0.9


def hsic(one_kernel: np.ndarray, other_kernel: np.ndarray) -> float:
    """Song et al. 2012, equation 5, word for word."""
    n = len(one_kernel)
    one_kernel, other_kernel = one_kernel.copy(), other_kernel.copy()
    np.fill_diagonal(one_kernel, 0)
    np.fill_diagonal(other_kernel, 0)
    ones = np.ones(n)
    terms = (
        np.trace(one_kernel @ other_kernel)
        + (ones @ one_kernel @ ones) * (ones @ other_kernel @ ones) / ((n - 1) * (n - 2))
        - 2 / (n - 2) * (ones @ one_kernel @ other_kernel @ ones)
    )
    return float(terms / (n * (n - 3)))


@pytest.mark.parametrize("tiles", [4, 40])
def test_debiased_cka_equals_the_unbiased_estimate_over_kernels(tiles: int) -> None:
    one, other = pair(tiles)
    one_kernel, other_kernel = kernels(one, other)
    expected = hsic(one_kernel, other_kernel) / np.sqrt(
        hsic(one_kernel, one_kernel) * hsic(other_kernel, other_kernel)
    )
    assert cka_debiased(one, other) == pytest.approx(expected, rel=1e-8)


def test_cka_does_not_see_rotation_scale_and_shift() -> None:
    one, _ = pair()
    turn, _ = np.linalg.qr(RNG.normal(size=(7, 7)))
    for measure in (cka, cka_debiased):
        assert measure(one, 1e3 * one @ turn + 5) == pytest.approx(1, abs=1e-9)


def test_only_the_debiased_cka_is_0_for_unrelated_wide_embeddings() -> None:
    one, other = (RNG.normal(size=(60, 500)) for _ in range(2))
    assert cka(one, other) > 0.8
    assert abs(cka_debiased(one, other)) < 0.05


def test_a_constant_embedding_has_no_cka() -> None:
    one, _ = pair()
    constant = np.full((40, 3), 7.3, np.float16)
    assert np.isnan(cka(one, constant))
    assert np.isnan(cka_debiased(one, constant))


def test_cka_of_other_tiles_is_refused() -> None:
    with pytest.raises(DistillError, match="40 and 39 tiles"):
        cka(pair()[0], pair(39)[1])
    with pytest.raises(DistillError, match="3 tiles given"):
        cka_debiased(*pair(3))


def test_cosines_of_rows_and_of_nothing() -> None:
    one, other = pair(9, (5, 5))
    expected = [
        a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(one, other, strict=True)
    ]
    np.testing.assert_allclose(cosines(one, other), expected)
    assert cosines(np.zeros((1, 5)), other[:1]) == 0
    assert not unit_rows(np.zeros((1, 5))).any()


def test_neighbours_are_those_of_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity, "ROWS", 16)  # so that several blocks are needed
    one, _ = pair(50)
    near = NearestNeighbors(n_neighbors=6, metric="cosine").fit(one)
    expected = near.kneighbors(one, return_distance=False)[:, 1:]
    nearest = neighbours(one, 5)
    assert [set(row) for row in nearest.tolist()] == [set(row) for row in expected.tolist()]
    assert neighbours(one[:3], 5).shape == (3, 2)


def test_overlap_is_the_share_of_common_neighbours() -> None:
    one, other = (neighbours(x, 10) for x in pair(60))
    shared = [len(set(a) & set(b)) for a, b in zip(one.tolist(), other.tolist(), strict=True)]
    assert overlap(one, other) == pytest.approx(np.mean(shared) / 10)
    assert overlap(one, one) == 1
    many = np.random.default_rng(0).normal(size=(2, 800, 30))
    assert overlap(*(neighbours(x, 10) for x in many)) == pytest.approx(10 / 799, abs=0.006)


def test_average_precision_is_that_of_scikit_learn() -> None:
    for seed in range(20):
        hits = np.random.default_rng(seed).random(30) < 0.3
        hits[seed] = True
        scores = -np.arange(30.0)
        assert average_precision(hits) == pytest.approx(average_precision_score(hits, scores))


def test_retrieval_leaves_out_the_tiles_of_the_same_patient() -> None:
    x, _ = pair(45)
    label, patient = np.arange(45) % 3, np.arange(45) // 9
    label[-1] = 7  # a class that nobody else has
    scores = retrieval(x, label, patient, ks=(1, 4))
    for at in range(44):
        others = np.flatnonzero(patient != patient[at])
        cosine = [float(unit_rows(x)[at] @ unit_rows(x)[other]) for other in others]
        ranked = others[np.argsort(-np.array(cosine), kind="stable")]
        hits = label[ranked] == label[at]
        assert scores["acc@1"][at] == hits[0]
        assert scores["acc@4"][at] == hits[:4].any()
        assert scores["ap"][at] == pytest.approx(
            average_precision_score(hits, -np.arange(len(hits)))
        )
    assert np.isnan([values[44] for values in scores.values()]).all()


def test_twins_are_sought_among_all_tiles_of_both_variants() -> None:
    one = RNG.normal(size=(30, 8))
    other = one + 0.9 * RNG.normal(size=(30, 8))
    both = np.concatenate([one, other])
    cosine = unit_rows(both) @ unit_rows(both).T
    expected = []
    for at in range(60):
        twin = (at + 30) % 60
        order = [i for i in np.argsort(-cosine[at], kind="stable") if i != at]
        expected.append(order.index(twin) + 1)
    ranks = twin_ranks(one, other)
    assert ranks.tolist() == expected
    assert top_k(ranks, (1, 5)) == {"top1": np.mean(ranks <= 1), "top5": np.mean(ranks <= 5)}
    assert 0.1 < top_k(ranks, (1,))["top1"] < 1


def test_a_network_that_gives_the_same_for_all_tiles_retrieves_no_twin() -> None:
    same = np.ones((20, 4))
    assert cosines(same, same) == pytest.approx(np.ones(20))
    assert top_k(twin_ranks(same, same), (1, 10)) == {"top1": 0, "top10": 0}


def test_rows_of_similarity_come_in_blocks_that_hold_all() -> None:
    x, _ = pair(1100)
    parts = list(similarity_rows(x, x[:7]))
    assert [part.shape for _, part in parts] == [(512, 7), (512, 7), (76, 7)]
    np.testing.assert_allclose(
        np.concatenate([p for _, p in parts]), unit_rows(x) @ unit_rows(x[:7]).T
    )
