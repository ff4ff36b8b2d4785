"""Statistics against numpy on all rows at once; what is kept, and what is refused."""

import json
import random
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.targets.missing_stats import stats
from featurestore import (
    ColumnWriter,
    DamageError,
    Lake,
    LakeError,
    fit_stats,
    read_phi_s,
    read_stats,
    tile_ids,
    vacuum,
)
from featurestore.opening import open_lake
from featurestore.stats import Part, PartMap, part_moments
from featurestore.stats.fitting import RUN_TILES, sampled_rows
from featurestore.stats.moments import Moments, merge, read_card
from tests.conftest import ROOT
from tests.worlds.command_lines import Slidelake
from tests.worlds.small_lake import add_slides, add_teacher, column

Float64Array = npt.NDArray[np.float64]


def features(rows: int, dim: int) -> Float64Array:
    """Features [rows, dim] with a steep spectrum and a mean far from 0."""
    rng = np.random.default_rng(rows * dim)
    x = rng.normal(size=(rows, dim)) * np.exp(-np.arange(dim) / 5)
    return x @ rng.normal(size=(dim, dim)) + rng.normal(3, 2, dim)


# ---------------------------------------------------------------------- moments


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    offset=st.sampled_from([0.0, 5.0, 3e4]),
    order=st.randoms(use_true_random=False),
)
def test_moments_depend_on_neither_blocks_nor_their_order(
    rows: list[int], offset: float, order: random.Random
) -> None:
    rng = np.random.default_rng(sum(rows))
    parts = [(rng.normal(size=(n, 5)) * 9 + offset).astype(np.float16) for n in rows]
    whole = np.concatenate(parts).astype(np.float64)
    order.shuffle(parts)
    moments: Moments | None = None
    for part in parts:
        moments = merge(moments, part)
    assert moments is not None
    assert moments.n == len(whole)
    np.testing.assert_allclose(moments.mean, whole.mean(0), rtol=1e-12, atol=1e-14)
    covariance = np.atleast_2d(np.cov(whole.T, ddof=0))
    np.testing.assert_allclose(moments.covariance, covariance, rtol=1e-9, atol=1e-10)
    np.testing.assert_array_equal(moments.covariance, moments.covariance.T)


def test_moments_keep_their_digits_far_from_zero() -> None:
    x = np.random.default_rng(0).normal(size=(4000, 3))
    moments: Moments | None = None
    for part in np.split(x + 1e8, 40):
        moments = merge(moments, part)
    assert moments is not None
    np.testing.assert_allclose(moments.covariance, np.cov(x.T, ddof=0), atol=1e-7)


# ---------------------------------------------------------------------- in a lake


