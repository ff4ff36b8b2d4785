"""Results of a search as pictures: the query on the left, then its neighbours, nearest first.

Tiles are shown as they are stored, slides by their thumbnails. Lakes that were imported have
neither, and are shown as an empty frame.

Shape letters: H W pixels of a picture.
"""

import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from downstream.retrieval.search_query import RetrievalError

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from featurestore import Lake

Json = dict[str, Any]

MOST_SHOWN = 60
_COLUMNS = 6
_THUMBNAIL_PX, _TILE_PX = 360, 256
_INCH, _DPI = 1.9, 130
_NAME_CHARACTERS = 26


@dataclass(frozen=True, kw_only=True)
class ShownPicture:
    """One picture and its caption.

    Attributes:
        name: id of the slide.
        lines: lines of the caption.
        own: whether the picture is of the query's patient.
        jpeg: the picture; None if the lake has none.
    """

    name: str
    lines: list[str]
    own: bool
    jpeg: bytes | None


def check_out(out: Path) -> None:
    """Raise RetrievalError unless it is a .png or .html file in a folder that is there."""
    if out.suffix.lower() not in {".png", ".html"} or not out.parent.is_dir():
        msg = f"{out} can't be written: name a .png or .html file in a folder that is there"
        raise RetrievalError(msg)


def write_picture(lake: "Lake", answer: Json, out: Path) -> Path:
    """Write the results of a search as a .png or .html file; return its path.

    Raises:
        RetrievalError: The file has another ending, or its folder does not exist.
    """
    check_out(out)
    draw = _png if out.suffix.lower() == ".png" else _html
    out.write_bytes(draw(answer, shown(lake, answer)))
    return out


def shown(lake: "Lake", answer: Json) -> list[ShownPicture]:
    """Return the pictures of the query and of the first sixty results, in this order."""
    rows = [{**answer["like"], "same_patient": False}, *answer["results"][:MOST_SHOWN]]
    jpegs = (
        _tile_jpegs(lake, rows, answer["mpp"]) if "tile_id" in rows[0] else _thumbnails(lake, rows)
    )
    return [_result_picture(row, jpeg) for row, jpeg in zip(rows, jpegs, strict=True)]


def _result_picture(row: Json, jpeg: bytes | None) -> ShownPicture:
    """Return a result with its picture, or with a note where the picture is damaged."""
    from featurestore import DamageError
    from ingest.pages import decode_rgb

    lines = _caption_lines(row)
    if jpeg is not None:
        try:
            decode_rgb(jpeg)
        except DamageError:
            lines, jpeg = [*lines, "damaged: slidelake verify"], None
    return ShownPicture(name=row["slide_id"], lines=lines, own=row["same_patient"], jpeg=jpeg)


def _caption_lines(row: Json) -> list[str]:
    """Return the lines under the picture of a result."""
    place = [f"x {row['x']:,}, y {row['y']:,}"] if "tile_id" in row else []
    if "rank" not in row:
        return ["query", _patient_text(row), *place]
    of = "the query's patient" if row["same_patient"] else _patient_text(row)
    return [f"{row['rank']}: similarity {row['similarity']:.3f}", of, *place]


def _patient_text(row: Json) -> str:
    """Return the patient of a result; a slide without one stands for a patient of its own name."""
    known = row["patient"] != row["slide_id"]
    return f"patient {row['patient']}" if known else "patient unknown"


def _tile_jpegs(lake: "Lake", rows: list[Json], mpp: float) -> list[bytes | None]:
    """Return the JPEGs of tiles, each shard opened once; empty bytes where a shard is damaged."""
    import numpy as np
    import polars as pl

    from featurestore import DamageError, ShardReader

    slides = sorted({row["slide_id"] for row in rows})
    places = lake.tiles_of(mpp=mpp, slide_ids=slides).filter(pl.col("shard").is_not_null())
    jpegs: dict[int, bytes] = {}
    for place in places.iter_rows(named=True):
        keys = sorted({row["tile_id"] for row in rows if row["slide_id"] == place["slide_id"]})
        jpegs.update(dict.fromkeys(keys, b""))
        try:
            with ShardReader.of(lake.store, place) as reader:
                stored = [bytes(jpeg) for jpeg in reader.jpegs(np.array(keys, np.int64))]
            jpegs.update(zip(keys, stored, strict=True))
        except DamageError:
            continue
    return [jpegs.get(row["tile_id"]) for row in rows]


