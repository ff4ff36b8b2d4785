"""The search measured on labelled slides, against scikit-learn's neighbours and plain counting."""

from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
from playwright.sync_api import Browser
from sklearn.metrics import recall_score
from sklearn.neighbors import NearestNeighbors

from downstream import CohortError, LabelledSearchOptions, evaluate_search
from downstream.retrieval.labelled_search import labelled_text
from downstream.retrieval.ranked_slides import (
    hits_of,
    majority_votes,
    mean_share,
    mean_shares,
    ranked_slides,
    share,
    shares,
)
from downstream.retrieval.search_query import RetrievalError
from featurestore import Lake, tile_ids
from tests.downstream.report.test_page_width import CUT, PAPER_PX
from tests.worlds.chromium import browser
from tests.worlds.training_lake import DIMS, feature_rows, make, row_of_cells

__all__ = ["browser"]  # the fixture

Labels = npt.NDArray[np.int64]
SIZES = {f"s{number:02d}": 4 + number % 3 for number in range(24)}
PATIENTS = {name: f"p{int(name[1:]) // 2}" for name in SIZES if int(name[1:]) < 20}
GRADES = {name: "abc"[int(name[1:]) // 2 % 3] for name in SIZES}


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """Twenty slides of ten patients, and four of nobody knows whom."""
    return make(tmp_path_factory.mktemp("labelled") / "lake", sizes=SIZES, patients=PATIENTS)


def table(folder: Path, **columns: object) -> str:
    """Write a table of labels; return its path."""
    rows = {"slide_id": list(SIZES), "grade": list(GRADES.values()), **columns}
    path = folder / "labels.csv"
    pl.DataFrame(rows).write_csv(path)
    return str(path)


def options(labels: str, *features: str, target: str = "grade") -> LabelledSearchOptions:
    return LabelledSearchOptions(labels=labels, target=target, features=features)


def neighbours_by_sklearn(
    vectors: npt.NDArray[np.float64], patients: list[str], query: int, k: int
) -> list[int]:
    """The k nearest of other patients, from an index of these alone."""
    others = [at for at, patient in enumerate(patients) if patient != patients[query]]
    found = NearestNeighbors(n_neighbors=k, metric="cosine").fit(vectors[others])
    places = found.kneighbors(vectors[[query]], return_distance=False)[0]
    return [others[place] for place in places]


def vectors_of(teacher: str) -> npt.NDArray[np.float64]:
    """The mean of each slide's tiles, from what the world gives every tile."""
    means = []
    for number, (_, tiles) in enumerate(SIZES.items()):
        cells = row_of_cells(tiles)
        keys = tile_ids(number, 0.5, cells[:, 0], cells[:, 1])
        means.append(feature_rows(keys, DIMS[teacher]).astype(np.float64).mean(axis=0))
    return np.stack(means)


def majority(labels: list[str]) -> str:
    """The most frequent, and of a tie the first."""
    counts = Counter(labels)
    return next(label for label in labels if counts[label] == max(counts.values()))


def test_measures_are_what_plain_counting_finds(lake: Lake, tmp_path: Path) -> None:
    answer = evaluate_search(lake.uri, options(table(tmp_path), "plain", "packed"))
    patients, labels = [PATIENTS.get(s, s) for s in SIZES], list(GRADES.values())
    assert (answer["slides"], answer["patients"], answer["queries"]) == (24, 14, 24)
    for teacher, column in answer["columns"].items():
        vectors = vectors_of(teacher)
        found = [
            [labels[at] for at in neighbours_by_sklearn(vectors, patients, query, 5)]
            for query in range(24)
        ]
        measures = {name: one["estimate"] for name, one in column["measures"].items()}
        for k in (1, 3, 5):
            expected = np.mean(
                [label in near[:k] for label, near in zip(labels, found, strict=True)]
            )
            assert measures[f"acc@{k}"] == pytest.approx(expected)
        votes = {k: [majority(near[:k]) for near in found] for k in (3, 5)}
        for k, vote in votes.items():
            expected = np.mean(np.array(vote) == np.array(labels))
            assert measures[f"mvacc@{k}"] == pytest.approx(expected)
        assert measures["mmv@5"] == pytest.approx(recall_score(labels, votes[5], average="macro"))
        for name, of_class in column["classes"].items():
            mine = [at for at in range(24) if labels[at] == name]
            right = np.mean([votes[5][at] == name for at in mine])
            assert (of_class["queries"], of_class["mvacc@5"]) == (len(mine), pytest.approx(right))
        tiles = sum(SIZES.values()) * DIMS[teacher] * 2
        assert column["bytes_per_slide"] == 4 * DIMS[teacher]
        assert column["tile_bytes_per_slide"] == round(tiles / 24)
        assert column["seconds_per_query"] > 0


def test_own_patients_slides_are_never_neighbours() -> None:
    rng = np.random.default_rng(0)
    vectors, patient = rng.standard_normal((40, 5)), rng.integers(0, 9, 40)
    query = np.arange(0, 40, 3)
    ranked = ranked_slides(vectors, patient, query, 6)
    for row, number in zip(ranked, query.tolist(), strict=True):
        names = [str(one) for one in patient]
        assert row.tolist() == neighbours_by_sklearn(vectors, names, number, 6)
    assert (patient[ranked] != patient[query][:, None]).all()


def test_few_other_slides_and_equal_ones() -> None:
    same = np.ones((4, 2))
    ranked = ranked_slides(same, np.array([0, 0, 1, 2]), np.array([0, 2]), 5)
    assert ranked.tolist() == [[2, 3, -1, -1, -1], [0, 1, 3, -1, -1]]
    hits = hits_of(ranked, np.array([1, 0, 0, 1]), np.array([0, 2]))
    assert {k: hit.tolist() for k, hit in hits.any_of.items()} == {
        1: [False, False],
        3: [True, True],
        5: [True, True],
    }
    assert hits.majority_of[5].tolist() == [False, False]  # of a tie the nearest; one in three
    nobody = np.full((1, 3), -1)
    assert majority_votes(nobody).tolist() == [-1]


def test_resampled_shares_are_those_of_repeated_rows() -> None:
    rng = np.random.default_rng(1)
    label, hit = rng.integers(0, 3, 30), rng.random(30) < 0.6
    weights = rng.multinomial(30, np.full(30, 1 / 30), size=20)
    pairs = ((share, shares), (mean_share, mean_shares))
    for value, resampled in pairs:
        expected = [value(np.repeat(label, w), np.repeat(hit, w)) for w in weights]
        found = resampled(weights.astype(np.float64), label, hit)
        np.testing.assert_allclose(found, expected)
    only_ones = np.where(label == 1, 1.0, 0.0)[None]
    assert np.isnan(mean_shares(only_ones, label, hit)).all()  # a class is not there


def test_slides_without_patients_are_told(lake: Lake, tmp_path: Path) -> None:
    answer = evaluate_search(lake.uri, options(table(tmp_path), "plain"))
    assert answer["unknown_patients"] == 4
    assert "4 slides of 24 have no known patient" in answer["warnings"][0]
    assert "warning: 4 slides of 24" in labelled_text(answer)
    named = table(tmp_path, patient_id=[PATIENTS.get(s, f"q{s[-1]}") for s in SIZES])
    known = evaluate_search(lake.uri, options(named, "plain"))
    assert (known["unknown_patients"], known["warnings"]) == (0, [])


def test_slides_of_a_patient_may_have_different_classes(lake: Lake, tmp_path: Path) -> None:
    sides = ["left" if int(name[1:]) % 2 else "right" for name in SIZES]
    answer = evaluate_search(lake.uri, options(table(tmp_path, side=sides), "plain", target="side"))
    assert answer["classes"] == {"left": 12, "right": 12}


def test_classes_of_one_patient_are_searched_but_do_not_search(lake: Lake, tmp_path: Path) -> None:
    rare = ["rare" if name in {"s00", "s01"} else GRADES[name] for name in SIZES]
    answer = evaluate_search(lake.uri, options(table(tmp_path, rare=rare), "plain", target="rare"))
    assert (answer["slides"], answer["queries"]) == (24, 22)
    assert any("slides of one patient only" in warning for warning in answer["warnings"])
    assert "rare" not in answer["columns"]["plain"]["classes"]


def test_unusable_labels_are_refused(lake: Lake, tmp_path: Path) -> None:
    names = table(tmp_path, own=list(SIZES))
    with pytest.raises(RetrievalError, match="no class of 'own' has slides of two patients"):
        evaluate_search(lake.uri, options(names, "plain", target="own"))
    twice = pl.DataFrame({"slide_id": ["s00", "s00"], "grade": ["a", "b"]})
    twice.write_csv(tmp_path / "twice.csv")
    with pytest.raises(CohortError, match="1 slide has conflicting values of 'grade': s00"):
        evaluate_search(lake.uri, options(str(tmp_path / "twice.csv"), "plain"))
    with pytest.raises(RetrievalError, match=r"name an \.html file"):
        evaluate_search(lake.uri, options(names, "plain"), out=tmp_path / "page.png")


def test_page_has_every_measure_and_warning(lake: Lake, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    answer = evaluate_search(lake.uri, options(table(tmp_path), "plain", "packed"), out=page)
    text = page.read_text()
    for column in answer["columns"].values():
        for one in column["measures"].values():
            assert f"{one['low']:.3f} to {one['high']:.3f}" in text
    assert "4 slides of 24 have no known patient" in text
    assert text.count("mvacc@5 as the mean over classes") == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "media"), [(1300, "screen"), (420, "screen"), (PAPER_PX, "print")]
)
def test_nothing_is_wider_than_the_page(
    lake: Lake, tmp_path: Path, browser: Browser, width: int, media: str
) -> None:
    kinds = ["Oligodendroglioma, IDH-mutant and 1p/19q-codeleted", "primary_of_no_known_site"]
    labels = table(tmp_path, kind=[kinds[int(name[1:]) // 2 % 2] for name in SIZES])
    file = tmp_path / "page.html"
    evaluate_search(lake.uri, options(labels, "plain", "packed", target="kind"), out=file)
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.emulate_media(media=media)  # type: ignore[arg-type]
    page.goto(file.as_uri())
    assert page.evaluate(CUT) == []
    assert page.inner_text("main").count(kinds[1]) == 2
    page.close()
