"""Users' masks: the same pixels as other rasterisers give, and an error for what would be wrong."""

import io
import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import fsspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.path import Path as Outline
from PIL import Image

from ingest.errors import InputError, SlideError
from ingest.tissue.mask_folder import mask_mark, open_masks
from ingest.tissue.masks import BoolArray, fill, read_mask
from tests.worlds.interop_files import trident_tissue

SIZE = (4000, 3000)  # level-0 pixels of the slide of these tests
SHAPE, SCALE = (94, 125), 32.0  # of its overview, which reaches beyond the slide
SQUARE = [[320, 320], [1600, 320], [1600, 1600], [320, 1600], [320, 320]]
HOLE = [[640, 640], [1280, 640], [1280, 1280], [640, 1280], [640, 640]]


Json = dict[str, Any]
ReadJson = Callable[[object], BoolArray]


def feature(*rings: list[list[int]], name: str | None = None) -> Json:
    """An annotation in the form that QuPath 0.5 exports."""
    properties: Json = {"objectType": "annotation"}
    if name:
        properties["classification"] = {"name": name, "color": [200, 0, 0]}
    geometry = {"type": "Polygon", "coordinates": list(rings)}
    return {"type": "Feature", "id": "1", "geometry": geometry, "properties": properties}


def collection(*features: Json) -> Json:
    return {"type": "FeatureCollection", "features": list(features)}


def read(path: Path, size: tuple[int, int] = SIZE) -> BoolArray:
    return read_mask(str(path), size_px=size, shape=SHAPE, scale=SCALE)


@pytest.fixture
def geojson(tmp_path: Path) -> ReadJson:
    def of(document: object) -> BoolArray:
        (tmp_path / "s.geojson").write_text(json.dumps(document))
        return read(tmp_path / "s.geojson")

    return of


def box(left: int, top: int, right: int, bottom: int) -> BoolArray:
    """Overview pixels of a box given in level-0 pixels that are whole overview pixels."""
    mask = np.zeros(SHAPE, bool)
    mask[top // 32 : bottom // 32, left // 32 : right // 32] = True
    return mask


# -------------------------------------------------------------- rasterisation


def middles(shape: tuple[int, int], scale: float) -> np.typing.NDArray[np.float64]:
    y, x = np.mgrid[: shape[0], : shape[1]]
    return np.stack([(x.ravel() + 0.5) * scale, (y.ravel() + 0.5) * scale], -1)


@given(st.integers(0, 2**32 - 1), st.floats(0.7, 40))
def test_stars_with_holes_are_filled_as_matplotlib_fills_them(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    shape = (60, 80)
    turn = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 60)))
    ray = np.stack([np.cos(turn), np.sin(turn)], -1)
    middle = np.array([40.0, 30.0]) * scale + rng.normal(0, 10 * scale, 2)
    far = rng.uniform(5, 60, (len(turn), 1)) * scale  # some reach beyond the slide
    outer, hole = middle + ray * far, middle + ray * far * 0.4
    at = middles(shape, scale)
    inside = Outline(outer).contains_points(at) & ~Outline(hole).contains_points(at)
    filled = fill([[outer, hole]], shape, scale)
    np.testing.assert_array_equal(filled, inside.reshape(shape))


def test_many_overlapping_polygons_are_their_union() -> None:
    rng = np.random.default_rng(0)
    shape, scale = (120, 160), 8.0
    expected = np.zeros(shape[0] * shape[1], bool)
    polygons = []
    for _ in range(500):
        ring = (rng.uniform((-9, -9), shape[::-1]) + rng.uniform(0, 9, (5, 2))) * scale
        ring = ring[np.argsort(np.arctan2(*(ring - ring.mean(0)).T))]
        polygons.append([ring])
        expected |= Outline(ring).contains_points(middles(shape, scale))
    assert 0.3 < expected.mean() < 0.95
    np.testing.assert_array_equal(fill(polygons, shape, scale), expected.reshape(shape))


def test_corners_on_the_middles_of_pixels_count_once() -> None:
    diamond = np.array([[4.5, 0.5], [8.5, 4.5], [4.5, 8.5], [0.5, 4.5]])
    y, x = np.mgrid[:9, :9]
    expected = abs(x - 4) + abs(y - 4) < 4
    filled = fill([[diamond]], (9, 9), 1.0)
    np.testing.assert_array_equal(filled & expected, expected)
    assert not filled[abs(x - 4) + abs(y - 4) > 4].any()


