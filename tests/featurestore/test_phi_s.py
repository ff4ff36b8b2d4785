"""PHI-S and its matrices against the definition and scipy."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import hadamard as sylvester
from scipy.spatial.distance import pdist

from featurestore import LakeError, PhiS
from featurestore.stats.phi_s_rotation import NEARLY, hadamard, mixing, phi_s

# Of the usual encoders, and of students made of them.
USUAL = (192, 320, 384, 448, 512, 640, 768, 1024, 1152, 1280, 1536, 1792, 2048, 2560, 3072)

Float64Array = npt.NDArray[np.float64]


def features(rows: int, dim: int, *, rank: int | None = None, dead: int = 0) -> Float64Array:
    """Features [rows, dim] with a steep spectrum and a mean far from 0."""
    rng = np.random.default_rng(rows * dim)
    rank = rank or dim
    x = rng.normal(size=(rows, rank)) * np.exp(-np.arange(rank) / 5)
    x = x @ rng.normal(size=(rank, dim)) + rng.normal(3, 2, dim)
    x[:, :dead] = 1.5
    return x


def fitted(x: Float64Array) -> PhiS:
    return phi_s(x.mean(0), np.atleast_2d(np.cov(x.T, ddof=0)))


# ---------------------------------------------------------------------- matrices


@pytest.mark.parametrize("order", USUAL)
def test_usual_embeddings_have_a_hadamard_matrix(order: int) -> None:
    signs = hadamard(order)
    assert signs is not None
    assert signs.shape == (order, order)
    assert set(np.unique(signs)) == {-1, 1}
    whole = signs.astype(np.float32)  # sums of up to 3072 ones are exact
    assert (whole @ whole.T == order * np.eye(order, dtype=np.float32)).all()


def test_powers_of_two_are_those_of_scipy() -> None:
    for order in (1, 2, 4, 64, 512):
        np.testing.assert_array_equal(hadamard(order), sylvester(order))


def test_there_is_none_at_other_orders_than_1_2_and_multiples_of_4() -> None:
    assert [order for order in range(1, 40) if hadamard(order) is not None] == [
        1,
        2,
        *range(4, 40, 4),
    ]


@settings(max_examples=60, deadline=None)
@given(
    dim=st.sampled_from([1, 2, 3, 5, 6, 7, 12, 13, 30, 92, 101]),
    zeros=st.floats(0, 0.9),
    decades=st.floats(0, 12),
    seed=st.integers(0, 9999),
)
def test_mixing_makes_all_variances_equal(
    dim: int, zeros: float, decades: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    variances = 10 ** rng.uniform(-decades, 0, dim)
    variances[: int(zeros * dim)] = 0
    mixed = mixing(variances)
    np.testing.assert_allclose(mixed @ mixed.T, np.eye(dim), atol=1e-12)
    row_variances = np.diag(mixed @ np.diag(variances) @ mixed.T)
    np.testing.assert_allclose(row_variances, np.full(dim, variances.mean()), rtol=1e-9)


# ---------------------------------------------------------------------- PHI-S


@pytest.mark.parametrize("dim", [1, 2, 24, 30, 92, 101])
@pytest.mark.parametrize(
    ("rows", "rank", "dead"), [(300, None, 0), (20, None, 0), (300, 6, 0), (300, None, 1)]
)
def test_phi_s_is_what_it_is_defined_to_be(
    dim: int, rows: int, rank: int | None, dead: int
) -> None:
    if dim == dead:
        return
    x = features(rows, dim, rank=rank, dead=dead)
    transform = fitted(x)
    y = transform(x)
    assert transform.scale == pytest.approx(1 / np.sqrt(x.var(0).mean()), rel=1e-9)
    np.testing.assert_allclose(y.mean(0), 0, atol=1e-8)
    np.testing.assert_allclose(y.var(0), 1, rtol=1e-8)
    np.testing.assert_allclose(pdist(y), transform.scale * pdist(x), rtol=1e-7)
    np.testing.assert_allclose(transform.inverse(y), x, rtol=1e-9, atol=1e-9)
    unseen = features(50, dim) * 3
    np.testing.assert_allclose(transform.inverse(transform(unseen)), unseen, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "dim",
    [384, 512, 768, *(pytest.param(d, marks=pytest.mark.slow) for d in USUAL if d > 768)],
)
def test_phi_s_of_usual_embeddings(dim: int) -> None:
    x = features(600, dim).astype(np.float16).astype(np.float64)
    transform = fitted(x)
    y = transform(x)
    np.testing.assert_allclose(y.var(0), 1, rtol=1e-8)
    np.testing.assert_allclose(pdist(y[:50]), transform.scale * pdist(x[:50]), rtol=1e-7)
    # As a student in float32 would use it.
    y = transform(x).astype(np.float32)
    assert np.abs(transform.inverse(y) - x).max() < 1e-5 * np.abs(x).max()


def test_the_sign_of_an_eigenvector_is_that_of_its_first_large_entry() -> None:
    transform = fitted(features(200, 24))
    vectors = mixing(np.ones(24)).T @ transform.rotation
    for vector in vectors:
        large = np.abs(vector) >= NEARLY * np.abs(vector).max()
        assert vector[np.argmax(large)] > 0


def test_a_rotation_does_not_hang_on_the_last_digits() -> None:
    x = features(200, 24)
    noise = 1 + 1e-13 * np.random.default_rng(0).normal(size=x.shape)
    np.testing.assert_allclose(fitted(x * noise).rotation, fitted(x).rotation, atol=1e-6)


def test_phi_s_refuses_what_it_cant_transform() -> None:
    with pytest.raises(LakeError, match="all tiles have the same features"):
        phi_s(np.ones(4), np.zeros((4, 4)))
    transform = fitted(features(50, 6))
    with pytest.raises(LakeError, match="features have 5 channels, the rotation 6"):
        transform(np.ones((2, 5)))
    with pytest.raises(LakeError, match="features have 7 channels, the rotation 6"):
        transform.inverse(np.ones((2, 7)))
