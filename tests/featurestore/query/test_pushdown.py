"""Queries reach Lance, and their answers equal those of the same queries on a collected frame."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import lance
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from featurestore.query import lance_scan
from featurestore.query.lance_scan import scan
from featurestore.query.pushdown import lance_filter
from tests.worlds.predicates import (
    COMPARISONS,
    EVERY,
    FLOAT_POOL,
    FLOATS,
    SCHEMA,
    Row,
    arrow,
    rows,
    trees,
)


def write(folder: str, parts: list[pa.Table], indexed: list[str]) -> lance.LanceDataset:
    """Return a table of one fragment per part; the last is in no index."""
    for number, part in enumerate(parts):
        if number == len(parts) - 1:
            for name in indexed:
                lance.dataset(folder).create_scalar_index(name, "BTREE")
        lance.write_dataset(
            part,
            folder,
            mode="append" if number else "create",
            data_storage_version="2.2",
            enable_stable_row_ids=True,
        )
    return lance.dataset(folder)


def agree(table: lance.LanceDataset, predicate: pl.Expr, columns: list[str], n: int) -> None:
    """Ask lazily and of the collected frame, with `head` after `filter` and before it."""
    lazy = scan(lambda: table, list(SCHEMA))
    whole = pl.DataFrame(table.to_table())
    try:
        expected = whole.filter(predicate)
    except pl.exceptions.PolarsError:
        event("no question")
        return
    assert lazy.filter(predicate).collect().equals(expected)
    # As it was written, before Polars gives types to literals and takes negations apart.
    early = lance_filter(predicate, SCHEMA)
    assert pl.DataFrame(table.to_table(filter=early)).filter(predicate).equals(expected)
    rows = lazy.filter(predicate).select(columns).head(n).collect()
    assert rows.equals(expected.select(columns).head(n))
    first = lazy.head(n).filter(predicate).select(columns).collect()
    assert first.equals(whole.head(n).filter(predicate).select(columns))


def answers(parts: int, indexed: list[str]) -> Callable[[], None]:
    """Return a property test: filters of tables of several parts agree with Polars."""

    # A table is written for every example.
    @settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(
        parts=st.lists(rows(), min_size=parts, max_size=3),
        predicates=st.lists(trees(), min_size=1, max_size=4),
        columns=st.lists(st.sampled_from(list(SCHEMA)), unique=True, min_size=1),
        n=st.integers(0, 6),
        deleted=st.none() | st.integers(-1, 3),
    )
    def test(
        parts: list[list[Row]],
        predicates: list[pl.Expr],
        columns: list[str],
        n: int,
        deleted: int | None,
    ) -> None:
        with TemporaryDirectory() as folder, mock.patch.object(lance_scan, "STEP_BYTES", 300):
            table = write(
                f"{folder}/t.lance", [arrow([*EVERY, *parts[0]]), *map(arrow, parts[1:])], indexed
            )
            if deleted is not None:
                table.delete(f"i = {deleted}")
            for predicate in predicates:
                agree(table, predicate, columns, n)

    return test


test_answers_are_those_of_the_collected_frame = answers(1, [])
test_answers_are_the_same_with_indices_and_rows_in_none = pytest.mark.slow(
    answers(2, ["i", "s", "d"])
)


@pytest.mark.slow
@pytest.mark.parametrize("name", FLOATS)
def test_every_float_compares_as_in_polars(tmp_path: Path, name: str) -> None:
    table = write(str(tmp_path / "t.lance"), [arrow(EVERY)], [])
    whole = pl.DataFrame(table.to_table())
    lazy = scan(lambda: table, list(SCHEMA))
    for value in FLOAT_POOL:
        literals = (pl.lit(value), pl.lit(value, dtype=pl.Float64))
        for compare, literal in itertools.product(COMPARISONS, literals):
            predicate = compare(pl.col(name), literal)
            assert lazy.filter(predicate).collect().equals(whole.filter(predicate)), predicate
        predicate = pl.col(name).is_in([value, 2.0])
        assert lazy.filter(predicate).collect().equals(whole.filter(predicate)), predicate


# ---------------------------------------------------------------------- what reaches Lance


class Spy:
    """A table that notes what its scanners are asked for, and the rows that they gave."""

    def __init__(self, table: lance.LanceDataset) -> None:
        self.table, self.schema, self.uri = table, table.schema, table.uri
        self.requests: list[dict[str, Any]] = []
        self.rows = 0

    def scanner(self, **options: Any) -> "Spy":  # noqa: ANN401
        self.requests.append(options)
        return self

    def to_batches(self) -> Any:  # noqa: ANN401
        for batch in self.table.scanner(**self.requests[-1]).to_batches():
            self.rows += batch.num_rows
            yield batch

    def frame(self) -> pl.LazyFrame:
        return scan(lambda: self, self.schema.names)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> lance.LanceDataset:
    """Return three rows: a value, another, and null, in every column."""
    values = {name: [1, 2, None] for name in ("tiny", "i", "k", "j", "u", "v")}
    numbers = {name: [0.5, float("nan"), None] for name in ("h", "f", "d")}
    others = {"s": ["a", "b", None], "t": ["b", "b", None], "b": [True, False, None]}
    cells = {**values, **numbers, **others, "e": [[1, 2], [3, 4], None]}
    part = arrow(list(zip(*(cells[name] for name in SCHEMA), strict=True)))
    return write(str(tmp_path_factory.mktemp("few") / "t.lance"), [part], [])


c, lit = pl.col, pl.lit
PUSHED: list[tuple[pl.Expr, str | None]] = [
    (c("i") == 3, "`i` = 3"),
    (lit(3) < c("i"), "`i` > 3"),
    (c("i") != -1, "`i` <> -1"),
    (c("i") == 2**40, None),
    (c("u") >= -1, None),
    (c("i") > 0.5, None),
    (c("i") == lit(3, dtype=pl.Int64), "`i` = 3"),
    (c("v") == 2**64 - 1, "`v` = 18446744073709551615"),
    (c("j") == -(2**63), None),
    (c("s") == "it's", "`s` = 'it''s'"),
    (c("s") >= "\\\n", "`s` >= '\\\n'"),
    (c("s").eq_missing("a"), "`s` = 'a'"),
    (c("i").ne_missing(3), "(`i` <> 3 OR `i` IS NULL)"),
    (~c("i").eq_missing(3), "(`i` <> 3 OR `i` IS NULL)"),
    (c("i").eq_missing(c("k")), None),
    (c("b"), "`b` = true"),
    (~c("b"), "`b` = false"),
    (c("b") == lit(value=False), "`b` = false"),
    (c("i").is_null(), "`i` IS NULL"),
    (~c("f").is_null(), "`f` IS NOT NULL"),
    (c("e").is_null(), None),
    # Floats: NaN is the greatest, literals are those of the column's type.
    (c("d") > 0.1, "(`d` > 0.1 OR isnan(`d`))"),
    (c("f") > 0.1, "(`f` > 0.10000000149011612 OR isnan(`f`))"),
    (c("h") <= 0.1, "`h` <= 0.0999755859375"),
    (c("d") == 0, "`d` IN (0.0)"),
    (c("d") >= 0, "(`d` >= 0.0 OR isnan(`d`))"),
    (c("d") <= -0.0, "`d` <= -0.0"),
    (c("d") == float("nan"), None),
    (c("d") < float("inf"), None),
    (c("f") < 1e39, None),
    (c("f").cast(pl.Float64) > 0.1, "(`f` > 0.09999999403953552 OR isnan(`f`))"),
    (c("f").cast(pl.Float64) <= 0.1, "`f` <= 0.10000000149011612"),
    (c("d").is_in([1.0, float("nan")]), "(isnan(`d`) OR `d` IN (1.0))"),
    (~c("d").is_in([1.0]), None),
    # Lists.
    (c("i").is_in([2, 1, None]), "`i` IN (2, 1)"),
    (c("i").is_in([2, None], nulls_equal=True), "(`i` IS NULL OR `i` IN (2))"),
    (c("i").is_in(pl.Series([1, 2**40])), "`i` IN (1)"),
    (c("i").is_in(pl.Series([1, 2]).implode()), "`i` IN (1, 2)"),
    (c("s").is_in(["a", "it's"]), "`s` IN ('a', 'it''s')"),
    (~c("s").is_in(["a", None]), "`s` NOT IN ('a')"),
    (~c("i").is_in([1], nulls_equal=True), None),
    (c("i").is_in([None]), "false"),
    (c("i").is_in([]), "false"),
    # Ranges.
    (c("i").is_between(1, 3), "(`i` >= 1 AND `i` <= 3)"),
    (c("i").is_between(1, 3, closed="left"), "(`i` >= 1 AND `i` < 3)"),
    (c("i").is_between(1, 3, closed="right"), "(`i` > 1 AND `i` <= 3)"),
    (c("i").is_between(1, 3, closed="none"), "(`i` > 1 AND `i` < 3)"),
    (~c("i").is_between(1, 3), "(`i` < 1 OR `i` > 3)"),
    (c("i").is_between(c("k"), 3), "(`i` >= `k` AND `i` <= 3)"),
    # Columns.
    (c("i") < c("k"), "`i` < `k`"),
    (c("i") == c("j"), "`i` = `j`"),
    (c("s") != c("t"), "`s` <> `t`"),
    (c("i") == c("u"), None),
    (c("f") < c("d"), None),
    # Parts that are not pushed are left out where that lets through more, never less.
    ((c("i") > 1) & c("s").str.starts_with("a"), "`i` > 1"),
    ((c("i") > 1) | c("s").str.starts_with("a"), None),
    (~((c("i") > 1) | c("s").str.starts_with("a")), "`i` <= 1"),
    (~((c("i") > 1) & c("s").str.starts_with("a")), None),
    (~((c("i") > 1) & c("s").is_null()), "(`i` <= 1 OR `s` IS NOT NULL)"),
    (((c("i") > 1) & (c("i") + 1 > 3)) | (c("s") == "a"), "(`i` > 1 OR `s` = 'a')"),
    ((c("i") > 1) ^ c("b"), None),
    (c("i").cast(pl.Int8) > 1, None),
    (pl.any_horizontal(c("i") > 1, c("k") > 1, c("j") > 1), "(`i` > 1 OR `k` > 1 OR `j` > 1)"),
    (lit(value=False), "false"),
    (lit(value=True), None),
]


@pytest.mark.parametrize(("predicate", "sql"), PUSHED, ids=[str(p[0]) for p in PUSHED])
def test_filter_is_given_to_lance(few: lance.LanceDataset, predicate: pl.Expr, sql: str) -> None:
    spy = Spy(few)
    rows = spy.frame().filter(predicate).collect()
    assert [request["filter"] for request in spy.requests] == [sql]
    assert rows.equals(pl.DataFrame(few.to_table()).filter(predicate))
    # As it is written, before Polars gives types to literals: as wide or wider, and valid.
    early = lance_filter(predicate, SCHEMA)
    assert early is None or few.count_rows(filter=early) >= rows.height


def test_head_is_given_to_lance(few: lance.LanceDataset) -> None:
    spy = Spy(few)
    assert spy.frame().head(2).collect().equals(pl.DataFrame(few.to_table()).head(2))
    assert [(request["limit"], request["filter"]) for request in spy.requests] == [(2, None)]
    assert spy.rows == 2


def test_only_columns_of_the_question_are_read(few: lance.LanceDataset) -> None:
    spy = Spy(few)
    rows = spy.frame().filter(c("i") > 1).select("t").collect()
    assert rows.to_dict(as_series=False) == {"t": ["b"]}
    assert [sorted(request["columns"]) for request in spy.requests] == [["i", "t"]]


WIDE_ROWS, WIDE_DIM = 200_000, 128


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> lance.LanceDataset:
    """51 MB in one fragment: 200 slides of 1,000 tiles."""
    at = np.arange(WIDE_ROWS)
    numbers = np.random.default_rng(0).normal(size=WIDE_ROWS * WIDE_DIM).astype(np.float16)
    part = pa.table(
        {
            "tile": at,
            "slide": (at // 1000).astype(np.int32),
            "name": [f"tile {n}" for n in at],
            "teacher": pa.FixedSizeListArray.from_arrays(pa.array(numbers), WIDE_DIM),
        }
    )
    return write(str(tmp_path_factory.mktemp("wide") / "t.lance"), [part], [])


def bytes_read(ask: Callable[[], object]) -> int:
    """Return the bytes that this process reads from files meanwhile, as Linux counts them."""

    def count() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    before = count()
    ask()
    return count() - before


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="Linux counts bytes here")
@pytest.mark.parametrize(
    "predicate",
    [
        c("slide") == 150,
        c("tile").is_between(70_000, 70_999),
        c("slide") >= 3,
        c("name").str.ends_with("7"),
        (c("tile") * 3) % 7 == 1,
        c("teacher").is_not_null(),
    ],
    ids=str,
)
def test_reading_stops_when_enough_is_found(wide: lance.LanceDataset, predicate: pl.Expr) -> None:
    lazy = scan(lambda: wide, wide.schema.names)
    whole = WIDE_ROWS * WIDE_DIM * 2
    assert bytes_read(lambda: lazy.collect()) >= whole
    frames = []
    read = bytes_read(lambda: frames.append(lazy.filter(predicate).head(5).collect()))
    assert frames[0].equals(pl.DataFrame(wide.to_table()).filter(predicate).head(5))
    assert read < whole / 5


def test_all_rows_of_a_slide_are_read_alone(wide: lance.LanceDataset) -> None:
    spy = Spy(wide)
    rows = spy.frame().filter(c("slide") == 150).collect()
    assert rows.equals(pl.DataFrame(wide.to_table().slice(150_000, 1000)))
    assert spy.rows == 1000


# ---------------------------------------------------------------------- odd questions


LONG = [
    c("tile").is_in(range(0, 60_000, 3)),
    ~c("tile").is_in(range(0, 60_000, 3)),
    c("name").is_in([f"tile {n}" for n in range(20_000)]),
    pl.any_horizontal(c("tile") == n for n in range(0, 3000, 2)),
    pl.all_horizontal(c("tile") != n for n in range(0, 3000, 2)),
]


@pytest.mark.parametrize("predicate", LONG, ids=["in", "not in", "texts", "or", "and"])
def test_long_questions_are_answered(wide: lance.LanceDataset, predicate: pl.Expr) -> None:
    lazy = scan(lambda: wide, ["tile", "name"])
    whole = pl.DataFrame(wide.to_table(columns=["tile", "name"]))
    assert lazy.filter(predicate).collect().equals(whole.filter(predicate))


def test_deep_questions_are_answered(few: lance.LanceDataset) -> None:
    predicate = c("i") == 1
    for n in range(120):
        predicate = (predicate | (c("j") == n + 2)) if n % 2 else (predicate & (c("i") != n + 9))
    whole = pl.DataFrame(few.to_table())
    lazy = scan(lambda: few, list(SCHEMA))
    assert lazy.filter(predicate).collect().equals(whole.filter(predicate))


def test_python_functions_are_answered(few: lance.LanceDataset) -> None:
    lazy = scan(lambda: few, list(SCHEMA))
    odd = c("i").map_elements({1, 5}.__contains__, return_dtype=pl.Boolean)
    assert lazy.filter(odd & (c("j") < 9)).collect()["i"].to_list() == [1]


def test_the_smallest_integer_is_found(tmp_path: Path) -> None:
    """SQL can't say -2**63, which is no reason to find none."""
    least = -(2**63)
    numbers = pl.DataFrame({"j": [least, least + 1, 0, None]}, schema={"j": pl.Int64})
    table = lance.write_dataset(numbers.to_arrow(), tmp_path / "t.lance")
    lazy = scan(lambda: table, ["j"])
    for listed in ([least], [least, 0], [0], [least + 1, 5]):
        for predicate in (pl.col("j").is_in(listed), ~pl.col("j").is_in(listed)):
            rows = lazy.filter(predicate).collect()
            assert rows.equals(numbers.filter(predicate)), predicate
            early = lance_filter(predicate, dict(numbers.schema))
            kept = pl.DataFrame(table.to_table(filter=early)).filter(predicate)
            assert kept.equals(numbers.filter(predicate))


