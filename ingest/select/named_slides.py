"""The slides that an ingest's inputs name, and the user's facts and settings of each."""

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, TypedDict

from cluster import counted
from featurestore.storage import shown
from ingest.errors import SlideError
from ingest.select.cut_settings import CutSettings, UserSettings
from ingest.select.known_files import KnownFile
from ingest.select.listed_files import NOTHING, Listing, list_files
from ingest.select.manifest_facts import extra_text
from ingest.select.points_in_time import point_in_time
from ingest.select.settled_files import SettledFiles
from ingest.select.sources import Source, chosen, fingerprint, resolve, split_duplicates
from ingest.tissue.mask_folder import MaskFolder, mask_mark, open_masks
from ingest.tissue.tissue_methods import TissueBy, chosen_method, method_name

ASKED_AT_ONCE = 16
QUEUED_AT_ONCE = 4096

Row = dict[str, Any]


class IngestOptions(TypedDict, total=False):
    """Options of an ingest: which slides to cut, and how to find their tissue.

    Attributes:
        mpp_override: microns per pixel of slides without an mpp in a manifest.
        retry_failed: cut slides again that failed in an earlier run.
        replace: also cut another file than the slide was made from. The same URI with another
            content is a slide that was scanned again, and is always cut.
        only: slide_ids to cut, among the slides that the inputs name; all if empty.
        limit: greatest number of slides that are cut in this run.
        masks: folder or URL of `<slide_id>.geojson`, `.json` or `.png` that mark the tissue;
            the tissue of slides without a mask is found as usual.
        tissue: method that finds tissue: a name of `ingest.tissue.tissue_methods.NAMES`, or a
            user's file. None: as it was for slides that the lake has, `standard` for new ones.
        allow_anisotropic: take the mean of mpps across and down that differ by more than 2 %; None:
            as it was, or not.
        icc: convert colours to sRGB by the slides' ICC profiles; None: as it was, or not.
        pen_veto: leave out tiles under a pen's ink; None: as it was, or as `tissue` does. See
            docs/tissue.md.
        distinct_ids: ids and sites of a manifest that differ by case, blanks or Unicode form only
            are different; else they are refused.
        check_content: read both ends of every slide's file, also where its size and ETag (or time
            of modification) are those that the lake keeps.
        since: leave out files that have not changed since; `2026-11-30`, `2026-11-30T18:30`, or
            how long ago, as `36h`.
    """

    mpp_override: float | None
    retry_failed: bool
    replace: bool
    only: Sequence[str]
    limit: int | None
    masks: str | None
    tissue: str | None
    pen_veto: bool | None
    allow_anisotropic: bool | None
    icc: bool | None
    distinct_ids: bool
    check_content: bool
    since: str | None


@dataclass(kw_only=True)
class NamedSlides:
    """The slides that the inputs of an ingest name.

    Attributes:
        rows: a row for every slide; `is_known` tells slides that the lake has made from the very
            file, or failed to make from it, as far as a listing tells.
        stopped: slides that are not to be touched, and why.
        notes: files that were left out and possible mistakes, a sentence each.
        tissue_by: the method that finds tissue, if the user gave one.
    """

    rows: list[Row] = field(default_factory=list)
    stopped: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tissue_by: TissueBy | None = None


def find_named_slides(
    inputs: Sequence[str],
    options: IngestOptions,
    *,
    known_files: Mapping[str, KnownFile] | None = None,
    settled: SettledFiles | None = None,
) -> NamedSlides:
    """Return a row for every slide that the inputs name.

    Args:
        inputs: files, folders, globs, manifests, URLs.
        options: which of them to take, and how to find their tissue.
        known_files: the lake's files by slide_id. A file with the same URI and mark is not read:
            its fingerprint is the lake's.
        settled: leaves out files that may still grow; None takes all.

    Raises:
        NoSlidesError: the inputs name no slide at all.
        InputError: they name not those of `only`; there is no folder of masks, or none of them is a
            slide's; `tissue` is no way to find tissue, or `since` no time.
    """
    named, listing = NamedSlides(), Listing()
    if tissue := options.get("tissue"):
        named.tissue_by = chosen_method(tissue)
    distinct = options.get("distinct_ids", False)
    since_s = point_in_time(text, now_s=time.time()) if (text := options.get("since")) else None
    sources = resolve(inputs, note=named.notes.append, distinct_ids=distinct, listing=listing)
    masks = open_masks(where) if (where := options.get("masks")) else None
    if masks:
        named.notes += masks.notes({source.slide_id for source in sources})
    sources, later = split_duplicates(chosen(sources, options.get("only", ())))
    named.stopped += _duplicates(later, sources)
    listing = list_files((source.uri for source in sources), listing)
    if since_s is not None:
        sources = _changed_since(sources, listing, since_s, named.notes)
    if settled is not None:
        growing = settled.growing({s.uri: listing.get(s.uri, NOTHING) for s in sources})
        sources = [source for source in sources if source.uri not in growing]
    trusted = {} if options.get("check_content") else known_files or {}
    named.rows += _rows(sources, options, masks, named.tissue_by, listing, trusted)
    named.notes += _twins(named.rows)
    return named


def _changed_since(
    sources: Sequence[Source], listing: Listing, since_s: float, notes: list[str]
) -> list[Source]:
    """Return the sources whose file has changed since a time, or does not state when it did."""
    changed = [(source, listing.get(source.uri, NOTHING).changed_s) for source in sources]
    taken = [source for source, at in changed if at is None or at >= since_s]
    when = datetime.fromtimestamp(since_s).astimezone().isoformat(timespec="minutes")
    if left_out := len(sources) - len(taken):
        count = counted(left_out, "slide", "have")
        notes.append(f"{count} not changed since {when}: left out (--since)")
    if timeless := sum(at is None for _, at in changed):
        count = counted(timeless, "slide")
        notes.append(f"{count} without a time of the last change: taken (--since)")
    return taken


