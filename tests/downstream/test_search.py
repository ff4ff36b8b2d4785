"""`slidelake search`: tiles like a tile, slides like a slide, against scikit-learn."""

import io
import json
import re
from base64 import b64decode
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import NearestNeighbors
from typer.testing import CliRunner

from downstream.retrieval.recall import measure_recall, recall_at_k, sample_tiles
from downstream.retrieval.search import found_text, run_search
from downstream.retrieval.search_query import RetrievalError, nearest_rows, parse_like, tile_at
from featurestore import Bag, Lake, LakeError, build_index, create_lake, open_lake, tile_parts
from slidelake import app
from tests.worlds.training_lake import (
    CONFIG,
    SIZES,
    TILE_PX,
    add_features,
    cut,
    jpeg_of,
    make,
    register,
    row_of_cells,
)

PATIENTS = {"a": "p1", "b": "p1", "c": "p2", "d": "p3", "e": "p2"}  # nothing is known of f
TEACHER, DIM = "plain", 128
LEAST = 100


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six slides of 220 tiles, `plain` of 128 dims on all; `some` on all but slide c."""
    path = tmp_path_factory.mktemp("search") / "lake"
    add_features(make(path, patients=PATIENTS), {"some": 8}, without=["c"])
    return path


@pytest.fixture(scope="module")
def lake(folder: Path) -> Lake:
    return open_lake(folder)


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with an index of `plain`."""
    path = tmp_path_factory.mktemp("indexed") / "lake"
    build_index(make(path, patients=PATIENTS), TEACHER, mpp=0.5, least_rows=LEAST)
    return path


def all_features(lake: Lake) -> tuple[pl.DataFrame, npt.NDArray[np.float64]]:
    frame = lake.features(TEACHER, mpp=0.5).collect()
    return frame.select("slide_id", "tile_id", "x", "y"), frame[TEACHER].to_numpy().astype(float)


def place_of(lake: Lake, slide: str, row: int) -> str:
    bag = lake.bag(slide, TEACHER, mpp=0.5)
    return f"{slide}:{bag.x[row] + TILE_PX // 2},{bag.y[row] + TILE_PX - 1}"


# ---------------------------------------------------------------------- tiles


@pytest.mark.parametrize(("slide", "row"), [("a", 0), ("b", 63), ("d", 0), ("e", 44)])
def test_nearest_tiles_are_those_of_scikit_learn(
    lake: Lake, folder: Path, slide: str, row: int
) -> None:
    frame, x = all_features(lake)
    bag = lake.bag(slide, TEACHER, mpp=0.5)
    answer = run_search(str(folder), place_of(lake, slide, row), TEACHER, k=9)
    assert "results=[9 entries]" in repr(answer)
    assert answer["like"]["tile_id"] == bag.tile_id[row]
    near = NearestNeighbors(n_neighbors=220, metric="cosine", algorithm="brute").fit(x)
    distance, at = near.kneighbors(bag.features[row].astype(float)[None])
    keys = frame["tile_id"].to_numpy()[at[0]].tolist()
    true = dict(zip(keys, 1 - distance[0], strict=True))
    assert true.pop(int(bag.tile_id[row])) == pytest.approx(1)
    # Some are equally near but for the last digits, so it is their similarities that must agree.
    similarity = [r["similarity"] for r in answer["results"]]
    np.testing.assert_allclose(similarity, list(true.values())[:9], atol=1e-6)
    assert similarity == pytest.approx([true[r["tile_id"]] for r in answer["results"]], abs=1e-6)
    assert len({r["tile_id"] for r in answer["results"]}) == 9
    assert [r["rank"] for r in answer["results"]] == list(range(1, 10))
    for r in answer["results"]:
        tile_row = frame.row(by_predicate=pl.col("tile_id") == r["tile_id"], named=True)
        assert tile_row == {name: r[name] for name in tile_row}
        assert r["patient"] == PATIENTS.get(r["slide_id"], r["slide_id"])
        assert r["same_slide"] == (r["slide_id"] == slide)
        assert r["same_patient"] == (r["patient"] == PATIENTS.get(slide))
    assert (answer["search"], answer["index"], answer["recall"]) == ("exact", None, None)


