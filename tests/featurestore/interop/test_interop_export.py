"""A real lake as files of other tools, read as those tools read them, and back again.

The readers below say again, in a few lines, what the documentation and the sources of CLAM,
TRIDENT and STAMP say that they do with a file.
"""

import itertools
import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import anndata
import cv2
import h5py
import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow.parquet as pq
import pytest
import torch

from featurestore import Lake, LakeConfig, LakeError, create_lake, open_lake
from featurestore.interop import (
    WRITABLE,
    ExportResult,
    ImportFacts,
    InteropError,
    Problem,
    export_folder,
    import_folder,
    read_folder,
)
from featurestore.interop.writers.outbox import STAGING, Outbox
from featurestore.interop.writers.outline import mask_geojson, outlines
from tests.conftest import TEACHERS
from tests.worlds.interop_files import (
    cut_short,
    grid,
    trident_features,
    trident_patches,
    trident_tissue,
    two_contours,
    values,
)

ROOT = Path(__file__).resolve().parents[3]
TEACHER = TEACHERS[0]


def slides_of(lake: Lake) -> list[dict[str, Any]]:
    ready = lake.slides().filter(pl.col("state") == "ready").sort("slide_id").collect()
    return ready.to_dicts()


def truth(lake: Lake, slide_id: str, teacher: str = TEACHER) -> tuple[Any, Any]:
    """Coordinates [N, 2] and features [N, D] of a slide by a plain question."""
    rows = lake.features(teacher, mpp=0.5).filter(pl.col("slide_id") == slide_id)
    frame = rows.sort("tile_id").collect()
    return frame.select("x", "y").to_numpy(), frame[teacher].to_numpy()


def run(lake: Path, out: Path, name: str, **options: Any) -> ExportResult:  # noqa: ANN401
    done = export_folder(lake, out, format=name, **{"mpp": 0.5, **options})
    assert not done.failed
    assert not (out / STAGING).exists()
    return done


# ---------------------------------------------------------------------- as the others read it


def trident_reads(job: Path, slide: str, teacher: str) -> tuple[Any, Any, dict[str, Any]]:
    """`read_coords`, and the features beside it."""
    with h5py.File(job / "patches" / f"{slide}_patches.h5") as file:
        attrs, coords = dict(file["coords"].attrs), file["coords"][:]
    with h5py.File(job / f"features_{teacher}" / f"{slide}.h5") as file:
        assert np.array_equal(file["coords"][:], coords)
        assert set(file["coords"].attrs) == set(attrs)
        return coords, file["features"][:], attrs


def stamp_reads(path: Path) -> tuple[Any, Any, float, int]:
    """`get_coords`: coordinates in microns, and the size of a tile in microns and pixels."""
    with h5py.File(path) as file:
        assert file.attrs["feat_type"] == "tile"
        assert file.attrs["unit"] == "um"
        size, px = float(file.attrs["tile_size_um"]), int(file.attrs["tile_size_px"])
        return file["coords"][:], file["feats"][:], size, px


def test_trident_opens_the_export(filled: Path, lake: Lake, tmp_path: Path) -> None:
    done = run(filled, tmp_path / "out", "trident")
    job = tmp_path / "out" / "20x_256px_0px_overlap"
    assert done.written == len(slides_of(lake))
    for row in slides_of(lake):
        for teacher in TEACHERS:
            coords, features, attrs = trident_reads(job, row["slide_id"], teacher)
            xy, stored = truth(lake, row["slide_id"], teacher)
            assert (coords.dtype, features.dtype) == (np.int64, np.float32)
            assert np.array_equal(coords, xy)
            assert np.array_equal(features, stored.astype(np.float32))
        side = lake.tiles_of(mpp=0.5, slide_ids=[row["slide_id"]])["tile_px_level0"].item()
        assert attrs["patch_size"] == 256
        assert attrs["patch_size_level0"] == side
        assert attrs["target_magnification"] == 20
        # TRIDENT makes the one from the other by this very division.
        assert attrs["patch_size_level0"] == 256 * attrs["level0_magnification"] // 20
        assert (attrs["level0_width"], attrs["level0_height"]) == (
            row["width_px"],
            row["height_px"],
        )
        tissue = json.loads(
            (tmp_path / "out" / "contours_geojson" / f"{row['slide_id']}.geojson").read_text()
        )
        assert tissue["features"][0]["properties"] == {"tissue_id": 0}