def _rows(
    sources: Sequence[Source],
    options: IngestOptions,
    masks: MaskFolder | None,
    tissue_by: TissueBy | None,
    listing: Listing,
    known_files: Mapping[str, KnownFile],
) -> list[Row]:
    """Return a row for each source; both ends of unknown files are read, many at a time."""
    rows = []
    for source in sources:
        row, file = _row(source, options), listing.get(source.uri, NOTHING)
        row["listing_mark"] = file.mark
        lake_file = known_files.get(source.slide_id)
        if lake_file and lake_file.mark == file.mark and lake_file.uri == row["uri"]:
            row["bytes"], row["fingerprint"] = lake_file.bytes, lake_file.fingerprint
            row["is_known"] = lake_file.is_done
        rows.append(row)
    unread = [row for row in rows if row["fingerprint"] is None]
    # Each reads the ends of its file: from a bucket that is nothing but waiting.
    with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
        for start in range(0, len(unread), QUEUED_AT_ONCE):  # a waiting task takes 2 kB
            list(pool.map(_read_ends, unread[start : start + QUEUED_AT_ONCE]))
        marks = list(pool.map(lambda row: _mask_mark(row, masks), rows)) if masks else None
    written: dict[str, str] = {}
    for at, row in enumerate(rows):
        row["given"] = _user_settings(row, options, marks[at] if marks else None, masks, tissue_by)
        key = repr(row["given"])
        if key not in written:  # of most slides it is the same text
            written[key] = CutSettings().with_user_settings(row["given"]).to_json()
        row["cut_with"] = written[key]
    return rows


def _row(source: Source, options: IngestOptions) -> Row:
    return {
        "slide_id": source.slide_id,
        "patient_id": source.patient_id,
        # A signed URL is a key: it is used, and what the lake keeps is the part that is none.
        "uri": shown(source.uri),
        "url": source.uri,
        "mpp": source.mpp if source.mpp is not None else options.get("mpp_override"),
        "mpp_of_slide": source.mpp is not None,
        "extra": extra_text(source.extra),
        "bytes": None,
        "fingerprint": None,
        "unreadable": None,
        "mask_url": None,
        "mask_trouble": None,
        "is_known": False,
    }


def _read_ends(row: Row) -> None:
    try:
        row["bytes"], row["fingerprint"] = fingerprint(row["url"])
    except SlideError as error:
        row["unreadable"] = str(error)


def _mask_mark(row: Row, masks: MaskFolder) -> str | None:
    """Return the mark of a slide's mask; None without one, or if it can't be read."""
    try:
        row["mask_url"] = masks.mask_of(row["slide_id"])
        return mask_mark(row["mask_url"]) if row["mask_url"] else None
    except SlideError as error:
        row["mask_trouble"] = str(error)
        return None


def _user_settings(
    row: Row,
    options: IngestOptions,
    mark: str | None,
    masks: MaskFolder | None,
    tissue_by: TissueBy | None,
) -> UserSettings:
    """Return those settings of a slide that the user gave."""
    settings: dict[str, Any] = {}
    if row["mpp"] is not None:
        settings["mpp"] = row["mpp"]
    if masks or tissue_by is not None:  # who says how to find tissue wants no earlier mask
        settings |= {"mask": shown(row["mask_url"]) if mark else None, "mask_mark": mark}
    if tissue_by is not None:
        settings["tissue"] = method_name(tissue_by)
    names: tuple[Literal["pen_veto", "icc", "allow_anisotropic"], ...]
    names = ("pen_veto", "icc", "allow_anisotropic")
    return {**settings, **{name: options[name] for name in names if options.get(name) is not None}}


def _twins(rows: Sequence[Row]) -> list[str]:
    """Return notes on slides that share one file without separate masks, so have the same tiles."""
    alike: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in rows:
        alike[row["uri"], row["cut_with"]].append(row["slide_id"])
    return [
        f"{', '.join(names)} are one file, cut in the same way: their tiles are the same; masks "
        f"({names[0]}.geojson, ...) would say which part is which slide"
        for names in alike.values()
        if len(names) > 1
    ]


def _duplicates(later: Sequence[Source], first: Sequence[Source]) -> list[dict[str, str]]:
    """Return why sources with a slide_id that another source has are not taken."""
    if not later:
        return []
    by_name = {source.slide_id: source for source in first}
    return [_duplicate(source, by_name[source.slide_id]) for source in later]


def _duplicate(source: Source, taken: Source) -> dict[str, str]:
    name = source.slide_id
    if taken.uri == source.uri:
        why = f"'{name}' is named twice, and differs in {_differing(taken, source)}; leave one row"
    else:
        why = (
            f"the slide_id '{name}' is taken by another file of this run "
            f"({shown(taken.uri)}); give slide_ids in a manifest"
        )
    return {"slide": name, "reason": f"{shown(source.uri)}: {why}"}


def _differing(one: Source, other: Source) -> str:
    names = {"patient_id": (one.patient_id, other.patient_id), "mpp": (one.mpp, other.mpp)}
    names |= {n: (one.extra.get(n), other.extra.get(n)) for n in {**one.extra, **other.extra}}
    return ", ".join(name for name, (a, b) in names.items() if a != b) or "its name"
