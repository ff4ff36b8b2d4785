"""Writes a cohort for others: Parquet and a card by slide, in a Hugging Face data set's layout.

Files of other columns and mpps that an earlier export wrote stay, as long as the slide has the same
tiles.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.ids import mpp_name
from featurestore.interop.foreign_slide import InteropError
from featurestore.interop.hub import hub_layout as layout
from featurestore.interop.hub.dataset_card import dataset_card
from featurestore.interop.hub.remote_outbox import RemoteOutbox
from featurestore.interop.writers.outbox import Outbox
from featurestore.interop.writers.outgoing_slide import CohortOut, SlideOut

ROWS_AT_ONCE = 8192
#: What the catalog says of a slide's grid.
GRID_FACTS = (
    "effective_mpp", "grid_height", "grid_px_level0", "grid_width", "tile_px_level0",
)  # fmt: skip
#: Columns that hold the number or the name of the slide; the name is a column of each file.
NUMBERED = ("tile_id", "slide", "slide_id")
Box = Outbox | RemoteOutbox
Record = dict[str, Any]


def export_slide(box: Box, slide: SlideOut) -> int:
    """Write the files of a slide that are missing or changed, then its card; return their number.

    Raises:
        InteropError: a column holds codes, or has the name of the tiles' files.
    """
    if not slide.grid:
        msg = f"slide '{slide.tiles.slide_id}' has no tiles at one mpp to export"
        raise InteropError(msg)
    mpp = mpp_name(slide.tiles.mpp)
    card = _earlier(box, layout.card_path(slide.tiles.slide_id)) or {"tiles": {}, "features": {}}
    tiles, features, written = card["tiles"], card["features"], 0
    if tiles.get(mpp, {}).get("crc32") != slide.crc32:
        features[mpp] = {}
    tiles[mpp], new = _tiles(box, slide, tiles.get(mpp, {}))
    written += new
    of_mpp = features.setdefault(mpp, {})
    for teacher in slide.teachers:
        of_mpp[teacher], new = _features(box, slide, teacher, of_mpp.get(teacher, {}))
        written += new
    card["tissue"], new = _tissue(box, slide, card.get("tissue") or {})
    written += new
    facts = dict(slide.facts)
    card |= {"layout": layout.LAYOUT, "slide_id": slide.tiles.slide_id, "facts": facts}
    return written + box.write_text(layout.card_path(slide.tiles.slide_id), layout.json_text(card))


def check_earlier(box: Box, *, random_names: bool) -> None:
    """Refuse to put an export under other kinds of names beside an earlier one.

    Args:
        box: the folder.
        random_names: whether this export is de-identified.

    Raises:
        InteropError: an earlier export is there whose slides have their own names, and this one is
            de-identified, or the other way round.
    """
    earlier = _earlier(box, layout.INDEX)
    if earlier is not None and earlier["random_names"] != random_names:
        kinds = {True: "de-identified", False: "under the slides' own names"}
        msg = (
            f"an export {kinds[not random_names]} is there already, and this one is "
            f"{kinds[random_names]}; give it a place of its own"
        )
        raise InteropError(msg)


def export_cohort(box: Box, cohort: CohortOut) -> int:
    """Write `README.md` and, last of all, `cohort.json`; return the number of files written.

    Slides whose card is there are named: those of this export, and those that failed this time and
    were exported earlier.
    """
    if isinstance(box, RemoteOutbox):
        box.hand_over()
    earlier = _earlier(box, layout.INDEX) or {}
    columns = earlier.get("columns", {})
    columns.setdefault(mpp_name(cohort.mpp), {}).update(
        {
            name: {
                "dim": teacher.dim,
                "identity": dict(teacher.identity),
                "licence": cohort.licences[name].to_json(),
            }
            for name, teacher in cohort.teachers.items()
        }
    )
    cards = {name: box.text_sha256(layout.card_path(name)) for name in sorted(cohort.slides)}
    slides = {name: card_sha256 for name, card_sha256 in cards.items() if card_sha256}
    index = {
        "layout": layout.LAYOUT,
        "random_names": cohort.random_names,
        "lake": json.loads(cohort.config.to_json()),
        "columns": columns,
        "slides": slides,
    }
    readme = dataset_card(index, earlier=box.read_text(layout.README))
    written = int(box.write_text(layout.README, readme))
    return written + box.write_text(layout.INDEX, layout.json_text(index))


def _earlier(box: Box, rel: str) -> Record | None:
    """Return the record that an earlier export wrote; one that can't be read is written again."""
    text = box.read_text(rel)
    try:
        return None if text is None else layout.parsed(text.encode(), rel)
    except InteropError:
        return None


