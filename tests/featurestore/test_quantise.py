"""Quantised columns: what codes cost, and that every reader, keeper and edit handles them."""

import json
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pytest
from sklearn.metrics import pairwise_distances_argmin

from downstream.run.feature_bags import read_patient
from featurestore import (
    ColumnWriter,
    DamageError,
    IdentityError,
    Lake,
    LakeConfig,
    LakeError,
    compact,
    copy_lake,
    create_lake,
    drop,
    open_lake,
    query,
    rename,
    vacuum,
    verify,
)
from featurestore.codecs import codec as codec_module
from featurestore.codecs import lance_quantising
from featurestore.codecs.codec import Codec, loss_of
from featurestore.codecs.codec_fitting import fit_codec
from featurestore.codecs.lance_quantising import quantise
from featurestore.commits.lance_commit import Committer
from featurestore.interop.exporting import export_folder
from featurestore.query.lance_index import build_index
from featurestore.tables.checksums import features_crc32
from featurestore.tables.schema import dim_of, features_table
from tests.worlds.command_lines import Output, Places, command_line
from tests.worlds.small_lake import add_slides, add_teacher

QUANTISE = command_line(
    "quantise {lake} --features t --codec pq16 --mpp 0.5 --seed 1 --quiet --json"
)
DIM = 32
SIZES = {"a": 40, "b": 23}
LATER = {"c": 31}
NAME = "t~int8"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a lake of three slides in two fragments, with a teacher and its codes."""
    folder = tmp_path_factory.mktemp("quantise") / "lake"
    lake = create_lake(folder, LakeConfig(mpps=(0.5, 2.0)))
    lake = add_teacher(add_slides(add_slides(lake, SIZES), LATER), "t", DIM)
    quantise(lake, "t")
    return folder


@pytest.fixture
def lake(made: Path, tmp_path: Path) -> Lake:
    """Return a copy that a test may change."""
    shutil.copytree(made, tmp_path / "lake")
    return open_lake(tmp_path / "lake")


def expected(lake: Lake, slide_id: str, name: str = NAME) -> npt.NDArray[np.float16]:
    """Return the decoded codes of the source's features."""
    codec = lake.row_reader(mpp=0.5).codec(name)
    assert codec is not None
    return codec.decode(codec.encode(lake.bag(slide_id, "t", mpp=0.5).features))


def normal(tiles: int, dim: int, seed: int = 0) -> npt.NDArray[np.float16]:
    rng = np.random.default_rng(seed)
    scale = np.exp(rng.standard_normal(dim))
    return (rng.standard_normal((tiles, dim)) * scale).astype(np.float16)


# ---------------------------------------------------------------------- mathematics


def test_int8_is_within_half_a_step_of_every_value() -> None:
    x = normal(3000, 24)
    codec = fit_codec("int8", x)
    decoded = codec.decode(codec.encode(x)).astype(np.float64)
    exact = x.astype(np.float64)
    step = np.asarray(codec.arrays["step"], np.float64)
    assert (np.abs(decoded - exact) <= step / 2 + np.abs(exact) * 2.0**-10 + 1e-6).all()
    assert loss_of(codec, x).cosine > 0.9998


def test_decoding_has_the_same_bits_with_torch_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch  # noqa: F401 - decoding looks whether it is imported

    x = normal(1500, 40)
    codec = fit_codec("int8", x)
    codes = codec.encode(x)
    with_torch = codec.decode(codes)
    monkeypatch.setattr(codec_module, "sys", type("NoTorch", (), {"modules": {}}))
    np.testing.assert_array_equal(with_torch, codec.decode(codes))


def test_a_piece_has_the_code_of_its_nearest_entry() -> None:
    x = normal(2000, 32)
    codec = fit_codec("pq16", x)
    book = np.asarray(codec.arrays["book"], np.float64)
    codes = codec.encode(x)
    assert codes.shape == (2000, 4)
    for piece in range(4):
        part = x[:, piece * 8 : piece * 8 + 8].astype(np.float64)
        nearest = pairwise_distances_argmin(part, book[piece])
        assert (codes[:, piece] == nearest).mean() > 0.999  # ties in float32
        decoded = codec.decode(codes)[:, piece * 8 : piece * 8 + 8]
        np.testing.assert_array_equal(decoded, codec.arrays["book"][piece][codes[:, piece]])