def test_clam_opens_the_export(filled: Path, lake: Lake, tmp_path: Path) -> None:
    run(filled, tmp_path, "clam", teachers=[TEACHER])
    for row in slides_of(lake):
        name, (xy, stored) = row["slide_id"], truth(lake, row["slide_id"])
        # Generic_MIL_Dataset: torch.load of the .pt file, or features and coords of the .h5 file.
        bag = torch.load(tmp_path / f"features_{TEACHER}" / "pt_files" / f"{name}.pt")
        assert bag.dtype == torch.float32
        assert np.array_equal(bag.numpy(), stored.astype(np.float32))
        with h5py.File(tmp_path / f"features_{TEACHER}" / "h5_files" / f"{name}.h5") as file:
            assert np.array_equal(file["features"][:], bag.numpy())
            assert np.array_equal(file["coords"][:], xy)
            assert file["coords"].dtype == np.int32
        # Whole_Slide_Bag_FP: reads patch_size pixels at patch_level from each coordinate.
        with h5py.File(tmp_path / "patches" / f"{name}.h5") as file:
            attrs = dict(file["coords"].attrs)
            assert np.array_equal(file["coords"][:], xy)
        side = lake.tiles_of(mpp=0.5, slide_ids=[name])["tile_px_level0"].item()
        assert (attrs["patch_level"], attrs["patch_size"]) == (0, side)
        # TRIDENT's reader of CLAM's files multiplies by this one, which must not be there.
        assert "custom_downsample" not in attrs
    assert not list(tmp_path.glob(f"features_{TEACHERS[1]}"))


def test_stamp_opens_the_export(filled: Path, lake: Lake, tmp_path: Path) -> None:
    run(filled, tmp_path, "stamp")
    for row in slides_of(lake):
        coords, feats, size_um, px = stamp_reads(tmp_path / TEACHER / f"{row['slide_id']}.h5")
        xy, stored = truth(lake, row["slide_id"])
        assert (coords.dtype, feats.dtype) == (np.float32, np.float16)
        assert np.array_equal(np.round(coords / row["mpp"]), xy)
        assert np.array_equal(feats, stored)
        effective = lake.tiles_of(mpp=0.5, slide_ids=[row["slide_id"]])["effective_mpp"].item()
        assert size_um / px == pytest.approx(effective, rel=1e-6)
        # Neighbours are one tile apart, which STAMP's heat maps take for granted.
        steps = np.diff(np.unique(coords[:, 0]))
        assert np.allclose(steps / size_um, np.round(steps / size_um), atol=1e-4)


def polygons(path: Path) -> tuple[dict[str, list[Any]], list[list[npt.NDArray[np.float64]]]]:
    """Columns of a GeoParquet file, and the rings of each polygon by its well-known binary."""
    table = pq.read_table(path)
    assert json.loads(table.schema.metadata[b"geo"])["primary_column"] == "geometry"
    columns = table.to_pydict()
    polygon_rings = []
    for wkb in columns.pop("geometry"):
        order, kind, count = struct.unpack_from("<BII", wkb)
        assert (order, kind) == (1, 3)
        at, rings = 9, []
        for _ in range(count):
            (points,) = struct.unpack_from("<I", wkb, at)
            rings.append(np.frombuffer(wkb, "<f8", points * 2, at + 4).reshape(-1, 2))
            at += 4 + points * 16
        assert at == len(wkb)
        polygon_rings.append(rings)
    return columns, polygon_rings


@pytest.mark.slow
def test_anndata_opens_the_export(filled: Path, lake: Lake, tmp_path: Path) -> None:
    run(filled, tmp_path, "anndata")
    for row in slides_of(lake):
        store = tmp_path / f"{row['slide_id']}.zarr"
        xy, stored = truth(lake, row["slide_id"])
        table = anndata.read_zarr(store / "tables" / f"{TEACHER}_tiles")
        assert table.X.dtype == np.float32
        assert np.array_equal(table.X, stored.astype(np.float32))
        assert np.array_equal(table.obsm["spatial"], xy)
        assert table.obs["tile_id"].tolist() == list(range(len(xy)))
        assert set(table.obs["library_id"]) == {"tiles"}
        keys = {"region": "tiles", "region_key": "library_id", "instance_key": "tile_id"}
        assert table.uns["spatialdata_attrs"] == keys
        assert json.loads(table.uns["slidelake"]["identity"])["weights_sha256"]
        side = lake.tiles_of(mpp=0.5, slide_ids=[row["slide_id"]])["tile_px_level0"].item()
        columns, squares = polygons(store / "shapes" / "tiles" / "shapes.parquet")
        assert columns["tile_id"] == table.obs["tile_id"].tolist()
        corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]) * side
        for place, (ring,) in zip(xy, squares, strict=True):
            assert np.array_equal(ring, place + corners)
        _, tissue = polygons(store / "shapes" / "tissues" / "shapes.parquet")
        outline = outlines(tissue_mask(lake, row["slide_id"]))
        assert [len(rings) for rings in tissue] == [len(rings) for rings in outline]