# -------------------------------------------------------------------- GeoJSON


def test_every_form_that_qupath_exports(geojson: ReadJson) -> None:
    expected = box(320, 320, 1600, 1600) & ~box(640, 640, 1280, 1280)
    one = feature(SQUARE, HOLE, name="Tissue")
    parts = {"type": "MultiPolygon", "coordinates": [[SQUARE, HOLE]]}
    for document in (
        collection(one),
        one,
        [one],  # without FEATURE_COLLECTION
        one["geometry"],
        {**one, "properties": {}},
        {"type": "Feature", "geometry": parts, "properties": None},
        {"type": "GeometryCollection", "geometries": [parts, {"type": "Point"}]},
        collection(one, {"type": "Feature", "geometry": None, "properties": {}}),
    ):
        np.testing.assert_array_equal(geojson(document), expected)


@pytest.mark.parametrize(
    "name", ["Ignore*", "Artefact*", "Background", "ignore", "Ignore*: Positive", "Pen*"]
)
def test_ignored_classes_are_cut_out(name: str, geojson: ReadJson) -> None:
    expected = box(320, 320, 1600, 1600) & ~box(640, 640, 1280, 1280)
    mask = geojson(collection(feature(HOLE, name=name), feature(SQUARE, name="Tumor")))
    np.testing.assert_array_equal(mask, expected)
    parts = feature(HOLE)
    parts["properties"]["classification"] = {"names": name.split(": ")}
    np.testing.assert_array_equal(geojson(collection(feature(SQUARE), parts)), expected)
    with pytest.raises(SlideError, match=r"no polygons of tissue \(1 of ignored classes\)"):
        geojson(collection(feature(SQUARE, name=name)))


@pytest.mark.parametrize("name", ["Region*", "Other", "Stroma", "Necrosis", None])
def test_other_classes_are_tissue(name: str | None, geojson: ReadJson) -> None:
    mask = geojson(collection(feature(SQUARE, name=name)))
    np.testing.assert_array_equal(mask, box(320, 320, 1600, 1600))


def test_cells_points_and_lines_are_left_out(geojson: ReadJson) -> None:
    cell = feature([[3200, 320], [3520, 320], [3520, 640]])
    cell["properties"]["objectType"] = "cell"
    line = {"type": "LineString", "coordinates": [[0, 0], [4000, 3000]]}
    mask = geojson(
        collection(feature(SQUARE), cell, {"type": "Feature", "geometry": line, "properties": {}})
    )
    np.testing.assert_array_equal(mask, box(320, 320, 1600, 1600))
    with pytest.raises(SlideError, match="has no polygons of tissue"):
        geojson(collection(cell))