def test_other_patients_only(lake: Lake, folder: Path) -> None:
    place = place_of(lake, "a", 3)
    every = run_search(str(folder), place, TEACHER, k=219)["results"]
    assert len(every) == sum(SIZES.values()) - 1
    others = run_search(str(folder), place, TEACHER, k=219, other_patients_only=True)["results"]
    assert [r["tile_id"] for r in others] == [r["tile_id"] for r in every if r["patient"] != "p1"]
    assert {r["slide_id"] for r in others} == {"c", "d", "e", "f"}


def test_index_is_used_and_its_recall_is_told(indexed: Path) -> None:
    lake = open_lake(indexed)
    place = place_of(lake, "e", 7)
    answer = run_search(str(indexed), place, TEACHER, k=5, recall_tiles=50)
    exact = run_search(str(indexed), place, TEACHER, k=5, exact=True)
    assert (answer["search"], exact["search"]) == ("index", "exact")
    assert answer["index"] == {"kind": "IVF_RQ", "indexed": 220, "tiles": 220}
    assert exact["index"] is exact["recall"] is None
    # Twenty times k are compared exactly: of 220 tiles these are half.
    assert [r["tile_id"] for r in answer["results"]] == [r["tile_id"] for r in exact["results"]]
    assert (answer["recall"]["k"], answer["recall"]["tiles"]) == (5, 50)
    assert answer["recall"]["mean"] >= 0.95
    assert "covers 220 of 220 tiles; recall@5 is" in found_text(answer)
    assert run_search(str(indexed), place, TEACHER, recall_tiles=0)["recall"] is None
    assert run_search(str(indexed), place, TEACHER)["recall"]["tiles"] == 16


def test_index_of_few_tiles_is_refused_before_anything_is_searched(folder: Path) -> None:
    with pytest.raises(LakeError, match=r"220 tiles have features .* from 20,000 on"):
        run_search(str(folder), "a", TEACHER, build=True)
    with pytest.raises(RetrievalError, match="built of the newest version; leave out version"):
        run_search(str(folder), "a", TEACHER, build=True, version=open_lake(folder).version)


# ---------------------------------------------------------------------- places


@given(st.data())
def test_tile_at_is_the_tile_that_covers_the_place(draws: st.DataObject) -> None:
    step, side = draws.draw(st.sampled_from([(10, 10), (4, 10), (10, 7)]))
    cells = sorted(draws.draw(st.sets(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1)))
    y, x = (np.array(cells) * step).T.astype(np.int32)
    bag = Bag(slide_id="s", tile_id=np.arange(len(x)), x=x, y=y, by_teacher={})
    place = draws.draw(st.tuples(st.integers(-5, 70), st.integers(-5, 70)))
    covering = [
        ((2 * x[i] + side - 2 * place[0]) ** 2 + (2 * y[i] + side - 2 * place[1]) ** 2, i)
        for i in range(len(x))
        if x[i] <= place[0] < x[i] + side and y[i] <= place[1] < y[i] + side
    ]
    if covering:
        assert tile_at(bag, place, side) == min(covering)[1]
    else:
        with pytest.raises(RetrievalError, match=r"covers .*the nearest of its"):
            tile_at(bag, place, side)


def test_names_of_slides_may_look_like_places() -> None:
    slide_ids = ["s", "s:1,2", "t:u"]
    assert parse_like("s", slide_ids) == ("s", None)
    assert parse_like("s:1,2", slide_ids) == ("s:1,2", None)
    assert parse_like("s:1,2:3,4", slide_ids) == ("s:1,2", (3, 4))
    assert parse_like("t:u:5,-6", slide_ids) == ("t:u", (5, -6))
    with pytest.raises(RetrievalError, match=r"slide 't:w' is not among the 3 .* mean 't:u'"):
        parse_like("t:w", slide_ids)


def test_wrong_questions_are_refused(lake: Lake, folder: Path, tmp_path: Path) -> None:
    uri = str(folder)
    with pytest.raises(RetrievalError, match=r"slide 'zz' is not among the 6 of this lake$"):
        run_search(uri, "zz", TEACHER)
    with pytest.raises(RetrievalError, match=r"no tile of slide 'a' .* covers 5000,0"):
        run_search(uri, "a:5000,0", TEACHER)
    with pytest.raises(LakeError, match=r"no features of 'plaid' at mpp 0\.5 .* plain, packed"):
        run_search(uri, "a", "plaid")
    with pytest.raises(LakeError, match="slide 'c' has no features of 'some' yet"):
        run_search(uri, "c:0,0", "some")
    with pytest.raises(RetrievalError, match="0 neighbours were asked for"):
        run_search(uri, "a", TEACHER, k=0)
    with pytest.raises(RetrievalError, match=r"x.jpg can't be written: name a .png or .html"):
        run_search(uri, "a", TEACHER, out=tmp_path / "x.jpg")