@pytest.mark.parametrize("name", ["A-b:c@x", "two words", "größe", "SELECT", "'", ";--"])
def test_columns_of_any_name_can_be_asked_for(tmp_path: Path, name: str) -> None:
    table = lance.write_dataset(pa.table({name: [1, 2, 3]}), str(tmp_path / "t.lance"))
    lazy = scan(lambda: table, [name])
    assert lazy.filter(c(name) > 1).collect()[name].to_list() == [2, 3]


def test_empty_tables_are_answered(tmp_path: Path) -> None:
    table = lance.write_dataset(arrow([]), str(tmp_path / "t.lance"))
    lazy = scan(lambda: table, list(SCHEMA))
    for answer in (lazy, lazy.head(3), lazy.filter(c("i") == 1), lazy.filter(c("b")).head(2)):
        assert dict(answer.collect().schema) == SCHEMA
        assert answer.collect().is_empty()


# ---------------------------------------------------------------------- structures not known


class Stub:
    """Return an expression in the form for `lance_filter`: its JSON."""

    def __init__(self, text: str) -> None:
        self.meta, self.text = self, text

    def serialize(self, format: str) -> str:
        assert format == "json"
        return self.text


def paths(node: object, at: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    inner = (
        node.items()
        if isinstance(node, dict)
        else enumerate(node)
        if isinstance(node, list)
        else ()
    )
    return [at, *(path for key, value in inner for path in paths(value, (*at, key)))]


def put(node: Any, path: tuple[Any, ...], value: object) -> Any:  # noqa: ANN401
    if not path:
        return value
    parts = list(node) if isinstance(node, list) else dict(node)
    parts[path[0]] = put(parts[path[0]], path[1:], value)
    return parts


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["i", "Eq", "Column", ""]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["Column", "Literal", "Scalar", "Int32", "BinaryExpr", "Dyn"]), inner
        )
    ),
    max_leaves=4,
)


@settings(max_examples=300, deadline=None)
@given(tree=trees(), data=st.data())
def test_what_is_not_known_is_not_pushed(tree: pl.Expr, data: st.DataObject) -> None:
    node = json.loads(tree.meta.serialize(format="json"))
    path = data.draw(st.sampled_from(paths(node)))
    text = json.dumps(put(node, path, data.draw(JSON)))
    sql = lance_filter(Stub(text), SCHEMA)  # type: ignore[arg-type]
    assert sql is None or isinstance(sql, str)


@pytest.mark.parametrize("text", ["", "null", "[]", "{}", '{"Column": "nowhere"}', "[" * 5000])
def test_texts_that_are_no_predicate_are_not_pushed(text: str) -> None:
    assert lance_filter(Stub(text), SCHEMA) is None  # type: ignore[arg-type]
