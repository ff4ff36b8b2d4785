"""A slide's attention as files: squares where the tiles are, in the form that QuPath reads."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image
from typer.testing import CliRunner

import slidelake
from downstream.report.attention_maps import AttentionError, tile_geojson, write_attention
from downstream.report.finished_run import RunError
from featurestore import Lake
from ingest.tissue.masks import read_mask
from tests.worlds.painted_lake import ACROSS, DOWN, HEIGHT_PX, SIDE_PX, WIDTH_PX, painted_lake
from tests.worlds.run_folders import tile_attention, write_run

ARM = "good / abmil"


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    made = painted_lake(tmp_path_factory.mktemp("lake") / "lake", patients=6)
    write_run(made, patients=6)
    return made


def expected(lake: Lake, slide_id: str, fold: int) -> pl.DataFrame:
    return tile_attention(lake, ARM, fold, 6).filter(pl.col("slide_id") == slide_id)


def collection(path: Path) -> list[dict[str, Any]]:
    """Features of a file, each checked against RFC 7946 and what QuPath takes."""
    content = json.loads(path.read_bytes())
    assert content.keys() == {"type", "features"}
    assert content["type"] == "FeatureCollection"
    for feature in content["features"]:
        assert feature.keys() == {"type", "geometry", "properties"}
        assert feature["type"] == "Feature"
        assert feature["geometry"]["type"] == "Polygon"
        (ring,) = feature["geometry"]["coordinates"]
        assert ring[0] == ring[-1]
        assert len({tuple(corner) for corner in ring}) == 4
        properties = feature["properties"]
        assert properties.keys() == {"objectType", "classification", "measurements"}
        assert properties["objectType"] == "tile"
        # a colon would make QuPath derive one class from another
        assert ":" not in properties["classification"]["name"]
        colour = properties["classification"]["color"]
        assert len(colour) == 3
        assert all(type(part) is int and 0 <= part <= 255 for part in colour)
        assert all(
            type(measurement) is float for measurement in properties["measurements"].values()
        )
    features: list[dict[str, Any]] = content["features"]
    return features


def area(ring: list[list[int]]) -> float:
    """Shoelace formula; positive where x to the right and y downwards go clockwise."""
    x, y = np.array(ring, dtype=np.float64).T
    return float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2)


def test_squares_are_the_tiles(lake: Lake, tmp_path: Path) -> None:
    png, geojson, table = write_attention(lake, "mil-binary", "s01b", folder=tmp_path / "new" / "a")
    assert [path.name for path in (png, geojson, table)] == [
        f"s01b-good_abmil.{ending}" for ending in ("png", "geojson", "csv")
    ]
    features = collection(geojson)
    corners = set()
    for feature in features:
        (ring,) = feature["geometry"]["coordinates"]
        assert area(ring) == SIDE_PX**2
        x, y = (np.array(part) for part in zip(*ring, strict=True))
        assert x.min() >= 0
        assert y.min() >= 0
        assert x.max() <= WIDTH_PX
        assert y.max() <= HEIGHT_PX
        corners.add((int(x.min()), int(y.min())))
    grid = {(x * SIDE_PX, y * SIDE_PX) for y in range(DOWN) for x in range(ACROSS)}
    assert corners == grid
    assert len(features) == len(grid)
    with Image.open(png) as image:
        assert image.format == "PNG"


def test_measurements_are_the_attention_and_its_rank(lake: Lake, tmp_path: Path) -> None:
    _, geojson, table = write_attention(lake, "mil-binary", "s03a", folder=tmp_path)
    tile_at = {(row["x"], row["y"]): row for row in expected(lake, "s03a", 1).to_dicts()}
    attentions = np.array([row["attention"] for row in tile_at.values()])
    for feature in collection(geojson):
        x, y = feature["geometry"]["coordinates"][0][0]
        attention, rank = (feature["properties"]["measurements"][k] for k in ("attention", "rank"))
        assert attention == tile_at[x, y]["attention"]
        others = (attentions < attention).sum() + ((attentions == attention).sum() - 1) / 2
        assert rank == pytest.approx(others / (len(attentions) - 1))
        fifth = min(int(rank * 5), 4)
        name = feature["properties"]["classification"]["name"]
        assert name == f"attention {20 * fifth} to {20 * fifth + 20} %"
    rows = list(csv.DictReader(io.StringIO(table.read_text())))
    assert len(rows) == len(tile_at)
    first = rows[0]
    assert first.keys() == {"slide_id", "tile_id", "mpp", "x", "y", "attention", "rank"}
    assert float(first["rank"]) == 1.0
    assert int(first["tile_id"]) == tile_at[0, 0]["tile_id"]
    colours = {
        f["properties"]["classification"]["name"]: f["properties"]["classification"]["color"]
        for f in collection(geojson)
    }
    brightness = [sum(colours[name]) for name in sorted(colours)]
    assert brightness == sorted(brightness)


def test_the_squares_cover_the_tiles(lake: Lake, tmp_path: Path) -> None:
    """Read by what reads annotations that QuPath exports, once they are called so."""
    _, geojson, _ = write_attention(lake, "mil-binary", "s02a", folder=tmp_path)
    annotations = tmp_path / "mask.geojson"
    annotations.write_text(geojson.read_text().replace('"tile"', '"annotation"'))
    size, shape = (WIDTH_PX, HEIGHT_PX), (HEIGHT_PX // 4, WIDTH_PX // 4)
    mask = read_mask(str(annotations), size_px=size, shape=shape, scale=4.0)
    expected = np.zeros(shape, dtype=bool)
    expected[: DOWN * SIDE_PX // 4, : ACROSS * SIDE_PX // 4] = True
    assert np.array_equal(mask, expected)


def test_tiles_end_with_the_slide() -> None:
    """Grids begin at level 0's corner, so the last tiles may reach beyond the slide."""
    tiles = pl.DataFrame(
        {
            "x": [0, 256, 256],
            "y": [0, 0, 256],
            "attention": [0.1, 0.2, 0.7],
            "rank": [0.0, 0.5, 1.0],
        }
    )
    made = tile_geojson(tiles, side_px=256, size_px=(500, 300))["features"]
    rings = [feature["geometry"]["coordinates"][0] for feature in made]
    assert [area(ring) for ring in rings] == [256 * 256, 244 * 256, 244 * 44]
    assert np.array(rings).max(axis=(0, 1)).tolist() == [500, 300]


