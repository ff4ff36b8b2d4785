"""SQL over a lake: the same answers as SQLite, errors that help, and answers as files."""

import csv
import io
import json
import sqlite3
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from featurestore import Lake, LakeConfig, LakeError, create_lake, open_lake, query
from featurestore.query.answers import answer_bytes, answer_format, write_answer
from tests.worlds.command_lines import Slidelake
from tests.worlds.small_lake import add_slides, add_teacher


@pytest.fixture(scope="module")
def filled_lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """Return three slides of 5, 3 and 4 tiles, two of them with features of `t:1`."""
    lake = create_lake(tmp_path_factory.mktemp("filled_lake") / "lake", LakeConfig(mpps=(0.5, 2.0)))
    lake = add_teacher(add_slides(lake, {"a": 5, "it's": 3}), "t:1")
    return add_slides(lake, {"c": 4})


# ---------------------------------------------------------------------- answers

SAME_IN_SQLITE = [
    "SELECT slide_id, count(*) AS n FROM tiles_mpp0_5 GROUP BY slide_id ORDER BY slide_id",
    "SELECT slide_id FROM slides WHERE slide_id = 'it''s'",
    "SELECT x, y FROM tiles_mpp2_0 WHERE slide_id = 'a' AND x BETWEEN 256 AND 768 ORDER BY x",
    "SELECT count(*) FROM tiles_mpp0_5 WHERE slide IN (0, 2) AND NOT (grid_x = 1 OR grid_x > 2)",
    "SELECT tile_id FROM tiles_mpp0_5 WHERE slide_id > 'a' ORDER BY tile_id LIMIT 3",
    "SELECT count(*) FROM tiles_mpp0_5 WHERE tissue > 0.8",
    "SELECT count(*) FROM tiles_mpp0_5 WHERE slide_id LIKE '%t%'",
    """
    SELECT s.slide_id, max(t.x) FROM slides AS s JOIN tiles_mpp0_5 AS t ON s.slide = t.slide
    WHERE s.state = 'ready' GROUP BY s.slide_id HAVING count(*) > 3 ORDER BY s.slide_id
    """,
    """
    SELECT slide_id FROM catalog WHERE mpp = 0.5 AND teacher IS NULL AND slide_id NOT IN
    (SELECT slide_id FROM catalog WHERE mpp = 0.5 AND teacher IS NOT NULL) ORDER BY 1
    """,
]


@pytest.mark.parametrize("sql", SAME_IN_SQLITE)
def test_answers_are_those_of_sqlite(filled_lake: Lake, sql: str) -> None:
    with sqlite3.connect(":memory:") as other:
        frames = {
            "slides": filled_lake.slides(),
            "catalog": filled_lake.catalog(),
            "tiles_mpp0_5": filled_lake.tiles(mpp=0.5).drop("t:1"),
            "tiles_mpp2_0": filled_lake.tiles(mpp=2.0).drop("t:1"),
        }
        for name, lazy in frames.items():
            frame = lazy.collect()
            other.execute(f"CREATE TABLE {name} ({', '.join(frame.columns)})")
            marks = ", ".join("?" * frame.width)
            other.executemany(f"INSERT INTO {name} VALUES ({marks})", frame.rows())
        expected = other.execute(sql).fetchall()
    other.close()
    assert expected
    assert query(filled_lake, sql).rows() == expected


def test_teachers_are_columns(filled_lake: Lake) -> None:
    frame = query(filled_lake, "SELECT \"t:1\" FROM tiles_mpp0_5 WHERE slide_id = 'a' LIMIT 2")
    assert frame.schema == {"t:1": pl.Array(pl.Float16, 6)}
    bag = filled_lake.bag("a", "t:1", mpp=0.5)
    np.testing.assert_array_equal(frame["t:1"].to_numpy(), bag.features[:2])