def test_nothing_beyond_the_slide_is_tissue(geojson: ReadJson) -> None:
    # 3000 / 32 = 93.75: the middle of the last row lies inside.
    frame = feature([[-500, -500], [4500, -500], [4500, 3500], [-500, 3500]])
    assert geojson(frame).all()
    fsspec.filesystem("memory").pipe("/frame.json", json.dumps(frame).encode())
    size = (SIZE[0] - 32, SIZE[1])
    mask = read_mask("memory://frame.json", size_px=size, shape=SHAPE, scale=SCALE)
    assert mask[:, :124].all()
    assert not mask[:, 124].any()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("not json {", "is not JSON"),
        ("", "is not JSON"),
        ("\xff\xfe", "is not JSON|is not GeoJSON"),
        ("7", "is not GeoJSON"),
        ('{"features": []}', "is not GeoJSON: KeyError 'type'"),
        ('{"type": "FeatureCollection", "features": []}', "has no polygons of tissue"),
        ('{"type": "Polygon", "coordinates": [[["a", 1], [2, 3], [4, 5]]]}', "is not GeoJSON"),
        ('{"type": "Polygon", "coordinates": [[[NaN, 1], [2, 3], [4, 5]]]}', "finite x, y"),
        ('{"type": "Polygon", "coordinates": []}', "finite x, y"),
        (
            '{"type": "Polygon", "coordinates": [[[5000, 10], [5100, 10], [5100, 99]]]}',
            r"lies outside the slide: x 5000 to 5100, y 10 to 99, the slide has 4000 x 3000 px",
        ),
        (
            '{"type": "Polygon", "coordinates": [[[50, 10], [9100, 10], [9100, 99]]]}',
            "reaches far beyond the slide",
        ),
        ('{"type": "Polygon", "coordinates": [[[50, 10], [51, 10], [51, 11]]]}', "no tissue"),
    ],
)
def test_geojson_that_is_no_mask_of_this_slide(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "s.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(SlideError, match=reason):
        read(tmp_path / "s.json")


# ------------------------------------------------------------------------ PNG


def png(picture: Image.Image, **options: int) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", **options)
    return file.getvalue()


def pictures() -> dict[str, bytes]:
    """The left half of the slide, 400 x 300, in every kind of PNG."""
    half = np.zeros((300, 400), np.uint8)
    half[:, :200] = 1
    palette = Image.fromarray(half)
    palette.putpalette([255, 255, 255, 0, 0, 0])  # background white, tissue black
    clear = np.zeros((300, 400, 4), np.uint8)
    clear[..., 3] = half * 255  # tissue opaque black, the rest transparent
    hidden = np.full((300, 400, 4), 200, np.uint8)
    hidden[..., 3] = half * 255
    red = np.zeros((300, 400, 3), np.uint8)
    red[..., 0] = half
    _, deep = cv2.imencode(".png", half[..., None].repeat(3, -1).astype(np.uint16))
    return {
        "1 bit": png(Image.fromarray(half * 255).convert("1")),
        "8 bit": png(Image.fromarray(half)),
        "16 bit": png(Image.fromarray(half.astype(np.uint16))),
        "16 bit colours": bytes(deep),
        "colours": png(Image.fromarray(red)),
        "palette": png(palette),
        "palette of 1 bit": png(palette, bits=1),
        "grey and alpha": png(Image.fromarray(half * 255).convert("LA")),
        "alpha alone": png(Image.fromarray(clear)),
        "colour under alpha 0": png(Image.fromarray(hidden)),
    }


@pytest.mark.parametrize("kind", pictures())
def test_every_kind_of_png(kind: str, tmp_path: Path) -> None:
    (tmp_path / "s.png").write_bytes(pictures()[kind])
    mask = read(tmp_path / "s.png")
    x = (np.arange(125) + 0.5) * 32
    np.testing.assert_array_equal(mask, np.broadcast_to(x < 2000, SHAPE))


@pytest.mark.parametrize("size", [(125, 94), (1333, 1000), (2001, 1500), (40, 30)])
def test_png_of_any_size_is_sampled_at_the_middles(size: tuple[int, int], tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 2, size[::-1]).astype(np.uint8)
    (tmp_path / "s.png").write_bytes(png(Image.fromarray(noise)))
    columns = [int(Fraction((2 * i + 1) * 16 * size[0], SIZE[0])) for i in range(125)]
    rows = [int(Fraction((2 * i + 1) * 16 * size[1], SIZE[1])) for i in range(93)]
    expected = noise[np.ix_(rows, columns)] > 0
    np.testing.assert_array_equal(read(tmp_path / "s.png")[:93], expected)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not a PNG that can be read"),
        (b"GIF89a", "not a PNG that can be read"),
        (png(Image.new("L", (400, 300), 1))[:60], "not a PNG that can be read"),
        (pictures()["palette"][:-40], "not a PNG that can be read"),
        (png(Image.new("L", (400, 300))), "marks no tissue inside the slide of 4000 x 3000 px"),
        (
            png(Image.new("L", (300, 400), 1)),
            "has 300 x 400 px, another aspect ratio than the slide of 4000 x 3000 px",
        ),
        (png(Image.new("L", (400, 310), 1)), "another aspect ratio"),
    ],
)
def test_png_that_is_no_mask_of_this_slide(data: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "s.png").write_bytes(data)
    with pytest.raises(SlideError, match=reason):
        read(tmp_path / "s.png")


def test_jpeg_named_png_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (400, 300), (9, 9, 9)).save(tmp_path / "s.png", "JPEG")
    with pytest.raises(SlideError, match="not a PNG that can be read"):
        read(tmp_path / "s.png")


# -------------------------------------------------------------------- finding