def tissue_mask(lake: Lake, slide_id: str) -> npt.NDArray[np.bool_]:
    png = lake.pictures(slide_id)["tissue_mask"]
    assert png is not None
    mask = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_GRAYSCALE)
    assert mask is not None
    return np.asarray(mask > 0, bool)


def filled_in(
    features: list[dict[str, Any]], shape: tuple[int, int], scale: tuple[float, float]
) -> npt.NDArray[np.int64]:
    """Count the polygons over each pixel of an overview, by their crossings."""
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    count = np.zeros(shape, np.int64)
    for feature in features:
        inside = np.zeros(shape, bool)
        for ring in feature["geometry"]["coordinates"]:
            points = np.array(ring) / scale
            assert np.array_equal(points[0], points[-1])
            for (x0, y0), (x1, y1) in itertools.pairwise(points):
                inside ^= (x0 == x1) & (x > x0) & (y > min(y0, y1)) & (y < max(y0, y1))
        count += inside
    return count


def test_geojson_is_the_tissue_mask_to_the_pixel(filled: Path, lake: Lake, tmp_path: Path) -> None:
    export_folder(filled, tmp_path, format="geojson")
    for row in slides_of(lake):
        collection = json.loads((tmp_path / f"{row['slide_id']}.geojson").read_text())
        assert collection["type"] == "FeatureCollection"
        for feature in collection["features"]:
            assert feature["type"] == "Feature"
            assert feature["properties"]["objectType"] == "annotation"
            assert feature["properties"]["classification"]["name"] == "Tissue"
        mask = tissue_mask(lake, row["slide_id"])
        scale = row["width_px"] / mask.shape[1], row["height_px"] / mask.shape[0]
        assert np.array_equal(filled_in(collection["features"], mask.shape, scale), mask)


def test_geojson_of_tiles(filled: Path, lake: Lake, tmp_path: Path) -> None:
    run(filled, tmp_path, "geojson", tiles=True)
    name = slides_of(lake)[0]["slide_id"]
    features = json.loads((tmp_path / f"{name}.geojson").read_text())["features"]
    squares = [f for f in features if f["properties"]["objectType"] == "tile"]
    xy, _ = truth(lake, name)
    assert [f["geometry"]["coordinates"][0][0] for f in squares] == xy.tolist()
    side = lake.tiles_of(mpp=0.5, slide_ids=[name])["tile_px_level0"].item()
    assert squares[0]["geometry"]["coordinates"][0][2] == (xy[0] + side).tolist()


@pytest.mark.parametrize("seed", range(20))
def test_outlines_of_any_mask_give_it_back(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random(rng.integers(1, 14, 2)) < rng.random()
    features = mask_geojson(mask, mask.shape[1] * 3, mask.shape[0] * 5)["features"]
    assert np.array_equal(filled_in(features, mask.shape, (3, 5)), mask)
    parts = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)[0] - 1
    assert len(features) == parts


# ---------------------------------------------------------------------- and back


ROUND_TRIPS = [("trident", {}), ("clam", {"mpp": 0.5, "teachers": ("uni=features_uni",)})]


def both(lake: Path) -> dict[str, tuple[Any, Any, dict[str, Any]]]:
    opened = open_lake(lake)
    rows = opened.tiles_of(mpp=0.5).select("slide_id", "tile_px_level0", "effective_mpp", "crc32")
    slides = {}
    for row in rows.to_dicts():
        xy, features = truth(opened, row["slide_id"], "uni")
        slides[row["slide_id"]] = (xy, features, {k: row[k] for k in row if k != "slide_id"})
    return slides