def test_more_bytes_lose_less() -> None:
    x = normal(4000, 64)
    errors = [loss_of(fit_codec(name, x), x).error for name in ("int8", "pq4", "pq16", "pq64")]
    assert errors == sorted(errors)
    assert errors[0] < 0.01


def test_tokens_of_a_tile_share_one_codec() -> None:
    x = normal(200, 96)
    codec = fit_codec("pq16", x, tokens=6)
    assert codec.arrays["book"].shape == (2, 255, 8)
    one = fit_codec("pq16", x.reshape(1200, 16))
    np.testing.assert_array_equal(codec.encode(x).reshape(1200, 2), one.encode(x.reshape(1200, 16)))
    assert loss_of(codec, x).error == pytest.approx(loss_of(one, x.reshape(1200, 16)).error)


@pytest.mark.parametrize("name", ["int8", "pq8"])
def test_tiles_that_were_left_out_stay_so(name: str) -> None:
    x = normal(50, 16)
    x[[3, 9]] = np.nan
    codec = fit_codec(name, x)
    decoded = codec.decode(codec.encode(x))
    assert np.flatnonzero(np.isnan(decoded).all(axis=1)).tolist() == [3, 9]
    assert np.isfinite(np.delete(decoded, [3, 9], axis=0)).all()


def test_few_tiles_and_a_constant_channel() -> None:
    x = normal(5, 16)
    x[:, 2] = 4.0
    for name in ("int8", "pq8"):
        decoded = fit_codec(name, x).decode(fit_codec(name, x).encode(x))
        np.testing.assert_array_equal(decoded[:, 2], 4.0)
    product = fit_codec("pq8", x)
    np.testing.assert_array_equal(product.decode(product.encode(x)), x)


def test_values_beyond_the_fitted_range_are_counted() -> None:
    x = normal(500, 8)
    codec = fit_codec("int8", x)
    assert loss_of(codec, x).clipped == 0
    assert loss_of(codec, (x * 3).astype(np.float16)).clipped > 0.01


@pytest.mark.parametrize(
    ("name", "dim", "said"),
    [("pq3", 8, "pq4, pq8"), ("zip", 8, "no codec 'zip'"), ("pq16", 12, "pieces of 8")],
)
def test_codecs_that_cannot_be(name: str, dim: int, said: str) -> None:
    with pytest.raises(LakeError, match=said):
        fit_codec(name, normal(5, dim))
    with pytest.raises(LakeError, match="nothing to fit"):
        fit_codec("int8", np.full((3, dim), np.nan, np.float16))


# ---------------------------------------------------------------------- readers


def test_every_reader_decodes(lake: Lake) -> None:
    want = {name: expected(lake, name) for name in (*SIZES, *LATER)}
    assert lake.teachers(mpp=0.5) == {"t": DIM, NAME: DIM}
    assert any(f["teacher"] == NAME and f["complete"] for f in lake.info()["features"])
    for slide_id, features in want.items():
        np.testing.assert_array_equal(lake.bag(slide_id, NAME, mpp=0.5).features, features)
        frame = lake.features(NAME, mpp=0.5).filter(pl.col("slide_id") == slide_id).collect()
        np.testing.assert_array_equal(frame.sort("tile_id")[NAME].to_numpy(), features)
    bags = lake.bags(["t", NAME], mpp=0.5)
    np.testing.assert_array_equal(bags[1].by_teacher[NAME].numpy(), want["b"])
    streamed = {
        key: row
        for batch in lake.stream(NAME, mpp=0.5, batch_tiles=7, block_tiles=4)
        for key, row in zip(batch.tile_id.tolist(), batch.features[NAME], strict=True)
    }
    bag = lake.bag("a", NAME, mpp=0.5)
    np.testing.assert_array_equal(np.stack([streamed[key] for key in bag.tile_id]), want["a"])
    means = lake.slide_means(NAME, mpp=0.5)
    np.testing.assert_allclose(
        means[NAME].to_numpy()[0], want["a"].astype(np.float64).mean(axis=0), rtol=1e-6
    )
    sql = f"SELECT slide_id, \"{NAME}\" FROM tiles_mpp0_5 WHERE slide_id = 'b' ORDER BY x"
    np.testing.assert_array_equal(query(lake, sql)[NAME].to_numpy(), want["b"])
    tiles = {tile["tile_id"]: tile[NAME] for tile in lake.webdataset(NAME, mpp=0.5, pixels="none")}
    np.testing.assert_array_equal(np.stack([tiles[key] for key in bag.tile_id]), want["a"])
    patient = read_patient(lake, ["a", "b"], f"t+{NAME}", [0.5])
    np.testing.assert_array_equal(patient.features[:, DIM:], np.concatenate([want["a"], want["b"]]))
    adata = lake.to_anndata("a", NAME, mpp=0.5)
    np.testing.assert_array_equal(adata.X, want["a"].astype(np.float32))


