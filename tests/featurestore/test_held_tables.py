"""The tables that a committer holds are the newest ones, whatever changes them."""

import json
import threading
from pathlib import Path

import lance
import pyarrow as pa
import pytest
from lance import LanceOperation

from featurestore import Lake, LakeConfig, Store, create_lake
from featurestore.storage.side_by_side import side_by_side
from featurestore.tables.lance_held import held_by, held_tables
from featurestore.tables.lance_tables import (
    commit,
    keep_indexed,
    make_index,
    open_table,
    table_versions,
)
from featurestore.tables.schema import CATALOG, SLIDES, features_table, teacher_field
from tests.worlds.small_lake import add_slides, add_teacher, contents

FEATURES = features_table(0.5)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """Return a lake with two fragments of slides and of tiles, and a teacher."""
    lake = create_lake(tmp_path / "lake", LakeConfig(mpps=(0.5,)))
    return add_teacher(add_slides(add_slides(lake, {"a": 3}), {"b": 2}), "t")


def in_place(store: Store) -> None:
    """Change tables by each method of Lance that commits by itself."""
    features, slides = open_table(store, FEATURES), open_table(store, SLIDES)
    features.add_columns([teacher_field("u", 4, {}), pa.field("note", pa.string())])
    features.alter_columns({"path": "note", "name": "remark"})
    features.update_field_metadata({"remark": {"a": "b"}})
    features.drop_columns(["remark"])
    slides.update_config({"x": json.dumps([1])})
    make_index(store, SLIDES, "slide")
    open_table(store, SLIDES).drop_index("slide_idx")
    keep_indexed(store, SLIDES, fragments=1, rows=1 << 12)
    rows = open_table(store, SLIDES).to_table(filter="slide = 0")
    merge = open_table(store, SLIDES).merge_insert("slide")
    merge.when_matched_update_all().execute(rows)


def test_a_table_that_is_changed_in_place_is_held_at_its_new_version(lake: Lake) -> None:
    store = lake.store
    with lake.committer.exclusive() as committer:
        held = held_by(store)
        assert held is not None
        in_place(store)
        for rel in (FEATURES, SLIDES, CATALOG):
            assert open_table(store, rel).version == lance.dataset(store.url(rel)).version
        versions = {rel: table.version for rel, table in held.newest.items()}
        committer.apply([])
    assert lake.refreshed().version_of(FEATURES) == versions[FEATURES]
    assert lake.refreshed().version_of(SLIDES) == versions[SLIDES]
    assert held_by(store) is None


def test_a_table_is_opened_once_and_again_after_the_lock(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    open_dataset = lance.dataset

    def counted(uri: str, **options: object) -> lance.LanceDataset:
        opened.append(uri.rpartition("/")[2])
        return open_dataset(uri, **options)

    monkeypatch.setattr(lance, "dataset", counted)
    lake.committer.fail([{"slide_id": "c", "slide": 2, "uri": "c", "reason": "no"}])
    assert sorted(opened) == [CATALOG, FEATURES.partition("/")[2], SLIDES]
    opened.clear()
    lake.committer.fail([{"slide_id": "d", "slide": 3, "uri": "d", "reason": "no"}])
    assert len(opened) == 3


def test_what_others_commit_is_seen_by_a_commit_and_by_the_next_holder(lake: Lake) -> None:
    """A holder that lost its lock commits on top of the other's version, as Lance does."""
    store, before = lake.store, contents(lake)
    with held_tables(store):
        table = open_table(store, CATALOG)
        other = lance.dataset(store.url(CATALOG))
        lance.LanceDataset.commit(other, LanceOperation.Append([]), read_version=other.version)
        assert open_table(store, CATALOG).version == table.version
        new = commit(
            store, CATALOG, LanceOperation.Append([]), read_version=table.version, properties={}
        )
        assert new.version == table.version + 2
        assert open_table(store, CATALOG) is new
    assert table_versions(lance.dataset(store.url(CATALOG)))[-1] == new.version
    assert contents(lake.refreshed()) == before


def test_another_thread_and_another_lake_hold_nothing(lake: Lake, tmp_path: Path) -> None:
    other = create_lake(tmp_path / "other", LakeConfig(mpps=(0.5,)))
    seen: list[object] = []
    with held_tables(lake.store), held_tables(other.store):
        one, two = held_by(lake.store), held_by(other.store)
        thread = threading.Thread(target=lambda: seen.append(held_by(lake.store)))
        thread.start()
        thread.join()
    assert one is not None
    assert two is not None
    assert one is not two
    assert seen == [None]


def test_work_within_work_is_done_in_place() -> None:
    """No thread of the pool waits for the pool."""
    store = Store("s3://never/asked")

    def rows(number: int) -> list[tuple[int, str]]:
        return side_by_side(store, lambda at: (at, threading.current_thread().name), range(number))

    outcomes = side_by_side(store, rows, [2] * 40)
    assert [[at for at, _ in outcome] for outcome in outcomes] == [[0, 1]] * 40
    assert all(len({name for _, name in outcome}) == 1 for outcome in outcomes)
    with pytest.raises(ZeroDivisionError):
        side_by_side(store, lambda at: 1 // at, [1, 0])
    assert side_by_side(store, abs, []) == []
