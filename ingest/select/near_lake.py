"""Slides and patients that a lake has under next to the same name."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from featurestore import Lake
from featurestore.usertables import refuse_near_others, tables_raise
from ingest.errors import InputError
from ingest.remote.remote_files import is_local, open_fs
from ingest.select.folders import is_slide


def refuse_near_lake(lake: Lake, rows: Sequence[Mapping[str, Any]], *, distinct_ids: bool) -> None:
    """Refuse new slides and patients whose names are nearly the same as names of the lake.

    A patient P1 beside p1 would be on two sides of a split, and a slide would be there twice. The
    patients of slides that get another patient now are no longer the lake's.

    Args:
        lake: the lake before the slides are added.
        rows: `slide_id` and `patient_id` of the slides that an ingest names.
        distinct_ids: whether such names are of different slides and patients.

    Raises:
        InputError: some names differ by case, blanks or Unicode form only; the first are listed.
    """
    if distinct_ids or not rows:
        return
    slides = lake.slides().select("slide_id", "patient_id").collect()
    changed = [row["slide_id"] for row in rows if row["patient_id"] is not None]
    kept = slides.filter(~slides["slide_id"].is_in(changed))
    with tables_raise(InputError):
        for column, kind, lake_names in (
            ("slide_id", "slides", slides),
            ("patient_id", "patients", kept),
        ):
            names = {row[column] for row in rows if row[column] is not None}
            refuse_near_others(names, lake_names[column].drop_nulls().unique(), kind, "the lake")


def refuse_folder_of_slides(lake_uri: str) -> None:
    """Refuse to make a lake in a folder of slides, as where lake and slides were exchanged.

    Raises:
        InputError: the folder is no lake and holds slides.
    """
    if not is_local(lake_uri):
        return
    folder = Path(open_fs(lake_uri)[1]).expanduser()
    if not folder.is_dir() or (folder / "lake.json").exists():
        return
    slides = [path.name for path in folder.iterdir() if is_slide(path.name) and path.is_file()]
    if slides:
        msg = (
            f"{lake_uri} is no lake and holds slides ({sorted(slides)[0]}, ...); the lake "
            f"comes first: slidelake ingest LAKE {lake_uri}"
        )
        raise InputError(msg)