def test_two_mpps_have_files_each(tmp_path: Path) -> None:
    lake = painted_lake(tmp_path / "lake", patients=4, mpps=(0.5, 1.0), thumbnail=False)
    write_run(lake, patients=4, arms=(ARM, "other / abmil"), attention=(ARM, "other / abmil"))
    paths = write_attention(lake, "mil-binary", "s02a", arm="other / abmil", folder=tmp_path)
    assert [path.name for path in paths if path.suffix == ".geojson"] == [
        "s02a-other_abmil-mpp0.5.geojson",
        "s02a-other_abmil-mpp1.geojson",
    ]
    for path, side in zip(paths[1::3], (SIDE_PX, 2 * SIDE_PX), strict=True):
        features = collection(path)
        assert len(features) == ACROSS * DOWN * SIDE_PX**2 // side**2
        assert {area(f["geometry"]["coordinates"][0]) for f in features} == {side**2}
        assert max(f["properties"]["measurements"]["rank"] for f in features) == 1.0
    assert len(write_attention(lake, "mil-binary", "s02a", folder=tmp_path)) == 12


def test_what_can_not_be_written_is_told(lake: Lake, tmp_path: Path) -> None:
    write_run(lake, run="mil-mean", arms=("a / mean",), attention=(), patients=6)
    out = tmp_path / "out"
    with pytest.raises(RunError, match=r"no finished run 'mil-binry'; it has: mil-binary"):
        write_attention(lake, "mil-binry", "s01a", folder=out)
    with pytest.raises(RunError, match=r"has no arm 'best'; it has: good / abmil, noise / mean"):
        write_attention(lake, "mil-binary", "s01a", arm="best", folder=out)
    with pytest.raises(
        AttentionError, match=r"'noise / mean' .* does not weigh tiles; these do: go"
    ):
        write_attention(lake, "mil-binary", "s01a", arm="noise / mean", folder=out)
    with pytest.raises(AttentionError, match=r"mil-mean has no attention .* models \(mean\) do"):
        write_attention(lake, "mil-mean", "s01a", folder=out)
    with pytest.raises(AttentionError, match=r"slide 's01c' is not in .*; it has: s0"):
        write_attention(lake, "mil-binary", "s01c", folder=out)
    write_run(lake, run="mil-few", patients=4)
    with pytest.raises(AttentionError, match=r"'s05a' is in no test part of run mil-few, which ha"):
        write_attention(lake, "mil-few", "s05a", folder=out)
    assert not out.exists()


def test_command(lake: Lake, tmp_path: Path) -> None:
    arguments = ["attention", lake.uri, "mil-binary", "s01a", "--arm", ARM, "--out", str(tmp_path)]
    done = CliRunner().invoke(slidelake.app, [*arguments, "--json"])
    assert done.exit_code == 0
    answer = json.loads(done.stdout.splitlines()[-1])
    assert (answer["run"], answer["slide"]) == ("mil-binary", "s01a")
    assert [Path(path).exists() for path in answer["files"]] == [True] * 3
    plain = CliRunner().invoke(slidelake.app, arguments)
    assert plain.stdout.split() == answer["files"]