def _thumbnails(lake: "Lake", rows: list[Json]) -> list[bytes | None]:
    """Return the thumbnails of the slides of rows."""
    return [lake.pictures(row["slide_id"])["thumbnail"] for row in rows]


def _small_pixels(jpeg: bytes, longest_px: int) -> "NDArray[np.uint8]":
    """Return the pixels of a picture [H, W, 3], reduced to the size at which it is shown."""
    from ingest.pages import decode_rgb, scaled

    picture_HW3 = decode_rgb(jpeg)
    return scaled(picture_HW3, min(longest_px, max(picture_HW3.shape[:2])))


def _summary(answer: Json) -> str:
    """Return a title for the page of results."""
    unit = "tiles" if "tile_id" in answer["like"] else "slides"
    return (
        f"nearest {unit} by {answer['features']} at {answer['mpp']} mpp ({answer['search']} search)"
    )


# ---------------------------------------------------------------------- PNG


def _png(answer: Json, pictures: list[ShownPicture]) -> bytes:
    """Return the pictures of a search as one PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    query, *others = pictures
    columns = max(1, min(_COLUMNS, len(others)))
    rows = max(1, math.ceil(len(others) / columns))
    figure = Figure(
        figsize=(_INCH * (columns + 2), (_INCH + 0.5) * rows + 0.5), layout="constrained"
    )
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(rows, columns + 2)
    _draw(figure.add_subplot(grid[: min(rows, 2), :2]), query, colour="#D55E00")
    for number, picture in enumerate(others):
        axes = figure.add_subplot(grid[number // columns, 2 + number % columns])
        _draw(axes, picture, colour="#E69F00" if picture.own else "0.8")
    figure.suptitle(_summary(answer), fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, bbox_inches="tight")
    return buffer.getvalue()


def _draw(axes: "Axes", picture: ShownPicture, *, colour: str) -> None:
    """Draw one picture with its caption into axes."""
    if picture.jpeg is None:
        axes.text(0.5, 0.5, "no picture", ha="center", va="center", fontsize=7)
        axes.set_box_aspect(1)
    else:
        axes.imshow(_small_pixels(picture.jpeg, _THUMBNAIL_PX))
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color=colour, linewidth=2)
    name = picture.name
    if len(name) > _NAME_CHARACTERS:
        name = f"{name[: _NAME_CHARACTERS // 2]}...{name[-_NAME_CHARACTERS // 2 + 3 :]}"
    # A dollar sign would begin a formula.
    text = "\n".join([name, *picture.lines]).replace("$", r"\$")
    axes.set_title(text, fontsize=6, loc="left")


# ---------------------------------------------------------------------- HTML


def _html(answer: Json, pictures: list[ShownPicture]) -> bytes:
    """Return the pictures of a search as an HTML page."""
    from ingest.pages import environment

    template = environment(Path(__file__).parent / "templates").get_template("search.html.j2")
    query, *others = [
        {"name": p.name, "lines": p.lines, "own": p.own, "uri": p.jpeg and _picture_uri(p.jpeg)}
        for p in pictures
    ]
    page = template.render(found=answer, summary=_summary(answer), query=query, others=others)
    return page.encode()


def _picture_uri(jpeg: bytes) -> str:
    """Return a picture as a data URI: small tiles as stored, larger pictures reduced."""
    from ingest.pages import data_uri, decode_rgb, encode_jpeg

    if max(decode_rgb(jpeg).shape[:2]) <= _TILE_PX:
        return data_uri(jpeg, "image/jpeg")
    return data_uri(encode_jpeg(_small_pixels(jpeg, _THUMBNAIL_PX)), "image/jpeg")