@pytest.mark.parametrize(("name", "options"), [*ROUND_TRIPS, ("stamp", {"level0_mpp": 0.25})])
def test_round_trip_gives_the_same_lake(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    job = tmp_path / "job"
    for number in range(3):
        xy = two_contours() + 10 * number
        trident_patches(job, f"s{number}", xy)
        trident_features(job, f"s{number}", xy, "uni", values(21, 8, number))
    trident_tissue(tmp_path, "s1")
    assert not import_folder(tmp_path / "one", job, format="trident").failed
    run(tmp_path / "one", tmp_path / "out", name)
    done = import_folder(
        tmp_path / "two", tmp_path / "out", format=name, facts=ImportFacts(**options)
    )
    assert not done.failed
    first, second = both(tmp_path / "one"), both(tmp_path / "two")
    assert first.keys() == second.keys()
    for slide, (xy, features, slide_row) in first.items():
        assert np.array_equal(second[slide][0], xy)
        assert np.array_equal(second[slide][1], features)
        assert second[slide][2] == pytest.approx(slide_row)
    if name == "trident":
        catalogs = [
            open_lake(tmp_path / part).slides().select("slide_id", "tissue_geojson").collect()
            for part in ("one", "two")
        ]
        assert catalogs[0].equals(catalogs[1])


@pytest.mark.parametrize("name", ["trident", "clam", "stamp"])
def test_exports_of_a_real_lake_are_read_back(
    filled: Path, lake: Lake, tmp_path: Path, name: str
) -> None:
    run(filled, tmp_path, name, teachers=[TEACHER])
    mpps = {row["slide_id"]: row["mpp"] for row in slides_of(lake)}
    facts = ImportFacts(
        teachers=(f"{TEACHER}=features_{TEACHER}",) if name == "clam" else (),
        known_mpp=mpps.get,
    )
    problems: list[Problem] = []
    slides = list(read_folder(tmp_path, name, facts=facts, on_problem=problems.append))
    assert not problems
    assert {slide.slide_id for slide in slides} == set(mpps)
    for slide in slides:
        xy, stored = truth(lake, slide.slide_id)
        assert np.array_equal(slide.xy, xy)
        assert np.array_equal(slide.features[TEACHER].astype(np.float16), stored)
        row = lake.tiles_of(mpp=0.5, slide_ids=[slide.slide_id]).row(0, named=True)
        assert (slide.tile_px, slide.tile_px_level0) == (256, row["tile_px_level0"])
        assert slide.effective_mpp == pytest.approx(row["effective_mpp"])


# ---------------------------------------------------------------------- again, and when it fails


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n == "anndata" else []) for n in WRITABLE]
)
def test_a_second_export_writes_nothing_and_a_damaged_file_again(
    filled: Path, lake: Lake, tmp_path: Path, name: str
) -> None:
    first = run(filled, tmp_path, name)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    second = run(filled, tmp_path, name)
    assert (second.written, second.files) == (0, 0)
    assert second.complete == first.written == len(slides_of(lake))
    assert files == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    for pattern in ("*.h5", "*.pt", "*.parquet", "*.geojson"):
        for path in sorted(tmp_path.rglob(pattern))[:1]:
            whole = path.stat().st_size
            cut_short(path)
            assert run(filled, tmp_path, name).written == 1
            assert path.stat().st_size == whole


def test_an_anndata_store_that_lost_a_chunk_is_written_again(filled: Path, tmp_path: Path) -> None:
    run(filled, tmp_path, "anndata", teachers=[TEACHER])
    (chunk, *_) = sorted(tmp_path.glob(f"*.zarr/tables/{TEACHER}_tiles/X/c/0/0"))
    chunk.unlink()
    assert run(filled, tmp_path, "anndata", teachers=[TEACHER]).written == 1
    assert chunk.is_file()


def test_features_that_changed_are_exported_again(tmp_path: Path) -> None:
    for number in (1, 2):
        trident_patches(tmp_path / f"job{number}", "a", grid(2, 2))
        trident_features(tmp_path / f"job{number}", "a", grid(2, 2), "uni", values(4, 8, number))
        import_folder(tmp_path / f"lake{number}", tmp_path / f"job{number}", format="trident")
    for name in ("trident", "clam", "stamp", "anndata"):
        run(tmp_path / "lake1", tmp_path / name, name)
        assert run(tmp_path / "lake2", tmp_path / name, name).written == 1
    table = anndata.read_zarr(tmp_path / "anndata" / "a.zarr" / "tables" / "uni_tiles")
    rows = [grid(2, 2).tolist().index(place) for place in table.obsm["spatial"].tolist()]
    assert np.array_equal(table.X, values(4, 8, 2)[rows].astype(np.float16).astype(np.float32))