def with_features(lake: Lake, dim: int = 6) -> tuple[Lake, npt.NDArray[np.float16]]:
    """Return the small lake with a random teacher "t" at 0.5 mpp, and its features of all rows."""
    embeddings = features(8, dim).astype(np.float16)
    lake.committer.commit_columns(0.5, [column(lake, embeddings.astype(np.float32))])
    return lake.refreshed(), embeddings


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 8, 1000])
def test_a_lake_gives_what_numpy_gives_of_all_rows(
    small: Lake, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, embeddings = with_features(small)
    monkeypatch.setattr("featurestore.stats.moments.BLOCK_BYTES", rows * 6 * 8)
    tile_counts: list[int] = []
    moments = fit_stats(lake, "t", mpp=0.5, slide_ids=["b", "a"], on_tiles=tile_counts.append)
    x = embeddings.astype(np.float64)
    assert moments.n == sum(tile_counts) == 8
    assert max(tile_counts) == min(rows, 8)
    np.testing.assert_allclose(moments.mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.covariance, np.cov(x.T, ddof=0), rtol=1e-9, atol=1e-12)
    kept = read_phi_s(lake, "t", mpp=0.5, slide_ids=["a", "b"])
    assert kept is not None
    np.testing.assert_allclose(kept(x).var(0), 1, rtol=1e-9)
    np.testing.assert_allclose(kept.inverse(kept(x)), x, rtol=1e-9, atol=1e-9)


def kept_files(lake: Lake) -> dict[str, bytes]:
    return {file.path: lake.read_bytes(file.path) for file in lake.store.walk("stats")}


def test_the_order_of_the_names_changes_nothing(small: Lake) -> None:
    lake, _ = with_features(small)
    fit_stats(lake, "t", mpp=0.5, slide_ids=["a", "b"])
    first = kept_files(lake)
    shutil.rmtree(lake.store.path("stats"))
    fit_stats(lake, "t", mpp=0.5, slide_ids=["b", "a", "b"])
    assert kept_files(lake) == first
    assert sorted(Path(path).name for path in first) == [
        "card.json",
        "moments.safetensors",
        "phi_s.safetensors",
    ]


def test_sets_of_slides_are_kept_side_by_side(small: Lake) -> None:
    lake, embeddings = with_features(small)
    sets = [["a"], ["a", "b"], ["b"]]
    for names in sets:
        assert read_stats(lake, "t", mpp=0.5, slide_ids=names) is None
        assert read_phi_s(lake, "t", mpp=0.5, slide_ids=names) is None
        fit_stats(lake, "t", mpp=0.5, slide_ids=names)
    for names, rows in zip(sets, (slice(5), slice(8), slice(5, 8)), strict=True):
        kept = read_stats(lake, "t", mpp=0.5, slide_ids=names)
        card = read_card(lake, "t", mpp=0.5, slide_ids=names)
        assert kept is not None
        assert card is not None
        np.testing.assert_allclose(
            kept.mean, embeddings[rows].astype(np.float64).mean(0), rtol=1e-12
        )
        assert (card["slides"], card["n"], card["dim"]) == (names, kept.n, 6)
        assert card["lake_version"] == lake.version
        assert card["identity"] == {"weights": "1"}
        assert card["formula"] == 1


def test_statistics_of_other_features_are_not_taken_for_these(small: Lake) -> None:
    lake, _ = with_features(small)
    fit_stats(lake, "t", mpp=0.5, slide_ids=["a", "b"])
    grown = add_slides(lake, {"c": 2})
    assert read_stats(grown, "t", mpp=0.5, slide_ids=["a", "b"]) is not None
    again = add_slides(grown, {"a": 6}, mark="scanned again")
    assert read_stats(again, "t", mpp=0.5, slide_ids=["a", "b"]) is None
    assert read_stats(lake, "t", mpp=0.5, slide_ids=["a", "b"]) is not None


def test_vacuum_keeps_the_version_that_statistics_were_made_from(small: Lake) -> None:
    lake, embeddings = with_features(small)
    fit_stats(lake, "t", mpp=0.5, slide_ids=["a", "b"])
    for name in ("c", "d", "e"):
        newest = add_slides(lake, {name: 2})
    kept = vacuum(newest, keep=1).kept
    assert kept == [lake.version, newest.version]
    bag = open_lake(lake.uri, version=lake.version).bag("a", "t", mpp=0.5)
    np.testing.assert_array_equal(bag.features, embeddings[:5])


def test_early_statistics_are_read_and_rotated(tmp_path: Path) -> None:
    with tarfile.open(ROOT / "tests/data/format1.tar.gz") as tar:
        tar.extractall(tmp_path, filter="data")
    lake = open_lake(tmp_path / "lake")
    moments = read_stats(lake, "t", mpp=0.5, slide_ids=["b", "a"])
    transform = read_phi_s(lake, "t", mpp=0.5, slide_ids=["b", "a"])
    assert moments is not None
    assert transform is not None
    rotated = transform.rotation @ moments.covariance @ transform.rotation.T
    np.testing.assert_allclose(np.diag(rotated) * transform.scale**2, 1, rtol=1e-9)
    assert read_stats(lake, "t", mpp=0.5, slide_ids=["a"]) is None
    # A new fit lies beside it and is read from then on.
    fit_stats(lake, "t", mpp=0.5, slide_ids=["a", "b"])
    kept = read_stats(lake, "t", mpp=0.5, slide_ids=["a", "b"])
    assert kept is not None
    np.testing.assert_allclose(kept.covariance, moments.covariance, rtol=1e-9, atol=1e-12)


def test_a_slide_without_the_teacher_is_named(small: Lake) -> None:
    lake, _ = with_features(small)
    lake = add_slides(lake, {"late": 4, "empty": 0})
    with pytest.raises(LakeError, match=r"no features of 't' at mpp 0.5: late; run slidelake"):
        fit_stats(lake, "t", mpp=0.5, slide_ids=["a", "late"])
    with pytest.raises(LakeError, match=r"not in .* at mpp 0.5: nobody"):
        fit_stats(lake, "t", mpp=0.5, slide_ids=["a", "nobody"])
    with pytest.raises(LakeError, match=r"no features of 'u' at mpp 0.5"):
        read_stats(lake, "u", mpp=0.5, slide_ids=["a"])
    with pytest.raises(LakeError, match=r"need two tiles or more; the 1 slide has 0"):
        fit_stats(lake, "t", mpp=0.5, slide_ids=["empty"])
    assert not lake.exists("stats")
    assert fit_stats(lake, "t", mpp=0.5, slide_ids=["a", "empty"]).n == 5


def test_features_that_are_all_the_same_are_refused(small: Lake) -> None:
    embeddings = np.full((8, 6), 0.1, np.float32)
    small.committer.commit_columns(0.5, [column(small, embeddings)])
    with pytest.raises(LakeError, match="all tiles have the same features"):
        fit_stats(small.refreshed(), "t", mpp=0.5, slide_ids=["a", "b"])
    assert not small.exists("stats")


def overwrite(lake: Lake, row: npt.NDArray[np.float16], new: npt.NDArray[np.float16]) -> None:
    """Write other features over those of one tile, where they are stored."""
    (file,) = [
        path
        for path in Path(lake.store.path("features/mpp0.5.lance/data")).iterdir()
        if row.tobytes() in path.read_bytes()
    ]
    file.write_bytes(file.read_bytes().replace(row.tobytes(), new.tobytes()))


def test_features_that_are_not_finite_are_damage_of_a_slide(small: Lake) -> None:
    lake, embeddings = with_features(small)
    nan = np.where(np.arange(6) == 5, np.float16(np.nan), embeddings[6])
    overwrite(lake, embeddings[6], nan)  # the second tile of slide "b"
    with pytest.raises(DamageError, match=r"slide b at mpp 0.5: features of 't' are not what was"):
        fit_stats(lake, "t", mpp=0.5, slide_ids=["a", "b"])
    lake = open_lake(lake.uri, check=None)
    fit_stats(lake, "t", mpp=0.5, slide_ids=["a"])
    with pytest.raises(DamageError, match=r"slide b at mpp 0.5: features are not finite"):
        fit_stats(lake, "t", mpp=0.5, slide_ids=["a", "b"])


@pytest.mark.parametrize("rows", [1, 3, 1000])
def test_tiles_that_the_teacher_was_not_asked_for_are_left_out(
    small: Lake, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, embeddings = with_features(small)
    monkeypatch.setattr("featurestore.stats.moments.BLOCK_BYTES", rows * 6 * 8)
    for absent in (0, 6):
        overwrite(lake, embeddings[absent], np.full(6, np.nan, np.float16))
    lake = open_lake(lake.uri, check=None)
    tile_counts: list[int] = []
    moments = fit_stats(lake, "t", mpp=0.5, slide_ids=["a", "b"], on_tiles=tile_counts.append)
    x = np.delete(embeddings, [0, 6], axis=0).astype(np.float64)
    assert (moments.n, sum(tile_counts)) == (6, 8)
    np.testing.assert_allclose(moments.mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.covariance, np.cov(x.T, ddof=0), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("identity", [{"tokens": 3}, {"pooling": "patches", "sample": 3}])
def test_each_patch_token_is_a_row(small: Lake, identity: dict[str, object]) -> None:
    embeddings = features(24, 4).astype(np.float16)
    field = small.committer.add_teacher(0.5, "t:patches3", 12, identity)
    writer = ColumnWriter(small.store, 0.5, field, 0)
    for slide, part in ((0, slice(5)), (1, slice(5, 8))):
        at = np.arange(part.stop - (part.start or 0))
        writer.add(slide, tile_ids(slide, 0.5, 0 * at, at), embeddings.reshape(8, 12)[part])
    small.committer.commit_columns(0.5, [writer.finish()])
    moments = fit_stats(small.refreshed(), "t:patches3", mpp=0.5, slide_ids=["a", "b"])
    assert moments.n == 24
    x = embeddings.astype(np.float64)
    np.testing.assert_allclose(moments.covariance, np.cov(x.T, ddof=0), rtol=1e-9, atol=1e-12)


def test_a_column_too_wide_for_a_covariance_is_refused(small: Lake) -> None:
    small.committer.commit_columns(0.5, [column(small, np.ones((8, 20000), np.float32))])
    with pytest.raises(LakeError, match="'t' has 20000 channels, its covariance would take 3 GB"):
        fit_stats(small.refreshed(), "t", mpp=0.5, slide_ids=["a", "b"])


# ---------------------------------------------------------------------- the command


def test_stats_command_tells_what_is_kept(small: Lake, slidelake: Slidelake) -> None:
    lake, _ = with_features(small)
    first = json.loads(slidelake("stats", lake.uri, "--teacher", "t", "--json").stdout)
    assert first["fitted"] == 1
    (kept,) = first["sets"]
    (held,) = first["held_out_slides"]
    (train,) = {"a", "b"} - {held}
    assert kept == {
        "teacher": "t",
        "mpp": 0.5,
        "path": kept["path"],
        "key": kept["key"],
        "lake_version": lake.version,
        "rows": {"a": 5, "b": 3}[train],
        "slides": 1,
        "new": True,
    }
    assert lake.exists(f"{kept['path']}/card.json")
    again = slidelake("stats", lake.uri, "--teacher", "t", "--mpp", "0.5").stdout
    assert again.startswith(f"t at 0.5 mpp: {kept['rows']} tiles of 1 slide")
    assert f"kept: {kept['path']}" in again
    with pytest.raises(LakeError, match=r"no features of 't' at mpp 2.0"):
        stats(lake.uri, ["t"], mpps=[2])
    with pytest.raises(LakeError, match=r"no features of 'u' at mpp 0.5"):
        stats(lake.uri, ["u"])


def test_several_teachers_and_mpps_in_one_run(
    small: Lake, capfd: pytest.CaptureFixture[str]
) -> None:
    lake = add_teacher(add_teacher(small, "t"), "u:cls", dim=5)
    summary = stats(lake.uri, ["t", "u:cls"], holdout=0.5)
    assert {(s["teacher"], s["mpp"], s["new"]) for s in summary["sets"]} == {
        (name, mpp, True) for name in ("t", "u:cls") for mpp in (0.5, 2.0)
    }
    done = json.loads(capfd.readouterr().err.splitlines()[-1])
    assert (done["title"], done["unit"]) == ("stats", "tiles")
    assert done["done"] == done["total"] == sum(s["rows"] for s in summary["sets"])
    assert stats(lake.uri, ["t", "u:cls"], holdout=0.5)["fitted"] == 0
    one = stats(lake.uri, ["t"], mpps=[2], holdout=0.5)
    assert [(s["mpp"], s["new"]) for s in one["sets"]] == [(2.0, False)]


# ---------------------------------------------------------------------- parts, samples, checkpoints


def wide_lake(lake: Lake, slides: int = 9, dim: int = 6) -> tuple[Lake, list[str]]:
    """Return a lake with more slides of up to 70 tiles and features "t" of them all."""
    names = [f"s{number}" for number in range(slides)]
    lake = add_slides(lake, {name: 7 + 9 * at % 64 for at, name in enumerate(names)})
    return add_teacher(lake, "t", dim), names


def rows_of(lake: Lake, names: list[str]) -> Float64Array:
    bags = [lake.bag(name, "t", mpp=0.5).features for name in names]
    return np.concatenate(bags).astype(np.float64)


def test_parts_give_what_numpy_gives_of_all_rows_in_any_order(
    small: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, names = wide_lake(small)
    monkeypatch.setattr("featurestore.stats.fitting.PART_TILES", 40)
    x = rows_of(lake, names)

    def backwards(
        lake: Lake, parts: Sequence[Part], _: object
    ) -> Iterator[tuple[int, Moments | None]]:
        assert len(parts) > 4
        assert sum(part.tiles for part in parts) == len(x)
        yield from reversed([(n, part_moments(lake, part)) for n, part in enumerate(parts)])

    forwards = fit_stats(lake, "t", mpp=0.5, slide_ids=names)
    np.testing.assert_allclose(forwards.mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(forwards.covariance, np.cov(x.T, ddof=0), rtol=1e-9, atol=1e-12)
    first = kept_files(lake)
    shutil.rmtree(lake.store.path("stats"))
    fit_stats(lake, "t", mpp=0.5, slide_ids=names, part_map=backwards)
    assert kept_files(lake) == first  # to the last bit


def test_a_stopped_fit_goes_on_from_its_checkpoint(
    small: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, names = wide_lake(small)
    monkeypatch.setattr("featurestore.stats.fitting.PART_TILES", 40)
    monkeypatch.setattr("featurestore.stats.fitting.CHECKPOINT_S", -1.0)
    made: list[int] = []

    def until(most: int) -> PartMap:
        def some(
            lake: Lake, parts: Sequence[Part], _: object
        ) -> Iterator[tuple[int, Moments | None]]:
            for number, part in enumerate(parts):
                if number == most:
                    raise KeyboardInterrupt
                made.append(part.selection.number(0))
                yield number, part_moments(lake, part)

        return some

    whole = fit_stats(lake, "t", mpp=0.5, slide_ids=names, part_map=until(99))
    parts, first = list(made), kept_files(lake)
    shutil.rmtree(lake.store.path("stats"))
    made.clear()
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            fit_stats(lake, "t", mpp=0.5, slide_ids=names, part_map=until(2))
    assert read_stats(lake, "t", mpp=0.5, slide_ids=names) is None
    assert len([path for path in kept_files(lake) if "partial" in path]) == 2
    kept = next(path for path in kept_files(lake) if path.endswith("-4.safetensors"))
    assert fit_stats(lake, "t", mpp=0.5, slide_ids=names, part_map=until(99)).n == whole.n
    assert made == parts  # none twice, none left out
    assert kept_files(lake) == first
    # One that is not whole is no checkpoint.
    shutil.rmtree(lake.store.path("stats"))
    with pytest.raises(KeyboardInterrupt):
        fit_stats(lake, "t", mpp=0.5, slide_ids=names, part_map=until(4))
    lake.write_bytes(kept, b"half")
    made.clear()
    fit_stats(lake, "t", mpp=0.5, slide_ids=names, part_map=until(99))
    assert (made, kept_files(lake)) == (parts, first)


@given(count=st.integers(2, 5000), share=st.floats(0.01, 1.0))
def test_a_sample_is_spread_evenly(count: int, share: float) -> None:
    sample = max(1, min(int(count * share), count - 1))
    rows = sampled_rows(count, sample)
    assert len(rows) == sample
    assert (np.diff(rows) > 0).all()
    assert 0 <= rows[0] <= rows[-1] < count
    runs = sample // RUN_TILES
    if runs > 1 and count > 4 * sample:
        gaps = np.diff(rows[::RUN_TILES][:runs])
        assert gaps.max() - gaps.min() <= 1


def test_statistics_of_a_sample_say_so_and_stand_in_for_those_of_all(
    small: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, names = wide_lake(small)
    monkeypatch.setattr("featurestore.stats.fitting.PART_TILES", 40)
    x = rows_of(lake, names)
    for tiles in (64, 32):
        moments = fit_stats(lake, "t", mpp=0.5, slide_ids=names, tiles=tiles)
        drawn = x[sampled_rows(len(x), tiles)]
        np.testing.assert_allclose(moments.mean, drawn.mean(0), rtol=1e-12)
        np.testing.assert_allclose(moments.covariance, np.cov(drawn.T, ddof=0), rtol=1e-9)
        card = read_card(lake, "t", mpp=0.5, slide_ids=names, tiles=tiles)
        assert card is not None
        assert (card["sample"], card["n"]) == (tiles, tiles)
    largest = read_card(lake, "t", mpp=0.5, slide_ids=names)
    assert largest is not None
    assert largest["sample"] == 64
    assert read_card(lake, "t", mpp=0.5, slide_ids=names, tiles=48) is None
    assert read_card(lake, "t", mpp=0.5, slide_ids=names[1:]) is None
    rotated = read_phi_s(lake, "t", mpp=0.5, slide_ids=names)
    assert rotated is not None
    np.testing.assert_allclose(rotated(x[sampled_rows(len(x), 64)]).var(0), 1, rtol=1e-9)
    fit_stats(lake, "t", mpp=0.5, slide_ids=names, tiles=10**9)  # all there are
    of_all = read_card(lake, "t", mpp=0.5, slide_ids=names, tiles=32)
    assert of_all is not None
    assert ("sample" in of_all, of_all["n"]) == (False, len(x))
