"""Cards of slides: which are shown, what is drawn where, and that each has its own tiles."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

from featurestore import DamageError, Lake
from ingest.pages.slide_cards import CARD_COLUMNS, choose_slides, make_cards
from ingest.pages.slide_pictures import Tiles, decode_rgb, draw_slide, encode_jpeg, scaled
from tests.worlds.small_lake import cut


def rows(**changes: Callable[[int], Any]) -> pl.DataFrame:
    base: dict[str, Callable[[int], Any]] = {
        "slide": lambda n: n,
        "uri": lambda n: f"/scans/s{n}.svs",
        "state": lambda _: "ready",
        "verdict": lambda _: "ok",
    }
    return pl.DataFrame({k: [f(n) for n in range(50)] for k, f in {**base, **changes}.items()})


def test_which_slides_are_shown() -> None:
    doubts = {20: "suspicious", 22: "mostly pen", 24: "something new", 3: None}
    slides = rows(
        state=lambda n: "failed" if n >= 30 else "pending" if n == 1 else "ready",
        verdict=lambda n: doubts.get(n, "ok") if n < 30 else None,
    )
    shown = choose_slides(slides, most=36, most_failed=12, first="s9.svs")["slide"].to_list()
    assert shown[:12] == list(range(30, 42))
    assert shown[12:19] == [9, 22, 20, 24, 0, 2, 3]
    assert 1 not in shown
    assert len(shown) == 36
    assert choose_slides(rows(), most=36, most_failed=12)["slide"].to_list() == list(range(36))
    none = choose_slides(slides.clear(), most=36, most_failed=12)
    assert none.height == 0


def tiles(side_px: int, x: Any, y: Any, pen: float = 0.0) -> Tiles:  # noqa: ANN401
    left, top = np.atleast_1d(x).astype(np.int32), np.atleast_1d(y).astype(np.int32)
    return Tiles(side_px=side_px, x=left, y=top, pen=np.full(len(left), pen, np.float32))


WHITE = np.full((100, 200, 3), 255, np.uint8)


def test_tiles_are_drawn_where_they_are() -> None:
    drawn = draw_slide(WHITE, None, [tiles(400, 800, 0)], width_px=2000)
    colour = (drawn != 255).any(axis=2)
    assert colour[:41, 80:121].sum() == colour.sum() > 0
    assert not colour[1:40, 81:120].any()
    masked = draw_slide(WHITE, np.full((10, 20), 255, np.uint8), [], width_px=2000)
    assert masked[0].max() < 60
    assert (masked[10:-10, 10:-10] == 255).all()
    assert WHITE.min() == 255


def test_tiny_tiles_are_drawn_as_one_area() -> None:
    y, x = (part.ravel() * 400 for part in np.mgrid[10:30, 20:80])
    drawn = draw_slide(WHITE, None, [tiles(400, x, y)], width_px=80_000)
    colour = (drawn != 255).any(axis=2)
    assert colour[9:31, 19:81].sum() == colour.sum() >= 2 * (20 + 60) - 4
    assert not colour[12:28, 22:78].any()


def test_tiles_with_pen_are_tinted() -> None:
    grid = tiles(200, [0, 200, 400, 600], [0, 0, 0, 0])
    grid = replace(grid, pen=np.array([0.5, 0.1, np.nan, 0.11], np.float32))
    drawn = draw_slide(WHITE, None, [grid, tiles(800, 0, 0, pen=1.0)], width_px=2000)
    inside = drawn[5:15, [10, 30, 50, 70]].mean(axis=0)
    for number, tinted in enumerate((True, False, False, True)):
        red, green, blue = inside[number]
        assert (blue < 130 < green <= red) == tinted
        assert tinted or red == green == blue == 255


def test_a_damaged_picture_is_named() -> None:
    for data in (b"not a picture", b""):
        with pytest.raises(DamageError, match="can't be decoded"):
            decode_rgb(data)
    assert scaled(np.zeros((100, 50, 3), np.uint8), 360).shape == (360, 180, 3)


def test_pictures_are_small_and_writing_stays_sharp() -> None:
    stripes = np.full((64, 64, 3), 255, np.uint8)
    stripes[:, ::4] = (0, 114, 178)
    small, sharp = (encode_jpeg(stripes, sharp=s) for s in (False, True))
    assert len(small) < len(sharp)
    shown = [
        np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), int) for data in (small, sharp)
    ]
    small_error, sharp_error = (np.abs(pixels - stripes).mean() for pixels in shown)
    assert sharp_error < small_error < 20


def picture(**changes: Any) -> dict[str, Any]:  # noqa: ANN401
    jpeg = encode_jpeg(np.full((40, 80, 3), 220, np.uint8))
    facts = {"width_px": 2560, "height_px": 1280, "mpp": 0.5, "thumbnail": jpeg}
    return {**facts, **changes}


def cards(lake: Lake) -> dict[str, dict[str, Any]]:
    slides = lake.slides().select(CARD_COLUMNS).collect()
    chosen = choose_slides(slides, most=100, most_failed=50)
    return {card["slide_id"]: card for card in make_cards(lake, chosen)}


def test_a_slide_scanned_again_moves_no_other_slides_tiles(small: Lake) -> None:
    before = cards(small)
    assert {name: card["tiles"] for name, card in before.items()} == {
        "a": {0.5: 5, 2.0: 5},
        "b": {0.5: 3, 2.0: 3},
    }
    (row,) = small.committer.register([{"slide_id": "a", "uri": "a.svs"}])
    small.committer.commit_slides([cut(small, row["slide"], "a", 2, mark="again")])
    after = cards(small.refreshed())
    assert after["a"]["tiles"] == {0.5: 2, 2.0: 2}
    assert after["b"] == before["b"]


def test_what_is_not_known_is_not_said(small: Lake) -> None:
    card = cards(small)["a"]
    assert (card["picture"], card["damage"]) == (None, None)
    assert card["with_pen"] is None
    assert card["codecs"] == {0.5: {}, 2.0: {}}
    assert card["kind"] == "ok"


def test_a_damaged_picture_leaves_the_other_cards(tmp_path: Path, small: Lake) -> None:
    registered = small.committer.register(
        [{"slide_id": name, "uri": f"{name}.svs"} for name in ("a", "it's", "broken")]
    )
    made = [cut(small, row["slide"], row["slide_id"], 4, mark="new") for row in registered]
    pictures = (picture(), picture(), picture(thumbnail=b"\xff\xd8 torn"))
    pairs = zip(made, pictures, strict=True)
    small.committer.commit_slides([replace(c, row={**c.row, **p}) for c, p in pairs])
    shown = cards(small.refreshed())
    assert shown["broken"]["picture"] is None
    assert "can't be decoded: ingest the slide again" in shown["broken"]["damage"]
    for name in ("a", "it's"):
        assert shown[name]["picture"].startswith("data:image/jpeg;base64,")
        assert shown[name]["damage"] is None
