"""The lake without slides: keys, shards, commits, columns, queries, statistics."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore import (
    ColumnFile,
    DamageError,
    FormatError,
    IdentityError,
    Lake,
    LakeConfig,
    LakeError,
    LakeMissingError,
    Moments,
    ShardReader,
    ShardWriter,
    Store,
    create_lake,
    fit_stats,
    holdout_patients,
    open_lake,
    opening,
    query,
    read_stats,
    settings_for,
    tile_ids,
    tile_parts,
    verify,
)
from featurestore.shards.shard_index import tar_header
from featurestore.stats.moments import merge
from tests.worlds.small_lake import JPEG, add_slides, column, cut

MPPS = (0.5, 2.0)


# ---------------------------------------------------------------------- keys


@given(
    slide=st.integers(0, 2**23 - 1),
    mpp=st.integers(1, 4095).map(lambda n: round(n * 0.005, 3)),
    y=st.integers(0, 2**14 - 1),
    x=st.integers(0, 2**14 - 1),
)
def test_tile_id_comes_apart_as_it_was_put_together(slide: int, mpp: float, y: int, x: int) -> None:
    key = tile_ids(slide, mpp, [y], [x])
    assert key[0] > 0
    assert [part.tolist() for part in tile_parts(key)] == [[slide], [mpp], [y], [x]]


def test_tile_ids_sort_by_slide_then_row_then_column() -> None:
    keys = [tile_ids(s, 0.5, [y], [x])[0] for s in (0, 1) for y in (0, 7) for x in (0, 9)]
    assert keys == sorted(keys)


@pytest.mark.parametrize(("slide", "mpp", "y"), [(2**23, 0.5, 0), (0, 0.333, 0), (0, 0.5, 2**14)])
def test_tile_id_refuses_what_does_not_fit(slide: int, mpp: float, y: int) -> None:
    with pytest.raises(LakeError):
        tile_ids(slide, mpp, [y], [0])


# ---------------------------------------------------------------------- shards


def test_own_tar_header_is_what_tarfile_writes() -> None:
    info = tarfile.TarInfo("0000000000000000001.jpg")
    info.size = 1234
    expected = info.tobuf(format=tarfile.USTAR_FORMAT)
    ours = tarfile.TarInfo.frombuf(tar_header(info.name, 1234), "utf-8", "strict")
    assert (ours.name, ours.size, ours.mode, ours.mtime) == (info.name, 1234, 0o644, 0)
    assert len(expected) == 512


def test_shard_is_a_plain_tar_with_an_index(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with ShardWriter(store, "tiles/a.tar") as writer:
        for key in (3, 5, 9):
            writer.add(key, JPEG + str(key).encode(), {"x": key})
    with tarfile.open(tmp_path / "tiles/a.tar") as tar:
        names = tar.getnames()
        description = json.load(tar.extractfile(names[1]))  # type: ignore[arg-type]
    assert names[:2] == [f"{3:019d}.jpg", f"{3:019d}.json"]
    assert description == {"x": 3}
    with ShardReader(store, "tiles/a.tar") as reader:
        assert dict(reader) == {key: JPEG + str(key).encode() for key in (3, 5, 9)}
        assert reader.positions(np.array([9, 3])).tolist() == [2, 0]
        with pytest.raises(DamageError, match="every requested tile"):
            reader.positions(np.array([4]))


def test_shard_bytes_are_the_same_every_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with ShardWriter(Store(tmp_path), f"{name}.tar") as writer:
            writer.add(1, JPEG, {"x": 1})
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    assert (tmp_path / "a.idx").read_bytes() == (tmp_path / "b.idx").read_bytes()


def test_unfinished_shard_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError), ShardWriter(Store(tmp_path), "a.tar") as writer:
        writer.add(1, JPEG, {"not json": writer})
    assert list(tmp_path.iterdir()) == []


def test_shard_with_lost_bytes_is_named(tmp_path: Path) -> None:
    with ShardWriter(Store(tmp_path), "a.tar") as writer:
        writer.add(1, JPEG, {})
    (tmp_path / "a.tar").write_bytes(b"")
    with (
        ShardReader(Store(tmp_path), "a.tar") as reader,
        pytest.raises(DamageError, match="tile 1"),
    ):
        reader.jpeg(0)
    (tmp_path / "a.idx").unlink()
    with pytest.raises(DamageError, match=r"a\.tar"):
        ShardReader(Store(tmp_path), "a.tar")


# ---------------------------------------------------------------------- lakes


def test_no_lake_and_newer_lake_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LakeMissingError, match="does not exist"):
        open_lake(tmp_path / "nowhere")
    with pytest.raises(LakeMissingError, match="not a lake"):
        open_lake(tmp_path)
    create_lake(tmp_path / "lake", LakeConfig())
    config = json.loads((tmp_path / "lake/lake.json").read_text())
    (tmp_path / "lake/lake.json").write_text(json.dumps({**config, "format": 2}))
    (tmp_path / "lake/roots.json").unlink()  # it holds a copy of what was there
    with pytest.raises(FormatError, match="update slidelake"):
        open_lake(tmp_path / "lake")


def test_settings_of_a_lake_are_fixed(tmp_path: Path) -> None:
    create_lake(tmp_path, LakeConfig(tile_px=256))
    assert create_lake(tmp_path, LakeConfig(tile_px=256)).version == 2
    with pytest.raises(LakeError, match="tile_px=256, but 224 was given"):
        create_lake(tmp_path, LakeConfig(tile_px=224))


class _CutShort(Exception):  # noqa: N818 - it stands for a kill
    """Raised where a creation is cut short."""


@pytest.mark.parametrize("mpps", [MPPS, (0.25, 0.5)])
def test_a_creation_cut_short_after_any_step_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mpps: tuple[float, ...]
) -> None:
    def cut_short(step: Callable[..., None]) -> Callable[..., None]:
        def call(*args: object, **options: object) -> None:
            step(*args, **options)
            steps.append(step.__name__)
            if len(steps) == stop:
                raise _CutShort

        return call

    for stop in range(1, 8):  # three tables and catalog, two indexes, lake.json, roots.json
        steps: list[str] = []
        uri = tmp_path / str(stop)
        with monkeypatch.context() as patch:
            for name in ("create_table", "make_index", "record_roots"):
                patch.setattr(opening, name, cut_short(getattr(opening, name)))
            with pytest.raises(_CutShort):
                create_lake(uri, LakeConfig(mpps=MPPS, tile_px=128))
        config = LakeConfig(mpps=mpps, tile_px=64)
        if stop == 7:  # it is a lake by now: its settings are fixed
            config = LakeConfig(mpps=MPPS, tile_px=128)
        lake = create_lake(uri, config)
        assert verify(lake).ok
        assert lake.version == 2
        assert lake.config == config
    assert steps[-1] == "record_roots"


def test_a_table_without_a_version_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "slides.lance/data").mkdir(parents=True)
    (tmp_path / "slides.lance/data/1.lance").write_bytes(b"cut sh")
    assert verify(create_lake(tmp_path, LakeConfig())).ok


def test_tables_with_rows_are_never_made_anew(tmp_path: Path) -> None:
    lake = create_lake(tmp_path, LakeConfig())
    add_slides(lake, {"a": 3})
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for name in ("lake.json", "roots.json", "commit.lock"):
        (tmp_path / name).unlink()
        del files[tmp_path / name]
    with pytest.raises(LakeError, match="has no lake"):
        create_lake(tmp_path, LakeConfig())
    assert {path: path.read_bytes() for path in files} == files


def test_settings_not_given_are_those_of_the_lake(tmp_path: Path) -> None:
    assert settings_for(tmp_path / "new", mpps=None) == LakeConfig()
    create_lake(tmp_path / "lake", LakeConfig(mpps=MPPS, tile_px=224))
    assert settings_for(tmp_path / "lake", mpps=None, tile_px=224).mpps == MPPS


@pytest.mark.parametrize("mpps", [(), (2.0, 0.5), (0.5, 0.75), (0.333,)])
def test_mpps_must_nest(mpps: tuple[float, ...]) -> None:
    with pytest.raises(LakeError):
        LakeConfig(mpps=mpps)


def test_commit_is_idempotent_and_counted(small: Lake) -> None:
    again = [cut(small, slide, name, n) for slide, name, n in ((0, "a", 5), (1, "b", 3))]
    small.committer.commit_slides(again)
    info = small.refreshed().info()
    assert info["slides"] == {"ready": 2, "failed": 0}
    assert info["tiles"] == {"0.5": 8, "2.0": 8}
    assert small.refreshed().tiles(mpp=0.5).collect()["tile_id"].is_unique().all()


def test_commit_refuses_a_shard_that_is_not_there(small: Lake) -> None:
    rows = small.committer.register([{"slide_id": "c", "uri": "c.svs"}])
    worker = cut(small, rows[0]["slide"], "c", 2)
    shard = worker.grids[0.5].shard
    assert shard is not None
    Path(small.store.path(shard.path)).unlink()
    with pytest.raises(DamageError, match="not there whole"):
        small.committer.commit_slides([worker])


@pytest.mark.parametrize("after", ["features", "slides"])
def test_kill_between_two_tables_is_never_seen(
    small: Lake, monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    rows = small.committer.register([{"slide_id": "c", "uri": "c.svs"}])
    before = small.refreshed().version
    committer = small.committer
    worker = cut(small, rows[0]["slide"], "c", 4)
    stop = {"features": "_upsert_slides", "slides": "apply"}[after]
    with monkeypatch.context() as patch:
        patch.setattr(committer, stop, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            committer.commit_slides([worker])
    killed = small.refreshed()
    assert killed.version == before
    assert killed.info()["tiles"] == {"0.5": 8, "2.0": 8}
    assert killed.tiles(mpp=0.5).collect().height == 8
    small.committer.commit_slides([worker])
    done = small.refreshed()
    assert done.info()["tiles"] == {"0.5": 12, "2.0": 12}
    assert done.tiles(mpp=0.5).collect()["tile_id"].n_unique() == 12
    assert done.info()["slides"] == {"ready": 3, "failed": 0}


def test_old_version_stays_readable(small: Lake) -> None:
    old = small.version
    rows = small.committer.register([{"slide_id": "c", "uri": "c.svs"}])
    small.committer.commit_slides([cut(small, rows[0]["slide"], "c", 4)])
    assert open_lake(small.uri, version=old).tiles(mpp=0.5).collect().height == 8
    assert open_lake(small.uri).tiles(mpp=0.5).collect().height == 12
    with pytest.raises(LakeError, match="no version 99"):
        open_lake(small.uri, version=99)


# ---------------------------------------------------------------------- teachers


def test_bag_gives_back_what_was_written(small: Lake) -> None:
    features = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
    small.committer.commit_columns(0.5, [column(small, features)])
    lake = small.refreshed()
    bag = lake.bag("b", "t", mpp=0.5)
    np.testing.assert_array_equal(bag.features, features[5:].astype(np.float16))
    np.testing.assert_array_equal(bag.tile_id, tile_ids(1, 0.5, [0] * 3, [0, 1, 2]))
    assert bag.x.tolist() == [0, 256, 512]
    assert lake.info()["features"] == [
        {"teacher": "t", "mpp": 0.5, "dim": 6, "tiles": 8, "complete": True}
    ]


def test_missing_features_say_what_to_do(small: Lake) -> None:
    with pytest.raises(LakeError, match="there are: none"):
        small.bag("a", "t", mpp=0.5)
    small.committer.commit_columns(0.5, [column(small, np.ones((8, 6), np.float32))])
    rows = small.committer.register([{"slide_id": "c", "uri": "c.svs"}])
    small.committer.commit_slides([cut(small, rows[0]["slide"], "c", 4)])
    with pytest.raises(LakeError, match="run extract"):
        small.refreshed().bag("c", "t", mpp=0.5)
    with pytest.raises(LakeError, match=r"not in .* at mpp 0\.5"):
        small.refreshed().bag("zzz", "t", mpp=0.5)
    with pytest.raises(LakeError, match=r"no tiles at mpp 1\.0; it has \[0\.5, 2\.0\]"):
        small.bag("a", "t", mpp=1.0)


def test_another_identity_under_a_name_is_refused(small: Lake) -> None:
    small.committer.add_teacher(0.5, "t", 6, {"weights": "1", "pooling": "mean"})
    with pytest.raises(IdentityError, match="differs in: pooling"):
        small.committer.add_teacher(0.5, "t", 6, {"weights": "1", "pooling": "cls"})
    with pytest.raises(IdentityError, match="differs in: dimension"):
        small.committer.add_teacher(0.5, "t", 7, {"weights": "1", "pooling": "mean"})


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e5])
def test_values_that_float16_cannot_hold_are_refused_by_tile(small: Lake, bad: float) -> None:
    features = np.ones((8, 6), np.float32)
    features[6, 2] = bad
    with pytest.raises(LakeError, match=f"tile {tile_ids(1, 0.5, [0], [1])[0]}"):
        column(small, features)


@pytest.mark.parametrize("name", ["x", "a.b", "a+b", "", "tile_id", "ü"])
def test_bad_teacher_names_are_refused(small: Lake, name: str) -> None:
    with pytest.raises(LakeError, match="can't name a teacher"):
        small.committer.add_teacher(0.5, name, 6, {})


def test_column_of_wrong_length_is_refused(small: Lake) -> None:
    file = column(small, np.ones((8, 6), np.float32))
    short = ColumnFile(teacher="t", fragment=0, path=file.path, rows=7, crc32=file.crc32)
    with pytest.raises(DamageError, match="7 rows were made for fragment 0, which has 8"):
        small.committer.commit_columns(0.5, [short])


def test_same_column_twice_counts_once(small: Lake) -> None:
    files = [column(small, np.full((8, 6), v, np.float32)) for v in (1.0, 2.0)]
    for file in files:
        small.committer.commit_columns(0.5, [file])
    lake = small.refreshed()
    assert lake.info()["features"][0]["tiles"] == 8
    assert float(lake.bag("a", "t", mpp=0.5).features[0, 0]) == 1.0


def test_killed_teacher_commit_is_finished_by_the_next(
    small: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = column(small, np.ones((8, 6), np.float32))
    committer = small.committer
    with monkeypatch.context() as patch:
        patch.setattr(committer, "apply", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            committer.commit_columns(0.5, [file])
    assert (
        not small.refreshed().info()["features"][0]["complete"]
        if small.refreshed().teachers(mpp=0.5)
        else True
    )
    small.committer.recover()
    assert small.refreshed().info()["features"][0]["complete"]


# ---------------------------------------------------------------------- questions


def test_lazy_frames_agree_with_collected_ones(small: Lake) -> None:
    small.committer.commit_columns(0.5, [column(small, np.eye(8, 6, dtype=np.float32))])
    frame = small.refreshed().features("t", mpp=0.5)
    whole = frame.collect()
    assert whole.schema["t"] == pl.Array(pl.Float16, 6)
    question = frame.filter(pl.col("x") > 256).select("tile_id", "y").head(2)
    assert question.collect().equals(whole.filter(pl.col("x") > 256).select("tile_id", "y").head(2))
    assert frame.head(3).collect().equals(whole.head(3))


def test_sql_and_its_errors(small: Lake) -> None:
    answer = query(small, "SELECT slide_id, count(*) AS n FROM tiles_mpp2_0 GROUP BY 1 ORDER BY 1")
    assert answer.rows() == [("a", 5), ("b", 3)]
    with pytest.raises(LakeError, match="did you mean 'slide_id'"):
        query(small, "SELECT slideid FROM slides")
    with pytest.raises(LakeError, match="did you mean 'tiles_mpp0_5'"):
        query(small, "SELECT * FROM tiles_mpp05")
    with pytest.raises(LakeError):
        query(small, "SELEC nonsense")


# ---------------------------------------------------------------------- statistics and splits


def test_moments_in_parts_are_those_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    parts = [rng.normal(3, 2, (n, 7)).astype(np.float16) for n in (5, 1, 30)]
    moments: Moments | None = None
    for part in parts:
        moments = merge(moments, part)
    whole = np.concatenate(parts).astype(np.float64)
    assert moments is not None
    assert moments.n == 36
    np.testing.assert_allclose(moments.mean, whole.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.covariance, np.cov(whole.T, ddof=0), rtol=1e-10, atol=1e-12)


def test_stats_are_kept_for_their_slides_only(small: Lake) -> None:
    features = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
    small.committer.commit_columns(0.5, [column(small, features)])
    lake = small.refreshed()
    fitted = fit_stats(lake, "t", mpp=0.5, slide_ids=["b", "a"])
    kept = read_stats(lake, "t", mpp=0.5, slide_ids=["a", "b"])
    assert kept is not None
    np.testing.assert_array_equal(kept.covariance, fitted.covariance)
    assert read_stats(lake, "t", mpp=0.5, slide_ids=["a"]) is None


def test_holdout_keeps_patients_whole_and_ignores_order() -> None:
    slides = pl.DataFrame(
        {
            "slide_id": [f"s{i}" for i in range(12)],
            "patient_id": [f"p{i // 2}" if i < 10 else None for i in range(12)],
        }
    )
    held = holdout_patients(slides, share=0.25, seed=0)
    assert len(held) == 2
    assert held == holdout_patients(slides.reverse(), share=0.25, seed=0)
    assert held != holdout_patients(slides, share=0.25, seed=3)
    with pytest.raises(LakeError, match="held-out share"):
        holdout_patients(slides.head(2), share=0.5, seed=0)


def test_index_is_plain_arrow(tmp_path: Path) -> None:
    with ShardWriter(Store(tmp_path), "a.tar") as writer:
        writer.add(7, JPEG, {})
    frame = pl.read_ipc(io.BytesIO((tmp_path / "a.idx").read_bytes()))
    assert frame.rows() == [(7, 512, len(JPEG))]
