"""Parts of an evaluation that need no lake: fidelity, robustness, cost, merging, PCA."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from sklearn.decomposition import PCA

from distill.errors import DistillError
from distill.evaluate.cost import amortisation
from distill.evaluate.embeddings import fit_pca
from distill.evaluate.measures.embedding_measures import (
    EmbeddedTiles,
    LabelledEmbeddings,
    fidelity,
    mode_switching,
    probes,
    retrieval_scores,
)
from distill.evaluate.measures.stain_robustness import (
    VARIANTS,
    embed_variants,
    pair_kind,
    robustness,
    twin_scores,
)
from distill.evaluate.seed_summary import merged_numbers, strict_json

RNG = np.random.default_rng(77)
Parts = dict[float, EmbeddedTiles]


def parts(tiles: int, seed: int, *, switched: bool = False) -> Parts:
    """An embedding that holds the teacher turned; at 2.0 mpp by another rotation if switched."""
    rng = np.random.default_rng(seed)
    turns = [np.linalg.qr(np.random.default_rng(n).normal(size=(16, 16)))[0] for n in (0, 1)]
    by_mpp = {}
    for number, mpp in enumerate((0.5, 2.0)):
        truth = 4 + rng.normal(size=(tiles, 16))
        x = truth @ turns[number if switched else 0] + 0.05 * rng.normal(size=(tiles, 16))
        patient = np.arange(tiles) // 10
        by_mpp[mpp] = EmbeddedTiles(x=x, features={"t": truth.astype(np.float16)}, patient=patient)
    return by_mpp


def test_fidelity_of_a_rotation_is_whole_and_of_noise_that_of_the_mean() -> None:
    train, held = parts(120, 0), parts(60, 1)
    good = fidelity(train, held)["t"]
    noise, new = (
        {
            mpp: EmbeddedTiles(x=RNG.normal(size=p.x.shape), features=p.features, patient=p.patient)
            for mpp, p in some.items()
        }
        for some in (train, held)
    )
    bad = fidelity(noise, new)["t"]
    for mpp in (0.5, 2.0):
        assert good[mpp]["cosine"] > 0.999
        assert good[mpp]["r2"] > 0.98
        assert good[mpp]["centred"] > 0.99
        assert good[mpp]["cka"] > 0.98
        assert good[mpp]["knn_overlap"] > 0.85
        truth = held[mpp].features["t"].astype(float)
        mean = train[mpp].features["t"].astype(float).mean(axis=0)
        expected = truth @ mean / np.linalg.norm(truth, axis=1) / np.linalg.norm(mean)
        assert good[mpp]["baseline"] == pytest.approx(expected.mean())
        assert bad[mpp]["cosine"] == pytest.approx(bad[mpp]["baseline"], abs=0.02)
        assert abs(bad[mpp]["r2"]) < 0.15
        assert bad[mpp]["knn_overlap"] == pytest.approx(bad[mpp]["knn_chance"], abs=0.06)


def test_mode_switching_between_mpps_is_flagged() -> None:
    """Failure 13: a student that speaks another language at each mpp, which few tiles decide."""
    train, held = parts(300, 0, switched=True), parts(60, 1, switched=True)
    train[2.0] = EmbeddedTiles(
        x=train[2.0].x[:60],
        features={"t": train[2.0].features["t"][:60]},
        patient=train[2.0].patient[:60],
    )
    switching = mode_switching(fidelity(train, held)["t"])
    same = mode_switching(fidelity(parts(300, 0), parts(60, 1))["t"])
    assert switching is not None
    assert same is not None
    assert (switching["best_mpp"], switching["worst_mpp"], switching["flagged"]) == (0.5, 2.0, 1)
    assert same["flagged"] == 0
    assert same["gap"] < 0.05 < 0.15 < switching["gap"]
    assert mode_switching({0.5: {"centred": 1.0}}) is None


def test_few_tiles_have_no_cka_and_no_neighbours() -> None:
    numbers = fidelity(parts(120, 0), parts(3, 1))["t"][0.5]
    assert np.isnan([numbers["cka"], numbers["cka_debiased"], numbers["knn_overlap"]]).all()
    assert numbers["tiles"] == 3
    assert numbers["cosine"] > 0.99


def test_probes_and_retrieval_need_labels_of_more_than_one_patient() -> None:
    rng = np.random.default_rng(0)
    label, patient = np.arange(80) % 2, np.arange(80) // 10
    x = rng.normal(size=(80, 5)) + 3 * label[:, None]
    held = LabelledEmbeddings(x=x, label=label, patient=patient)
    scores = probes(held, held)
    assert set(scores) == {"linear", "knn1", "knn10", "knn20"}
    assert scores["linear"]["balanced_accuracy"]["estimate"] > 0.95
    assert retrieval_scores(held)["acc@1"]["estimate"] > 0.9
    assert retrieval_scores(held)["queries"]["estimate"] == 80
    with pytest.raises(DistillError, match="two held-out patients"):
        retrieval_scores(LabelledEmbeddings(x=x, label=label, patient=np.zeros(80, int)))


# ---------------------------------------------------------------------- robustness


def batches(tiles: int = 24) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    pixels = rng.integers(60, 220, (tiles, 8, 8, 3)).astype(np.uint8).repeat(4, 1).repeat(4, 2)
    for start in range(0, tiles, 10):
        rows = slice(start, start + 10)
        yield np.arange(tiles)[rows], pixels[rows]


def by_key(pixels: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """An encoder that no stain and no scanner changes, since it goes by the tiles' keys."""
    del pixels
    return np.stack([np.random.default_rng(key).normal(size=32) for key in keys]).astype(np.float32)