# ---------------------------------------------------------------------- errors that help


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        ("SELECT slideid FROM slides", "did you mean 'slide_id'"),
        ("SELECT slide_id FROM slides WHERE stat = 'ready'", "did you mean 'state'"),
        ("SELECT count(*) FROM tiles_mpp0_5 GROUP BY slideid", "did you mean 'slide_id'"),
        ("SELECT slide_id FROM slides ORDER BY patient", "did you mean 'patient_id'"),
        ("SELECT t.slideid FROM slides AS t", "did you mean 'slide_id'"),
        ("SELECT SLIDE_ID FROM slides", "did you mean 'slide_id'"),
        ('SELECT "t1" FROM tiles_mpp0_5', "did you mean 't:1'"),
        ("SELECT * FROM tiles_mpp05", "did you mean 'tiles_mpp0_5'"),
        ("SELECT * FROM tiles", "tables: slides, catalog, tiles_mpp0_5, tiles_mpp2_0"),
        ("SELECT tile_mpp0_5.x FROM tiles_mpp0_5", "did you mean 'tiles_mpp0_5'"),
        ("SELECT slide.state FROM slides", "'state' was not found; tables: slides"),
        ("SELECT nothing_like_it FROM slides", "tables: slides, catalog"),
        ("SELECT slide_id FROM slides WHERE", "this is not SQL: Expected: an expression"),
        ("which slides failed?", "begins with 'which'; a question begins with SELECT"),
        ("", "the query is empty"),
        ("-- SELECT", "the query is empty"),
        ("SELECT 1; SELECT 2", "one (and only one) statement"),
        ("SELECT wrong(slide) FROM slides", "unsupported function 'wrong'"),
        ("DELETE FROM slides", "begins with 'DELETE'"),
        ("DROP TABLE slides", "begins with 'DROP'"),
        ("CREATE TABLE a AS SELECT * FROM slides", "begins with 'CREATE'"),
    ],
)
def test_wrong_questions_are_explained(filled_lake: Lake, sql: str, says: str) -> None:
    with pytest.raises(LakeError) as caught:
        query(filled_lake, sql)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "source", ["read_csv('F')", 'Read_CSV ("F")', "\"read_csv\"('F')", "read_csv/* */('F')"]
)
@pytest.mark.parametrize("sql", ["SELECT * FROM {}", "WITH q AS (SELECT * FROM {}) FROM q"])
def test_files_outside_of_the_lake_are_not_read(
    filled_lake: Lake, tmp_path: Path, sql: str, source: str
) -> None:
    file = tmp_path / "secret.csv"
    file.write_text("word\nsesame\n")
    text = sql.format(source.replace("F", str(file)))
    with pytest.raises(LakeError, match=r"SQL sees the tables of the lake .* no files"):
        query(filled_lake, text)


@pytest.mark.parametrize("source", ["'F'", '"F"', "F", "read_parquet_('F')", "glob('F')"])
def test_a_path_is_no_table(filled_lake: Lake, tmp_path: Path, source: str) -> None:
    file = tmp_path / "secret.parquet"
    pl.DataFrame({"word": ["sesame"]}).write_parquet(file)
    with pytest.raises(LakeError):
        query(filled_lake, f"SELECT * FROM {source.replace('F', str(file))}")


def test_words_in_texts_mean_nothing(filled_lake: Lake) -> None:
    sql = "SELECT count(*) FROM slides WHERE slide_id <> 'read_csv(''a'')' -- read_csv('b')"
    assert query(filled_lake, sql).rows() == [(3,)]


# ---------------------------------------------------------------------- answers as files

ODD = pl.DataFrame(
    {"s": ['comma, "quote"\nline', "", None], "n": [1, None, 3], "f": [0.1, -1e-9, None]}
)


def test_csv_is_read_back_by_the_csv_module() -> None:
    lines = list(csv.reader(io.StringIO(answer_bytes(ODD, "csv").decode())))
    assert lines == [
        ["s", "n", "f"],
        ['comma, "quote"\nline', "1", "0.1"],
        ["", "", "-1e-9"],
        ["", "3", ""],
    ]


def test_json_is_rows_and_holds_features(filled_lake: Lake) -> None:
    assert json.loads(answer_bytes(ODD, "json")) == ODD.to_dicts()
    frame = query(filled_lake, 'SELECT slide_id, "t:1" FROM tiles_mpp0_5 LIMIT 1')
    [row] = json.loads(answer_bytes(frame, "json"))
    np.testing.assert_array_equal(
        np.float16(row["t:1"]), filled_lake.bag("a", "t:1", mpp=0.5).features[0]
    )