def test_frames_have_null_where_there_are_no_codes(lake: Lake) -> None:
    lake = add_slides(lake, {"d": 3})
    frame = lake.tiles(mpp=0.5).select("slide_id", "x", NAME).collect()
    empty = frame.filter(pl.col(NAME).is_null())
    assert empty["slide_id"].to_list() == ["d"] * 3
    assert frame.schema[NAME] == pl.Array(pl.Float16, DIM)
    only = lake.tiles(mpp=0.5).filter(pl.col("slide_id") == "d").select(NAME).collect()
    assert only[NAME].null_count() == 3
    wide = lake.features(NAME, mpp=0.5, dtype="float32").collect()
    assert wide.schema[NAME] == pl.Array(pl.Float32, DIM)


def test_search_is_the_exact_one_over_decoded_features(lake: Lake) -> None:
    from sklearn.neighbors import NearestNeighbors

    keys, rows = [], []
    for name in (*SIZES, *LATER):
        bag = lake.bag(name, NAME, mpp=0.5)
        keys += bag.tile_id.tolist()
        rows.append(bag.features.astype(np.float64))
    features = np.concatenate(rows)
    neighbours = NearestNeighbors(metric="cosine", algorithm="brute").fit(features)
    queries = features[[0, 50]]
    distance, place = neighbours.kneighbors(queries, 5)
    found = lake.nearest(queries, NAME, mpp=0.5, k=5)
    for number in (0, 1):
        own = found.filter(pl.col("query") == number)
        np.testing.assert_allclose(own["distance"], distance[number], atol=2e-6)
        assert own["tile_id"][0] == keys[place[number][0]]
    within = lake.nearest(queries[0], NAME, mpp=0.5, k=50, slide_ids=["b"])
    assert set(within["slide_id"]) == {"b"}
    assert within.height == SIZES["b"]
    assert lake.nearest(queries[0], NAME, mpp=0.5, k=3, without=["a"])["slide_id"].n_unique() <= 2
    with pytest.raises(LakeError, match="without an index"):
        build_index(lake, NAME, mpp=0.5, least_rows=1)


def test_export_writes_decoded_features(lake: Lake, tmp_path: Path) -> None:
    import h5py

    export_folder(lake.uri, tmp_path / "out", format="trident", mpp=0.5, teachers=[NAME])
    [path] = [p for p in (tmp_path / "out").rglob("a.h5") if "features" in str(p.parent)]
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["features"][:], expected(lake, "a"))


# ---------------------------------------------------------------------- keeping


def test_it_is_verified_copied_compacted_renamed_and_dropped(lake: Lake, tmp_path: Path) -> None:
    want = {name: expected(lake, name) for name in (*SIZES, *LATER)}

    def check(lake: Lake, name: str = NAME) -> None:
        assert verify(lake).ok
        for slide_id, features in want.items():
            np.testing.assert_array_equal(lake.bag(slide_id, name, mpp=0.5).features, features)

    check(lake)
    copy_lake(lake.uri, tmp_path / "copy")
    check(open_lake(tmp_path / "copy"))
    assert compact(lake).after == 2
    check(lake.refreshed())
    vacuum(lake.refreshed(), keep=1)
    check(lake.refreshed())
    rename(lake, NAME, "u~int8")
    check(lake.refreshed(), "u~int8")
    with pytest.raises(LakeError, match="NAME~CODEC"):
        rename(lake, "u~int8", "u")
    with pytest.raises(LakeError, match="can't name a teacher"):
        rename(lake, "t", "t~int8")
    drop(lake, "teacher", ["t"])
    check(lake.refreshed(), "u~int8")
    drop(lake.refreshed(), "teacher", ["u~int8"])
    assert lake.refreshed().teachers(mpp=0.5) == {}


