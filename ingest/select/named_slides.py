"""The slides that an ingest's inputs name, and the user's facts and settings of each."""

from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

from ingest.errors import SlideError
from ingest.remote.remote_errors import shown
from ingest.select.cut_settings import CutSettings, UserSettings
from ingest.select.manifest_facts import extra_text
from ingest.select.sources import Source, chosen, fingerprint, resolve, split_duplicates
from ingest.tissue.mask_folder import MaskFolder, mask_mark, open_masks
from ingest.tissue.tissue_methods import TissueBy, chosen_method, method_name

ASKED_AT_ONCE = 16

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


@dataclass(kw_only=True)
class NamedSlides:
    """The slides that the inputs of an ingest name.

    Attributes:
        rows: a row for every slide.
        stopped: slides that are not to be touched, and why.
        notes: files that were left out and possible mistakes, a sentence each.
        tissue_by: the method that finds tissue, if the user gave one.
    """

    rows: list[Row] = field(default_factory=list)
    stopped: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tissue_by: TissueBy | None = None


def find_named_slides(inputs: Sequence[str], options: IngestOptions) -> NamedSlides:
    """Return a row for every slide that the inputs name.

    Raises:
        InputError: the inputs name no slide at all, or not those of `only`; there is no folder of
            masks, or none of them is a slide's; or `tissue` is no way to find tissue.
    """
    named = NamedSlides()
    if tissue := options.get("tissue"):
        named.tissue_by = chosen_method(tissue)
    distinct = options.get("distinct_ids", False)
    sources = resolve(inputs, note=named.notes.append, distinct_ids=distinct)
    masks = open_masks(where) if (where := options.get("masks")) else None
    if masks:
        named.notes += masks.notes({source.slide_id for source in sources})
    sources, later = split_duplicates(chosen(sources, options.get("only", ())))
    named.stopped += [_duplicate(source, sources) for source in later]
    # Each reads the ends of its file: from a bucket that is nothing but waiting.
    with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
        made = pool.map(lambda source: _row(source, options, masks, named.tissue_by), sources)
        named.rows += list(made)
    named.notes += _twins(named.rows)
    return named


def _row(
    source: Source, options: IngestOptions, masks: MaskFolder | None, tissue_by: TissueBy | None
) -> Row:
    row: Row = {
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
    }
    try:
        row["bytes"], row["fingerprint"] = fingerprint(source.uri)
    except SlideError as error:
        row["unreadable"] = str(error)
    try:
        row["mask_url"] = masks.mask_of(source.slide_id) if masks else None
        mark = mask_mark(row["mask_url"]) if row["mask_url"] else None
    except SlideError as error:
        row["mask_trouble"], mark = str(error), None
    row["given"] = _user_settings(row, options, mark, masks, tissue_by)
    return {**row, "cut_with": CutSettings().with_user_settings(row["given"]).to_json()}


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


def _duplicate(source: Source, first: Sequence[Source]) -> dict[str, str]:
    name = source.slide_id
    (taken,) = (other for other in first if other.slide_id == name)
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
