"""The listing of patients on a run's page, and its CSV: a row each, of every task."""

import io
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import accuracy_score

from downstream.report.finished_run import read_run
from downstream.report.listing import run_listing
from downstream.report.listing.listing import Entry, Listing, listing_parts
from downstream.report.listing.run_listing import patient_listings, predictions_csv
from downstream.report.run_page import write_run_page
from featurestore import Lake
from tests.worlds.painted_lake import Page, painted_lake
from tests.worlds.run_folders import write_run

ARMS = ("good / abmil", "noise / mean")


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    return painted_lake(tmp_path_factory.mktemp("lake") / "lake", patients=12)


def cells_of(listing: Listing, head: str) -> dict[str, Entry]:
    at = listing.heads.index(head)
    return {row[0].text: row[at] for row in listing.rows}


def test_wrong_predictions_are_those_that_scikit_learn_counts(lake: Lake) -> None:
    for task in ("binary", "multiclass"):
        run = read_run(lake, write_run(lake, task, run=f"mil-{task}", patients=12, attention=()))
        (listing,) = patient_listings(run)
        rows = run.once(ARMS[1])
        if task == "binary":
            called = np.where(rows["score"] >= rows["threshold"], "yes", "no")
        else:
            likeliest = np.array(rows["probabilities"].to_list()).argmax(axis=1)
            called = np.array(run.classes)[likeliest]
        wrong = sum(cell.is_wrong for cell in cells_of(listing, ARMS[1]).values())
        assert wrong == 12 - accuracy_score(rows["label"], called, normalize=False)
        assert wrong > 0
        assert [cell.text for cell in cells_of(listing, "label").values()] == rows[
            "label"
        ].to_list()


def test_a_patient_of_several_predictions_has_their_mean(lake: Lake) -> None:
    run = read_run(
        lake, write_run(lake, run="mil-mean", patients=12, repeats=2, seeds=2, attention=())
    )
    (listing,) = patient_listings(run)
    means = run.rows(ARMS[0]).group_by("patient_id").agg(pl.col("score").mean())
    for patient, score in means.iter_rows():
        assert cells_of(listing, ARMS[0])[patient].key == pytest.approx(score)
    csv = pl.read_csv(io.BytesIO(predictions_csv(run)))
    assert csv.height == 2 * 12 * 4
    assert csv["p_yes"].to_numpy() == pytest.approx(csv["score"].to_numpy())


@pytest.mark.parametrize(
    ("task", "head", "known", "columns"),
    [
        ("multilabel", "labels", "KRAS", {"p_KRAS", "label_TP53"}),
        ("regression", "true", "3.000", {"value", "found"}),
        ("survival", "months", "", {"time", "event", "risk", "high", "rank"}),
    ],
)
def test_other_tasks(lake: Lake, task: str, head: str, known: str, columns: set[str]) -> None:
    name = write_run(lake, task, run=f"mil-l-{task}", patients=12, attention=())
    write_run_page(lake, name)
    run = read_run(lake, name)
    (listing,) = patient_listings(run)
    assert len(listing.rows) == 12
    texts = [cell.text for cell in cells_of(listing, head).values()]
    assert any(known in text for text in texts)
    page = Page(lake.read_bytes(f"runs/{name}/report.html").decode())
    assert page.loads_nothing
    assert ("a", "predictions.csv") in page.links
    csv = pl.read_csv(Path(lake.store.path(f"runs/{name}/predictions.csv")))
    assert columns <= set(csv.columns)
    assert "curve" not in csv.columns
    if task == "survival":
        ranks = dict(run.rows(ARMS[0]).select("patient_id", "rank").iter_rows())
        shown = {patient: cell.key for patient, cell in cells_of(listing, ARMS[0]).items()}
        assert shown == pytest.approx(ranks)


def test_a_long_listing_says_how_many_are_left_out(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_listing, "MOST_CELLS", 10)
    name = write_run(lake, run="mil-long", patients=12, attention=())
    (listing,) = patient_listings(read_run(lake, name))
    assert (len(listing.rows), listing.left_out) == (5, 7)
    write_run_page(lake, name)
    words = Page(lake.read_bytes(f"runs/{name}/report.html").decode()).words
    assert "7 more are in the file of predictions." in words


def test_parts_repeat_the_first_columns() -> None:
    row = tuple(Entry(text=str(at), key=at) for at in range(9))
    whole = Listing(heads=tuple("abcdefghi"), numeric=(True,) * 9, rows=(row,))
    parts = listing_parts(whole, range(2), most=3)
    assert ["".join(part.heads) for part in parts] == ["abcde", "abfgh", "abi"]
    assert [cell.text for cell in parts[1].rows[0]] == ["0", "1", "5", "6", "7"]
