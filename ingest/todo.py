"""Which slides an ingest is to cut: those asked for, less what is there or can not be read."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypedDict

from featurestore import LakeConfig, Store, open_lake
from ingest.errors import InputError, SlideError
from ingest.masks import find_mask, folder_exists
from ingest.plan import Plan, plan_ingest
from ingest.remote_errors import shown
from ingest.sources import Source, chosen, fingerprint, resolve, split_duplicates

ASKED_AT_ONCE = 16

Row = dict[str, Any]


class How(TypedDict, total=False):
    """Which slides to take, and how to look at them.

    Attributes:
        mpp_override: microns per pixel of slides whose manifest gives none.
        retry_failed: take slides again that failed in an earlier run.
        replace: also take another file than the slide was made from. The same URI with another
            content is a slide that was scanned again, and is always taken.
        only: slide_ids to take, of those that the inputs name; all if empty.
        limit: at most so many slides are cut in this run.
        masks: folder or URL of `<slide_id>.geojson`, `.json` or `.png` that say what is tissue;
            slides without one are looked at as usual.
        pen_veto: leave out tiles under a pen's ink, which is the default; see docs/tissue.md.
        allow_anisotropic: take the mean of mpps across and down that differ by more than 2 %.
        icc: convert colours to sRGB by the slides' ICC profiles.
    """

    mpp_override: float | None
    retry_failed: bool
    replace: bool
    only: Sequence[str]
    limit: int | None
    masks: str | None
    pen_veto: bool
    allow_anisotropic: bool
    icc: bool


@dataclass(kw_only=True)
class Todo:
    """What is to be done.

    Attributes:
        cut: rows of slides to cut now.
        failed: rows of slides whose file can't be read, with the reason.
        stopped: slides that are not to be touched, and why.
    """

    cut: list[Row] = field(default_factory=list)
    failed: list[Row] = field(default_factory=list)
    stopped: list[dict[str, str]] = field(default_factory=list)


def asked_rows(inputs: Sequence[str], how: How) -> tuple[list[Row], list[dict[str, str]]]:
    """A row for every slide that is asked for, and reasons for slide_ids that are taken twice.

    Raises:
        InputError: the inputs name no slide at all, or not those of `only`; or there is no folder
            of masks.
    """
    if (masks := how.get("masks")) and not folder_exists(masks):
        msg = f"there is no folder {shown(masks)}; --masks names one with SLIDE_ID.geojson or .png"
        raise InputError(msg)
    sources, later = split_duplicates(chosen(resolve(inputs), how.get("only", ())))
    # Each asks its file for its ends: from a bucket that is nothing but waiting.
    with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
        rows = list(pool.map(lambda source: _row(source, how.get("mpp_override")), sources))
    return rows, [_duplicate(source) for source in later]


def sort_out(rows: Sequence[Row], how: How) -> Todo:
    """What is to be done with slides, by their rows as the lake knows them."""
    todo = Todo()
    for row in rows:
        if row["state"] == "ready":
            if row["fingerprint"] not in (None, row["known_fingerprint"]):
                if how.get("replace") or row["uri"] == row["known_uri"]:
                    todo.cut.append(row)
                else:
                    todo.stopped.append(_changed(row))
        elif row["unreadable"]:
            todo.failed.append({**row, "reason": row["unreadable"]})
        elif row["state"] == "pending" or how.get("retry_failed") or _is_new_file(row):
            todo.cut.append(row)
    asked, todo.cut = todo.cut[: how.get("limit")], []
    for row in asked:
        try:
            todo.cut.append({**row, **_look(row, how)})
        except SlideError as error:  # of its mask
            todo.stopped.append({"slide": row["slide_id"], "reason": str(error)})
    return todo


def dry_run(
    lake_uri: str, inputs: Sequence[str], config: LakeConfig, how: How, *, cores: int
) -> Plan:
    """What `ingest` would do with the same arguments; nothing is written.

    Raises:
        InputError: as `asked_rows`.
    """
    rows, duplicates = asked_rows(inputs, how)
    if Store(lake_uri).exists("lake.json"):
        rows = open_lake(lake_uri).committer.known(rows)
    else:
        rows = [{**row, "state": "pending"} for row in rows]
    todo = sort_out(rows, how)
    plan = plan_ingest(todo.cut, config, cores=cores)
    plan.failed += [{"slide": row["slide_id"], "reason": row["reason"]} for row in todo.failed]
    plan.failed += todo.stopped + duplicates
    return plan


def _row(source: Source, mpp_override: float | None) -> Row:
    row: Row = {
        "slide_id": source.slide_id,
        "patient_id": source.patient_id,
        # A signed URL is a key: it is used, and what the lake keeps is the part that is none.
        "uri": shown(source.uri),
        "url": source.uri,
        "mpp": source.mpp if source.mpp is not None else mpp_override,
        "extra": json.dumps(source.extra, default=str, sort_keys=True) if source.extra else None,
        "bytes": None,
        "fingerprint": None,
        "unreadable": None,
    }
    try:
        row["bytes"], row["fingerprint"] = fingerprint(source.uri)
    except SlideError as error:
        row["unreadable"] = str(error)
    return row


def _look(row: Row, how: How) -> Row:
    """How the slide's tissue is to be found."""
    masks = how.get("masks")
    return {
        "pen_veto": how.get("pen_veto", True),
        "mask": find_mask(masks, row["slide_id"]) if masks else None,
        "allow_anisotropic": how.get("allow_anisotropic", False),
        "icc": how.get("icc", False),
    }


def _is_new_file(row: Row) -> bool:
    return bool(row["fingerprint"] != row["known_fingerprint"])


def _changed(row: Row) -> dict[str, str]:
    reason = (
        f"{row['uri']} is not the file that was ingested as '{row['slide_id']}' "
        f"({row['known_uri']}); give it a slide_id of its own in a manifest, or replace the slide "
        "(--replace)"
    )
    return {"slide": row["slide_id"], "reason": reason}


def _duplicate(source: Source) -> dict[str, str]:
    reason = (
        f"{shown(source.uri)}: the slide_id '{source.slide_id}' is taken by another file of this "
        "run; give slide_ids in a manifest"
    )
    return {"slide": source.slide_id, "reason": reason}