def test_slides_without_tiles_or_features(tmp_path: Path) -> None:
    job = tmp_path / "job"
    trident_patches(job, "a", grid(2, 2))
    trident_features(job, "a", grid(2, 2), "uni", values(4, 8))
    trident_patches(job, "bare", grid(2, 2))
    trident_patches(job, "empty", np.zeros((0, 2), np.int64))
    import_folder(tmp_path / "lake", job, format="trident")
    run(tmp_path / "lake", tmp_path / "trident", "trident")
    folder = tmp_path / "trident" / "20x_256px_0px_overlap"
    assert sorted(path.stem for path in (folder / "features_uni").iterdir()) == ["a", "empty"]
    with h5py.File(folder / "features_uni" / "empty.h5") as file:
        assert (file["coords"].shape, file["features"].shape) == ((0, 2), (0, 8))
    # Asked for by name, a slide without these features is a failure.
    done = export_folder(tmp_path / "lake", tmp_path / "o", format="stamp", teachers=["uni"])
    (failed,) = done.failed
    assert failed["slide"] == "bare"
    assert "has no features of uni yet" in failed["reason"]
    run(tmp_path / "lake", tmp_path / "anndata", "anndata")
    assert run(tmp_path / "lake", tmp_path / "anndata", "anndata").complete == 3
    done = export_folder(tmp_path / "lake", tmp_path / "geojson", format="geojson")
    assert "the lake has no outline of its tissue" in done.failed[0]["reason"]


def test_stamp_needs_the_mpp_of_each_slide(tmp_path: Path) -> None:
    attrs = {"patch_size_level0": 512, "level0_magnification": "None"}
    trident_patches(tmp_path / "job", "a", grid(2, 2), **attrs)
    path = tmp_path / "job" / "patches" / "a_patches.h5"
    with h5py.File(path, "a") as file:
        del file["coords"].attrs["level0_magnification"]
    import_folder(tmp_path / "lake", tmp_path / "job", format="trident")
    assert open_lake(tmp_path / "lake").tiles_of(mpp=0.5)["effective_mpp"].item() is None
    (failed,) = export_folder(tmp_path / "lake", tmp_path / "out", format="stamp").failed
    assert "the lake does not know the slide's mpp; import it again" in failed["reason"]


def test_slides_that_failed_to_be_ingested_are_left_out_and_said(tmp_path: Path) -> None:
    lake = create_lake(tmp_path / "lake", LakeConfig())
    rows = lake.committer.register([{"slide_id": "a", "uri": "a.svs"}])
    lake.committer.fail([{**rows[0], "reason": "no tissue found"}])
    done = run(tmp_path / "lake", tmp_path / "out", "trident")
    assert done.left_out == [{"slide": "a", "reason": "no tissue found"}]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "trident"}, r"several mpps, \[0\.5, 2\.0\]; give --mpp"),
        ({"format": "trident", "mpp": 1.0}, "no tiles at mpp 1.0"),
        ({"format": "trident", "mpp": 0.5, "teachers": ["uni"]}, "no features of 'uni'"),
        ({"format": "slide2vec", "mpp": 0.5}, "can't be exported; those that can: trident, clam"),
        ({"format": "clam", "mpp": 0.5, "version": 10_000}, "no version 10000"),
    ],
)
def test_export_says_what_is_wrong(
    filled: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(LakeError, match=message):
        export_folder(filled, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_two_exports_into_one_folder_are_kept_apart(filled: Path, tmp_path: Path) -> None:
    with (
        Outbox(tmp_path),
        pytest.raises(InteropError, match="another export is writing to"),
    ):
        export_folder(filled, tmp_path, format="geojson")
    with pytest.raises(InteropError, match="exports are written to a local folder"):
        export_folder(filled, "s3://bucket/out", format="geojson")


@pytest.mark.slow
def test_a_killed_export_leaves_only_whole_files_and_goes_on(filled: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from featurestore.interop import export_folder; print('up', flush=True);"
        "export_folder(sys.argv[1], sys.argv[2], format='clam', mpp=0.5)"
    )
    out = tmp_path / "out"
    for seconds in (0.1, 0.6, 1.2):
        command = [sys.executable, "-c", code, str(filled), str(out)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            time.sleep(seconds)
            os.kill(process.pid, signal.SIGKILL)
        for path in out.rglob("*_files/*.h5"):
            with h5py.File(path) as file:
                assert len(file["features"]) == len(file["coords"])
    run(filled, out, "clam")
    undisturbed = tmp_path / "undisturbed"
    run(filled, undisturbed, "clam")
    names = [{p.relative_to(f) for p in f.rglob("*") if p.is_file()} for f in (out, undisturbed)]
    assert names[0] == names[1]