# ---------------------------------------------------------------------- slides


@pytest.mark.parametrize("slide", ["a", "d", "f"])
def test_nearest_slides_are_those_of_pooled_features(lake: Lake, folder: Path, slide: str) -> None:
    frame, x = all_features(lake)
    names = sorted(SIZES)
    means = np.array([x[(frame["slide_id"] == name).to_numpy()].mean(axis=0) for name in names])
    similarity = cosine_similarity(means)[names.index(slide)]
    order = [at for at in np.argsort(-similarity) if names[at] != slide]
    answer = run_search(str(folder), slide, TEACHER, k=3)
    assert [r["slide_id"] for r in answer["results"]] == [names[at] for at in order[:3]]
    np.testing.assert_allclose(
        [r["similarity"] for r in answer["results"]], similarity[order[:3]], atol=1e-6
    )
    others = run_search(str(folder), slide, TEACHER, other_patients_only=True)["results"]
    own = PATIENTS.get(slide, slide)
    kept = [names[at] for at in order if PATIENTS.get(names[at], names[at]) != own]
    assert [r["slide_id"] for r in others] == kept
    assert not any(r["same_patient"] for r in others)


def test_slides_without_features_are_not_compared(folder: Path) -> None:
    answer = run_search(str(folder), "a", "some")
    assert {r["slide_id"] for r in answer["results"]} == {"b", "d", "e", "f"}


def test_nearest_rows_keeps_the_order_of_equal_ones() -> None:
    rows = np.array([[0.0, 1], [2, 0], [1, 0], [-1, 0]])
    at, similarity = nearest_rows(np.array([3.0, 0]), rows, 3)
    assert at.tolist() == [1, 2, 0]
    np.testing.assert_allclose(similarity, [1, 1, 0])


# ---------------------------------------------------------------------- recall


def found_rows(query: int, distances: dict[int, float]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "query": [query] * len(distances),
            "tile_id": list(distances),
            "distance": list(distances.values()),
        }
    )


def test_recall_leaves_the_query_out_and_counts_ties() -> None:
    true = pl.concat(
        [
            found_rows(0, {7: 0.0, 1: 0.1, 2: 0.2, 3: 0.2}),
            found_rows(1, {8: 0.0, 1: 0.1, 2: 0.2, 3: 0.3}),
            found_rows(2, {9: 0.0}),
        ]
    )
    by_index = pl.concat(
        [
            found_rows(0, {7: 0.0, 1: 0.1, 3: 0.2, 5: 0.9}),  # 3 is as near as 2
            found_rows(1, {1: 0.1, 5: 0.25, 3: 0.3, 4: 0.4}),  # 2 was missed
            found_rows(2, {9: 0.0}),
        ]
    )
    keys = np.array([7, 8, 9])
    assert recall_at_k(by_index, true, keys, 2).tolist() == [1, 0.5, 1]
    assert recall_at_k(true, true, keys, 3).tolist() == [1, 1, 1]


def test_sampled_tiles_are_tiles_of_the_lake(lake: Lake) -> None:
    keys, vectors = sample_tiles(lake, TEACHER, mpp=0.5, n=150, seed=1)
    assert len(set(keys.tolist())) == 150
    frame, x = all_features(lake)
    at = {key: row for row, key in enumerate(frame["tile_id"].to_list())}
    np.testing.assert_array_equal(vectors, x[[at[key] for key in keys.tolist()]])
    # All slides are drawn from by their tiles, the first one behind deleted rows.
    assert set(np.unique(tile_parts(keys)[0])) == set(range(6)) - _undrawn(keys)
    assert measure_recall(lake, TEACHER, mpp=0.5, k=3, tiles=400)["tiles"] == 220


def _undrawn(keys: npt.NDArray[np.int64]) -> set[int]:
    """Slide d has a single tile, which may not be drawn."""
    return {3} - set(tile_parts(keys)[0].tolist())


# ---------------------------------------------------------------------- command and pictures


def search(*args: str) -> str:
    invocation = CliRunner().invoke(app, ["search", *args])
    assert invocation.exit_code == 0, invocation.output
    return invocation.stdout