def test_parquet_keeps_types_and_bits(filled_lake: Lake, tmp_path: Path) -> None:
    frame = query(filled_lake, "SELECT * FROM tiles_mpp0_5")
    write_answer(frame, "parquet", tmp_path / "a.parquet")
    assert pl.read_parquet(tmp_path / "a.parquet").equals(frame)
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]


def test_csv_of_features_is_refused_by_name(filled_lake: Lake) -> None:
    frame = query(filled_lake, "SELECT * FROM tiles_mpp0_5")
    with pytest.raises(LakeError, match=r"CSV can't hold t:1 .* parquet or json, or select other"):
        answer_bytes(frame, "csv")


@pytest.mark.parametrize(
    ("form", "out", "is_"),
    [
        (None, None, "table"),
        (None, "a.csv", "csv"),
        (None, "a.JSON", "json"),
        ("json", "a.txt", "json"),
        ("table", "a.txt", "table"),
    ],
)
def test_format_is_given_or_named(
    tmp_path: Path, form: str | None, out: str | None, is_: str
) -> None:
    assert answer_format(form, tmp_path / out if out else None) == is_


# ---------------------------------------------------------------------- the command


def test_command_prints_each_format(filled_lake: Lake, slidelake: Slidelake) -> None:
    sql = "SELECT slide_id, count(*) AS n FROM tiles_mpp0_5 GROUP BY slide_id ORDER BY slide_id"
    words = ("query", filled_lake.uri, sql)
    assert "│ it's     ┆ 3   │" in slidelake(*words).stdout
    assert slidelake(*words, "--format", "csv").stdout == "slide_id,n\na,5\nc,4\nit's,3\n"
    rows = json.loads(slidelake(*words, "--format", "json").stdout)
    assert rows[0] == {"slide_id": "a", "n": 5}
    whole = json.loads(slidelake(*words, "--json").stdout)
    assert whole == {"columns": ["slide_id", "n"], "rows": [["a", 5], ["c", 4], ["it's", 3]]}


def test_command_writes_files_and_reads_versions(
    filled_lake: Lake, tmp_path: Path, slidelake: Slidelake
) -> None:
    sql = "SELECT tile_id, \"t:1\" FROM tiles_mpp0_5 WHERE slide_id <> 'c'"
    out = tmp_path / "answer.parquet"
    done = slidelake("query", filled_lake.uri, sql, "--out", out, "--json")
    answer = json.loads(done.stdout)
    assert answer == {
        "out": str(out),
        "format": "parquet",
        "columns": ["tile_id", "t:1"],
        "rows": 8,
    }
    assert pl.read_parquet(out).equals(query(filled_lake, sql))
    count = "SELECT count(*) AS n FROM tiles_mpp0_5"
    old = next(v for v in range(1, 20) if tiles_at(filled_lake, v) == 8)
    words = ("query", filled_lake.uri, count, "--format", "csv")
    assert slidelake(*words).stdout == "n\n12\n"
    assert slidelake(*words, "--at", old).stdout == "n\n8\n"


def tiles_at(lake: Lake, version: int) -> int:
    return open_lake(lake.uri, version=version).tiles(mpp=0.5).collect().height


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--format", "parquet"), "--format parquet --out answer.parquet"),
        (("--format", "xlsx"), "there are: table, csv, json, parquet"),
        (("--out", "answer.xlsx"), "does not say which format"),
        (("--out", "no/such/folder/a.csv"), "does not exist"),
        (("--format", "csv"), "CSV can't hold t:1"),
        (("--format", "csv", "--json"), "leave out --json or --format csv"),
        (("--at", "99"), "99"),
    ],
)
def test_wrong_use_of_the_command(
    filled_lake: Lake, words: tuple[str, ...], says: str, slidelake: Slidelake
) -> None:
    done = slidelake("query", filled_lake.uri, "SELECT * FROM tiles_mpp0_5", *words, code=2)
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
