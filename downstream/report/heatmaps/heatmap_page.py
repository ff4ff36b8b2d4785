"""The page of a folder of heatmaps: a sortable list of slides with their pictures and files."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from downstream.report.attention_maps import replace_file
from downstream.report.listing.listing import Entry, script_policy
from downstream.report.report_page import render

if TYPE_CHECKING:
    from downstream.report.heatmaps.heatmap_files import HeatmapFolder, HeatmapRecord


def write_heatmap_page(
    heatmaps: "HeatmapFolder",
    *,
    title: str,
    lead: str,
    notes: Sequence[str] = (),
    facts: Mapping[str, Mapping[str, Entry]] | None = None,
) -> None:
    """Write `index.html`, which shows the pictures beside it and leads to all files.

    Args:
        heatmaps: the folder and its records.
        title: title of the page.
        lead: a sentence on what is listed.
        notes: further sentences.
        facts: columns of the list besides slide and files: head -> patient -> cell.
    """
    columns = dict(facts or {})
    heads = ("slide", "patient", "arm", *columns, "picture", "files")
    numeric = tuple(_is_numeric(columns[head]) if head in columns else False for head in heads)
    rows = [_row(record, columns) for record in sorted(heatmaps.records, key=_order)]
    page = render(
        "heatmaps.html.j2",
        title=title,
        lead=lead,
        lake_uri=heatmaps.lake.uri,
        policy=script_policy(),
        heads=heads,
        numeric=numeric,
        rows=rows,
        failed=heatmaps.failed,
        notes=[*notes, *sorted({note for one in heatmaps.records for note in one.notes})],
    )
    replace_file(heatmaps.folder / "index.html", page.encode())


def _order(record: "HeatmapRecord") -> tuple[str, str, str]:
    """Return the order of records on the page."""
    return record.patient_id, record.slide_id, record.arm


def _is_numeric(cells: Mapping[str, Entry]) -> bool:
    """Whether a column is sorted as numbers."""
    return all(not isinstance(cell.key, str) for cell in cells.values())


def _row(
    record: "HeatmapRecord", columns: Mapping[str, Mapping[str, Entry]]
) -> dict[str, list[Entry] | list[str]]:
    """Return the cells of a slide's row, its pictures, and its other files."""
    texts = [record.slide_id, record.patient_id, record.arm]
    none = Entry(text="\N{EN DASH}")
    return {
        "cells": [
            *(Entry(text=text, key=text) for text in texts),
            *(column.get(record.patient_id, none) for column in columns.values()),
        ],
        "pictures": record.of_ending(".png"),
        "files": [name for name in record.files if not name.endswith(".png")],
    }