def test_an_encoder_that_nothing_moves_is_wholly_robust() -> None:
    numbers = robustness(embed_variants({"own": by_key}, batches())["own"])
    for kind in ("all", "cross_scanner", "cross_stain", "cross_both", "stain strong"):
        assert numbers[kind]["cosine"] == pytest.approx(1, abs=1e-6)
        assert [numbers[kind][f"top{k}"] for k in (1, 3, 5, 10)] == [1, 1, 1, 1]
    assert numbers["board"]["score"] == pytest.approx(1, abs=1e-6)
    pairs = [
        numbers[kind]["pairs"] for kind in ("all", "cross_scanner", "cross_stain", "cross_both")
    ]
    assert pairs == [120, 24, 24, 72]


def test_a_random_encoder_retrieves_twins_by_chance() -> None:
    rng = np.random.default_rng(5)
    random = {key: rng.normal(size=(200, 64)).astype(np.float32) for key in VARIANTS}
    numbers = robustness(random)
    assert numbers["all"]["cosine"] == pytest.approx(0, abs=0.02)
    for k in (1, 3, 5, 10):
        assert numbers["chance"][f"top{k}"] == pytest.approx(k / 399)
        assert numbers["all"][f"top{k}"] == pytest.approx(k / 399, abs=0.012)
    assert numbers["board"]["score"] == pytest.approx(3 / 4 * 10 / 399, abs=0.012)


def test_an_encoder_of_mean_colour_is_moved_by_colour_and_not_by_blur() -> None:
    def colour(pixels: np.ndarray, keys: np.ndarray) -> np.ndarray:
        del keys
        mean_colour: np.ndarray = pixels.mean(axis=(1, 2)).astype(np.float32) - 128
        return mean_colour

    numbers = robustness(embed_variants({"colour": colour, "own": by_key}, batches())["colour"])
    assert numbers["scanner blur"]["top1"] > 0.9
    assert numbers["scanner blur"]["top1"] > numbers["scanner colour"]["top1"]
    assert numbers["stain strong"]["cosine"] < numbers["stain mild_1"]["cosine"]


def test_medians_are_over_pairs_of_variants_of_each_kind() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(size=(30, 16))
    moved = {
        key: (base + n / 8 * rng.normal(size=(30, 16))).astype(np.float32)
        for n, key in enumerate(VARIANTS)
    }
    pairs = list(itertools.combinations(VARIANTS, 2))
    numbers = robustness(moved)
    for kind in ("cross_scanner", "cross_stain", "cross_both"):
        of_kind = [twin_scores(moved[a], moved[b]) for a, b in pairs if pair_kind(a, b) == kind]
        assert numbers[kind]["top5"] == pytest.approx(np.median([n["top5"] for n in of_kind]))
        assert numbers[kind]["cosine"] == pytest.approx(np.median([n["cosine"] for n in of_kind]))


# ---------------------------------------------------------------------- the rest


@pytest.mark.parametrize("tiles", [200, 15], ids=["channels", "tiles"])
def test_pca_is_that_of_scikit_learn_on_standardised_teachers(tiles: int) -> None:
    rng = np.random.default_rng(0)
    features = {"a": rng.normal(3, 100, (tiles, 12)), "b": rng.normal(size=(tiles, 8)) * 1e-2}
    features["b"][:, 0] = 7.0  # a constant channel
    z = np.concatenate(list(features.values()), axis=1)
    spread = z.std(axis=0)
    z = (z - z.mean(axis=0)) / np.where(spread > 1e-6, spread, 1)
    expected = PCA(5, svd_solver="full").fit(z)
    components = fit_pca(features, 5)(features)
    signs = np.sign((components * expected.transform(z)).sum(axis=0))
    np.testing.assert_allclose(components * signs, expected.transform(z), atol=2e-3)
    assert fit_pca(features, 500)(features).shape[1] == min(19, tiles - 1)


def test_caching_costs_one_pass_of_the_teachers() -> None:
    trained = {"tiles": 1000.0, "epochs": 4.0, "seconds_per_tile": 0.01}
    costs = amortisation(trained, {"a": 0.05, "b": 0.04}, 0.009)
    assert costs["cached_s"][0] == pytest.approx(1000 * (0.09 + 0.009 + 0.01))
    assert costs["recomputed_s"][0] == pytest.approx(1000 * (0.09 + 0.01))
    at = costs["passes"].index(100)
    assert costs["cached_s"][at] == pytest.approx(1000 * (0.099 + 1.0))
    assert costs["recomputed_s"][at] == pytest.approx(1000 * 10.0)
    passes = costs["break_even_passes"]
    assert passes == pytest.approx(1.1)
    assert 0.099 + passes * 0.01 == pytest.approx(passes * 0.1)
    assert costs["most_saved"] == pytest.approx(10)


def test_seeds_are_merged_leaf_by_leaf() -> None:
    trees: list[dict[str, Any]] = [
        {"a": {"b": 1.0}, "c": {"estimate": 0.4, "low": 0.1, "high": 0.6}, "d": None},
        {"a": {"b": 2.0}, "c": {"estimate": 0.6, "low": 0.2, "high": 0.9}, "d": {"e": 3.0}},
        {"a": {"b": float("nan")}, "c": {"estimate": 0.5, "low": float("nan"), "high": 0.5}},
    ]
    assert merged_numbers(trees) == {
        "a": {"b": {"mean": 1.5, "min": 1.0, "max": 2.0}},
        "c": {"mean": pytest.approx(0.5), "min": 0.4, "max": 0.6, "low": 0.1, "high": 0.9},
        "d": {"e": {"mean": 3.0, "min": 3.0, "max": 3.0}},
    }
    assert merged_numbers([{"x": None}, {}]) == {"x": None}
    assert strict_json({0.5: [float("nan"), 1.23456789]}) == {"0.5": [None, 1.23457]}