def test_mask_of_a_slide_is_found_by_name_in_any_folder(tmp_path: Path) -> None:
    (tmp_path / "a.b.png").write_bytes(png(Image.new("L", (400, 300), 1)))
    (tmp_path / "c.geojson").write_text("{}")
    (tmp_path / "._c.geojson").write_text("of macOS")
    masks = open_masks(f"{tmp_path}/")
    assert masks.mask_of("a.b") == f"{tmp_path}/a.b.png"
    assert masks.mask_of("c") == f"{tmp_path}/c.geojson"
    assert masks.mask_of("a") is None
    with pytest.raises(InputError, match="there is no folder"):
        open_masks(str(tmp_path / "none"))
    (tmp_path / "c.png").write_bytes(b"")
    with pytest.raises(SlideError, match="slide c has more than one mask"):
        open_masks(str(tmp_path)).mask_of("c")
    fs = fsspec.filesystem("memory")
    fs.pipe("/masks/d.png", (tmp_path / "a.b.png").read_bytes())
    mask = open_masks("memory://masks").mask_of("d")
    assert mask == "memory://masks/d.png"
    assert read_mask(mask, size_px=SIZE, shape=SHAPE, scale=SCALE)[:93, :124].all()


def test_masks_of_no_slide_are_named_and_masks_of_none_refused(tmp_path: Path) -> None:
    for name in ("slide-1.geojson", "slide_2.geojson", "x.png", "notes.txt", "._x.png"):
        (tmp_path / name).write_text("{}")
    masks = open_masks(str(tmp_path))
    assert masks.notes({"slide-1", "slide-2"}) == [
        "2 masks match no slide: slide_2, x; is slide_2 meant for slide-2?",
        "1 slide has no mask; tissue is looked for there",
    ]
    assert open_masks(str(tmp_path)).notes({"slide-1", "slide_2", "x"}) == []
    with pytest.raises(InputError, match=r"masks are called slide-1, slide_2, x, slides b, c; nam"):
        masks.notes({"b", "c"})


def test_mask_drawn_anew_has_another_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    path.write_text("x" * 200_000)
    mark = mask_mark(str(path))
    assert mask_mark(str(path)) == mark
    path.write_text("x" * 100_000 + "y" + "x" * 99_999)
    assert mask_mark(str(path)) != mark


def test_cores_of_a_microarray_that_are_missing_are_no_tissue(geojson: ReadJson) -> None:
    """QuPath exports them so: `objectType` tmaCore, `isMissing` true or false."""
    present, gone = feature(SQUARE), feature([[3200, 320], [3840, 320], [3840, 960], [3200, 960]])
    for core, missing in ((present, False), (gone, True)):
        core["properties"] = {"objectType": "tmaCore", "name": "A-1", "isMissing": missing}
    np.testing.assert_array_equal(geojson(collection(present, gone)), box(320, 320, 1600, 1600))
    with pytest.raises(SlideError, match="has no polygons of tissue"):
        geojson(collection(gone))


def test_contours_of_trident_are_masks(tmp_path: Path) -> None:
    """Geopandas writes `contours_geojson/SLIDE.geojson` so: with a CRS, and without a class."""
    rings = trident_tissue(tmp_path, "s")["features"][0]["geometry"]["coordinates"]
    path = open_masks(str(tmp_path / "contours_geojson")).mask_of("s")
    assert path is not None
    mask = read_mask(path, size_px=(10_000, 6500), shape=(65, 100), scale=100.0)
    at = middles((65, 100), 100.0)
    outer, hole = (Outline(ring).contains_points(at).reshape(65, 100) for ring in rings)
    np.testing.assert_array_equal(mask, outer & ~hole)
    assert 0.6 < mask.mean() < 0.7


def test_masks_that_can_not_be_read_say_so(tmp_path: Path) -> None:
    with pytest.raises(SlideError, match=r"no\.png does not exist"):
        read(tmp_path / "no.png")
    (tmp_path / "dir.png").mkdir()
    with pytest.raises(SlideError, match="can't be read"):
        read(tmp_path / "dir.png")
    with pytest.raises(SlideError, match=r"must end in \.geojson, \.json, \.png"):
        read(tmp_path / "s.tif")
    with pytest.raises(SlideError, match="nowhere://"):
        read_mask("nowhere://a.png", size_px=SIZE, shape=SHAPE, scale=SCALE)