def _tiles(box: Box, slide: SlideOut, earlier: Record) -> tuple[Record, bool]:
    grid = slide.grid
    facts = {
        "crc32": slide.crc32,
        "rows": len(slide.tiles),
        "tile_px": slide.tiles.tile_px,
        "attrs": dict(slide.tiles.attrs),
        **{name: grid[name] for name in GRID_FACTS},
    }
    rel = layout.data_path(slide.tiles.slide_id, layout.TILES, slide.tiles.mpp)
    if earlier.get("crc32") == slide.crc32 and _is_there(box, rel, earlier):
        return {**earlier, **facts}, False
    table = slide.rows().drop_columns([name for name in NUMBERED if name != "slide_id"])
    names = pa.array([slide.tiles.slide_id] * table.num_rows, pa.string())
    table = table.set_column(table.schema.get_field_index("slide_id"), "slide_id", names)
    return {**facts, **_write(box, rel, table)}, True


def _features(box: Box, slide: SlideOut, teacher: str, earlier: Record) -> tuple[Record, bool]:
    if teacher == layout.TILES:
        msg = f"a column called '{teacher}' can't be exported: the tiles' own files are; rename it"
        raise InteropError(msg)
    column, tiles = slide.teachers[teacher], slide.tiles
    facts: Record = {"crc32": column.crc32, "tiles_crc32": slide.crc32, "dim": column.dim}
    facts["identity_sha256"] = layout.sha256(layout.json_text(column.identity).encode())
    rel = layout.data_path(tiles.slide_id, teacher, tiles.mpp)
    if all(earlier.get(name) == fact for name, fact in facts.items()) and _is_there(
        box, rel, earlier
    ):
        return earlier, False
    features = np.ascontiguousarray(slide.features(teacher), np.float16)
    rows = ~np.isnan(features).any(axis=1)  # a teacher may leave tiles out
    kept = features[rows]
    table = pa.table(
        {
            "slide_id": pa.array([tiles.slide_id] * len(kept), pa.string()),
            "x": pa.array(tiles.x[rows], pa.int32()),
            "y": pa.array(tiles.y[rows], pa.int32()),
            "features": pa.FixedSizeListArray.from_arrays(pa.array(kept.ravel()), column.dim),
        }
    )
    return {**facts, "rows": len(kept), **_write(box, rel, table)}, True


def _tissue(box: Box, slide: SlideOut, earlier: Record) -> tuple[Record | None, bool]:
    tissue = slide.tissue()
    if tissue is None:
        return None, False
    content = (json.dumps(tissue) + "\n").encode()
    rel = layout.tissue_path(slide.tiles.slide_id)
    facts = {"file": rel, "bytes": len(content), "sha256": layout.sha256(content)}
    if earlier == facts and _is_there(box, rel, earlier):
        return earlier, False
    with box.file(rel) as path:
        path.write_bytes(content)
    return facts, True


def _is_there(box: Box, rel: str, entry: Record) -> bool:
    return entry.get("file") == rel and box.holds(rel, entry["bytes"], entry["sha256"])


def _write(box: Box, rel: str, table: pa.Table) -> Record:
    """Write a table and return its path, size and checksum; the same table has the same bytes."""
    table = table.replace_schema_metadata(None)
    with box.file(rel) as path:
        pq.write_table(
            table,
            path,
            row_group_size=ROWS_AT_ONCE,
            compression="zstd",
            use_dictionary=["slide_id"],
        )
        return {"file": rel, **_size_and_hash(path)}


def _size_and_hash(path: Path) -> Record:
    content = path.read_bytes()
    return {"bytes": len(content), "sha256": layout.sha256(content)}