def test_command_prints_lines_and_json(lake: Lake, folder: Path) -> None:
    place = place_of(lake, "b", 5)
    text = search(str(folder), "--like", place, "--features", TEACHER, "-k", "4")
    answer = json.loads(
        search(str(folder), "--like", place, "--features", TEACHER, "-k", "4", "--json")
    )
    lines = text.splitlines()
    assert len(lines) == 5
    for line, row in zip(lines, answer["results"], strict=False):
        assert f"{row['similarity']:.4f}  {row['slide_id']}:{row['x']},{row['y']}" in line
        assert ("(the query's" in line) == row["same_patient"]
    assert lines[-1].startswith("compared with all others; ")


def test_picture_shows_the_tiles_that_were_found(lake: Lake, folder: Path, tmp_path: Path) -> None:
    page, picture = tmp_path / "found.html", tmp_path / "found.png"
    args = [str(folder), "--like", place_of(lake, "a", 9), "--features", TEACHER, "--json"]
    answer = json.loads(search(*args, "--out", str(page)))
    assert answer["picture"] == str(page)
    text = page.read_text()
    shown = [b64decode(encoded) for encoded in re.findall(r"data:image/jpeg;base64,([^\"]+)", text)]
    keys = [answer["like"]["tile_id"], *(row["tile_id"] for row in answer["results"])]
    assert shown == [jpeg_of(key) for key in keys]
    assert "http" not in text
    search(*args, "--out", str(picture))
    with Image.open(picture) as image:
        assert image.width > 800
        colours = np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)
    first = np.asarray(Image.open(io.BytesIO(shown[0])).convert("RGB"))[4, 4].astype(int)
    assert np.abs(colours.astype(int) - first).max(axis=1).min() <= 2


def test_a_damaged_picture_costs_only_itself(tmp_path: Path) -> None:
    lake = make(tmp_path / "lake", patients=PATIENTS)
    args = [lake.uri, "--like", place_of(lake, "a", 9), "--features", TEACHER]
    args += ["--other-patients-only", "--json"]
    whole = json.loads(search(*args))["results"]
    other = lake.tiles_of(mpp=0.5, slide_ids=[whole[0]["slide_id"]])["shard"][0]
    shard = tmp_path / "lake" / other
    shard.write_bytes(shard.read_bytes()[:100])
    page = tmp_path / "found.html"
    assert json.loads(search(*args, "--out", str(page)))["results"] == whole
    text = page.read_text()
    gone = sum(row["slide_id"] == whole[0]["slide_id"] for row in whole)
    assert text.count("damaged: slidelake verify") == gone
    assert text.count("data:image/jpeg") == 1 + len(whole) - gone
    search(*args, "--out", str(tmp_path / "found.png"))


def test_slides_are_shown_by_their_thumbnails_or_an_empty_frame(tmp_path: Path) -> None:
    names = ["<b>x</b>", "a $x_1$ slide of a name that is longer than its picture", "c"]
    jpeg = io.BytesIO()
    Image.new("RGB", (700, 350), (200, 30, 90)).save(jpeg, "JPEG")
    lake = create_lake(tmp_path / "lake", CONFIG)
    cuts = [
        cut(lake, number, name, {0.5: row_of_cells(4)})
        for name, number in register(lake, names).items()
    ]
    shown = [replace(c, row={**c.row, "thumbnail": jpeg.getvalue()}) for c in cuts[:2]]
    lake.committer.commit_slides([*shown, cuts[2]])
    add_features(lake, {TEACHER: DIM})
    args = [lake.uri, "--like", names[0], "--features", TEACHER, "--out"]
    search(*args, str(tmp_path / "x.html"))
    text = (tmp_path / "x.html").read_text()
    assert text.count('class="none"') == 1
    assert "<b>x" not in text
    assert "&lt;b&gt;x&lt;/b&gt;" in text
    pictures = re.findall(r"data:image/jpeg;base64,([^\"]+)", text)
    assert [Image.open(io.BytesIO(b64decode(p))).size for p in pictures] == [(360, 180)] * 2
    search(*args, str(tmp_path / "x.png"))
    with Image.open(tmp_path / "x.png") as image:
        red = (np.abs(np.asarray(image.convert("RGB")).astype(int) - (200, 30, 90)) < 6).all(axis=2)
    assert red.mean() > 0.1