def test_flipped_bits_of_codes_and_codecs_are_found(lake: Lake) -> None:
    [path] = Path(lake.uri).glob(f"stats/{NAME}@mpp0.5/codec-*/codec.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DamageError, match="not what was written"):
        open_lake(lake.uri).bag("a", NAME, mpp=0.5)
    assert [one.path for one in verify(lake).damage] == [str(path.relative_to(lake.uri))]
    path.unlink()
    with pytest.raises(DamageError, match="codec of 't~int8'"):
        open_lake(lake.uri).bag("a", NAME, mpp=0.5)
    assert str(path.relative_to(lake.uri)) in {one.path for one in verify(lake).damage}
    path.write_bytes(whole)
    reader = lake.row_reader(mpp=0.5)
    row = lake.features_of(NAME, mpp=0.5, slide_ids=["a"]).row(0, named=True)
    file = Path(lake.uri) / reader._data_file(row["fragment"], NAME).path
    codes = reader.stored(row["fragment"], row["row_start"], 1, NAME).tobytes()
    content = file.read_bytes()
    at = content.index(codes)
    file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    for read in (
        lambda lake: lake.bag("a", NAME, mpp=0.5),
        lambda lake: list(lake.stream(NAME, mpp=0.5)),
        lambda lake: lake.slide_means(NAME, mpp=0.5),
    ):
        with pytest.raises(DamageError, match=r"slide a at mpp 0\.5"):
            read(open_lake(lake.uri))
    assert [(one.slide, one.teacher) for one in verify(open_lake(lake.uri)).damage] == [("a", NAME)]


def test_readers_without_codecs_leave_it_alone_and_agree_on_its_checksums(lake: Lake) -> None:
    """As versions before codecs looked at a column: by its kind, then its type."""
    field = lake.table(features_table(0.5)).schema.field(NAME)
    assert field.metadata[b"slidelake:kind"] not in {b"teacher", b"score", b"annotation"}
    assert not pa.types.is_float16(field.type.value_type)
    row = lake.features_of(NAME, mpp=0.5, slide_ids=["b"]).row(0, named=True)
    reader = lake.row_reader(mpp=0.5)
    codes = reader.stored(row["fragment"], row["row_start"], row["tiles"], NAME)
    assert codes.dtype == np.uint8
    assert row["crc32"] == zlib.crc32(codes.astype("<f2").tobytes())
    assert features_crc32(codes[3:], features_crc32(codes[:3])) == row["crc32"]


def test_a_codec_of_a_later_version_is_told(lake: Lake) -> None:
    from featurestore.codecs.codec_files import read_codec
    from featurestore.tables.schema import CODEC_KEY

    field = lake.table(features_table(0.5)).schema.field(NAME)
    record = json.loads(field.metadata[CODEC_KEY]) | {"codec": "rq9"}
    later = field.with_metadata({**field.metadata, CODEC_KEY: json.dumps(record).encode()})
    assert dim_of(later) == DIM
    with pytest.raises(LakeError, match="later slidelake"):
        read_codec(lake.store, later)


def test_codes_are_read_in_place(lake: Lake) -> None:
    reader = lake.row_reader(mpp=0.5)
    row = lake.features_of(NAME, mpp=0.5).row(0, named=True)
    flat = reader._layout(row["fragment"], NAME)
    assert flat is not None
    assert (flat.positions >= 0).all()


# ---------------------------------------------------------------------- making


def test_a_killed_run_goes_on_at_the_next_fragment(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(made, tmp_path / "lake")
    lake = open_lake(tmp_path / "lake")
    monkeypatch.setattr(lance_quantising, "COMMIT_FRAGMENTS", 1)
    commit = Committer.commit_columns
    commits: list[Any] = []

    def killed(self: Committer, mpp: float, files: Any) -> None:  # noqa: ANN401
        if len(commits) == 1:
            raise KeyboardInterrupt
        commits.append(files)
        commit(self, mpp, files)

    with monkeypatch.context() as patch:
        patch.setattr(Committer, "commit_columns", killed)
        with pytest.raises(KeyboardInterrupt):
            quantise(lake, "t", codec="pq16", mpps=[0.5])
    planned: list[int] = []
    [made_now] = quantise(lake, "t", codec="pq16", mpps=[0.5], on_plan=planned.append)
    assert made_now.tiles == sum(planned) == LATER["c"]
    lake = lake.refreshed()
    for slide_id in (*SIZES, *LATER):
        np.testing.assert_array_equal(
            lake.bag(slide_id, "t~pq16", mpp=0.5).features, expected(lake, slide_id, "t~pq16")
        )
    assert verify(lake).ok
    [again] = quantise(lake, "t", codec="pq16", mpps=[0.5])
    assert (again.tiles, again.version) == (0, lake.version)


def test_new_slides_get_codes_of_the_same_codec(lake: Lake) -> None:
    before = lake.identity(NAME, mpp=0.5)
    lake = add_teacher(add_slides(lake, {"d": 9}), "t", DIM)
    tiles = [one.tiles for one in quantise(lake, "t")]
    lake = lake.refreshed()
    assert tiles == [9, 9]
    assert lake.identity(NAME, mpp=0.5) == before
    np.testing.assert_array_equal(lake.bag("d", NAME, mpp=0.5).features, expected(lake, "d"))


def test_other_features_of_the_same_name_are_refused(lake: Lake) -> None:
    drop(lake, "teacher", ["t"])
    lake = lake.refreshed()
    field = lake.committer.add_teacher(0.5, "t", DIM, {"weights": "other"})
    files = []
    lake = lake.refreshed()
    for (fragment,), rows in lake.tiles_of(mpp=0.5).sort("row_start").group_by("fragment"):
        writer = ColumnWriter(lake.store, 0.5, field, fragment)
        for row in rows.iter_rows(named=True):
            writer.append(row["slide"], normal(row["tiles"], DIM))
        files.append(writer.finish())
    lake.committer.commit_columns(0.5, files)
    with pytest.raises(IdentityError, match="made of other features"):
        quantise(lake, "t", mpps=[0.5])


def test_damaged_features_are_not_quantised(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "lake")
    lake = open_lake(tmp_path / "lake")
    row = lake.features_of("t", mpp=0.5, slide_ids=["a"]).row(0, named=True)
    reader = lake.row_reader(mpp=0.5)
    file = Path(lake.uri) / reader._data_file(row["fragment"], "t").path
    values = reader.stored(row["fragment"], row["row_start"], 1, "t").tobytes()
    content = file.read_bytes()
    at = content.index(values)
    file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    with pytest.raises(DamageError, match="slide a"):
        quantise(open_lake(lake.uri), "t", codec="pq8", mpps=[0.5])


def test_names_that_are_no_source(lake: Lake) -> None:
    with pytest.raises(LakeError, match="no features of 'u'"):
        quantise(lake, "u")
    with pytest.raises(LakeError, match="quantised already"):
        quantise(lake, NAME)
    with pytest.raises(LakeError, match="no codec"):
        quantise(lake, "t", codec="int4")


def test_the_command(lake: Lake, capsys: Output) -> None:
    answer = QUANTISE.run(capsys, Places({"lake": lambda: Path(lake.uri)}))
    [column] = answer.value["columns"]
    assert (column["column"], column["mpp"]) == ("t~pq16", 0.5)
    assert (column["bytes_per_tile"], column["source_bytes_per_tile"]) == (4, 2 * DIM)
    assert column["tiles"] == sum(SIZES.values()) + sum(LATER.values())
    assert column["cosine"] > 0.9
    codec = lake.refreshed().row_reader(mpp=0.5).codec("t~pq16")
    assert isinstance(codec, Codec)
