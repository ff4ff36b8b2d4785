"""The slides that an ingest is to cut: those named, less what is there or can't be read."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cluster import counted
from featurestore import LakeConfig, Store, open_lake
from featurestore.edits import score_versions
from ingest.errors import SlideError
from ingest.grid import MPP_TOLERANCE
from ingest.scores.score_table import SCORES
from ingest.select.cut_settings import CutSettings, UserSettings, differences
from ingest.select.ingest_plan import IngestPlan, plan_ingest
from ingest.select.known_files import known_files_at
from ingest.select.manifest_facts import changed_facts, fact_names, merged_facts
from ingest.select.named_slides import IngestOptions, find_named_slides
from ingest.select.near_lake import refuse_near_lake
from ingest.tissue.mask_folder import mask_mark
from ingest.tissue.tissue_methods import NAMES, TissueBy, method_name

Row = dict[str, Any]


@dataclass(kw_only=True)
class Todo:
    """The slides that an ingest cuts, fails, leaves alone or updates with other facts.

    Attributes:
        cut: rows of slides to cut now.
        failed: rows of slides whose file can't be read, with the reason.
        stopped: slides that are not to be touched, and why.
        facts: slide_id -> columns of its row that are to be changed.
        fact_names: names of the columns that change in any of them.
        again: slide_id -> why the slide is cut again though its file is the same.
        unknown: slides whose settings are not compared: an earlier slidelake did not keep them.
        marks: slide_id -> what the listing states now of a file that is the same by its content;
            kept, so that it need not be read again.
    """

    cut: list[Row] = field(default_factory=list)
    failed: list[Row] = field(default_factory=list)
    stopped: list[dict[str, str]] = field(default_factory=list)
    facts: dict[str, Row] = field(default_factory=dict)
    fact_names: set[str] = field(default_factory=set)
    again: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    marks: dict[str, Row] = field(default_factory=dict)

    @property
    def updates(self) -> dict[str, Row]:
        """Return all columns that are to be changed, by slide_id."""
        names = [*self.facts, *(name for name in self.marks if name not in self.facts)]
        return {name: {**self.facts.get(name, {}), **self.marks.get(name, {})} for name in names}

    def notes(self, did: str) -> list[str]:
        """Return notes for the user, a sentence each; `did` is the verb for changed facts."""
        notes = []
        if self.facts:
            names = ", ".join(sorted(self.fact_names))
            notes.append(f"{counted(len(self.facts), 'slide')}: facts {did} ({names})")
        if self.unknown:
            notes.append(
                f"{counted(len(self.unknown), 'slide', 'were')} cut by a slidelake that did not "
                "keep with which "
                "masks and settings: they are left as they are; --replace cuts them again"
            )
        return notes


def sort_out(
    rows: Sequence[Row], options: IngestOptions, tissue_by: TissueBy | None = None
) -> Todo:
    """Sort slides into those to cut, to fail, to leave alone or to update.

    Args:
        rows: rows of `find_named_slides`, with the lake's columns of these slides.
        options: which slides to cut.
        tissue_by: the method that finds tissue, if the user gave one.
    """
    todo = Todo()
    for row in rows:
        if row["mask_trouble"]:
            _stop(todo, row, row["mask_trouble"])
        elif row["state"] == "ready":
            _sort_ready(todo, row, options)
        elif row["unreadable"]:
            todo.failed.append({**row, **_as_kept(row), "reason": row["unreadable"]})
        elif row["state"] == "pending" or options.get("retry_failed") or _is_new_file(row):
            todo.cut.append(row)
        else:
            _update_facts(todo, row)
    first, todo.cut = todo.cut[: options.get("limit")], []
    for row in first:
        try:
            todo.cut.append(_to_cut(row, tissue_by))
        except SlideError as error:
            _stop(todo, row, str(error))
    taken = {row["slide_id"] for row in todo.cut}
    todo.again = {name: why for name, why in todo.again.items() if name in taken}
    return todo


def _sort_ready(todo: Todo, row: Row, options: IngestOptions) -> None:
    """Sort a slide of the lake: another scan, other settings, other facts, or unchanged."""
    cut_with, user_settings = _cut_with(row), row["given"]
    if _is_scanned_again(row):
        if options.get("replace") or row["uri"] == row["known_uri"]:
            todo.cut.append(row)
        else:
            _stop(todo, row, _another_file(row))
        return
    if not user_settings:  # as for most of 300,000 slides
        _update_facts(todo, row)
        return
    if _overrules_file(row, cut_with) and not options.get("replace"):
        if not _is_near(row["mpp"], row["known_mpp"]):
            _stop(todo, row, _mpp_of_file(row))
            return
        user_settings = {name: setting for name, setting in user_settings.items() if name != "mpp"}
        row = {**row, "given": user_settings}
    changes = differences(cut_with, row["known_mpp"], user_settings)
    if cut_with is None and {"mask", "tissue", "pen_veto", "icc"} & set(user_settings):
        if options.get("replace"):
            changes.append("with which settings it was cut is not known")
        else:
            todo.unknown.append(row["slide_id"])
    if changes and cut_with and cut_with.mask and _lacks_mask(user_settings):
        _stop(todo, row, _mask_is_gone(cut_with.mask))
    elif changes and not row["unreadable"]:
        todo.again[row["slide_id"]] = "; ".join(changes)
        todo.cut.append(row)
    else:
        _update_facts(todo, row)


def _overrules_file(row: Row, cut_with: CutSettings | None) -> bool:
    """Whether a run's --mpp-override meets a slide that was cut at its file's own mpp.

    The option is meant for slides that lack an mpp; a manifest's mpp is meant for its slide.
    """
    own = cut_with is None or cut_with.mpp is None
    return own and "mpp" in row["given"] and not row["mpp_of_slide"]


def _is_near(one: float, other: float | None) -> bool:
    return other is None or math.isclose(one, other, rel_tol=MPP_TOLERANCE)


def _mpp_of_file(row: Row) -> str:
    return (
        f"it was cut at {row['known_mpp']:g} mpp, which its file says, and --mpp-override says "
        f"{row['mpp']:g}: give its mpp in a manifest, or --replace, to have it cut again; it is "
        "left as it is"
    )


def _update_facts(todo: Todo, row: Row) -> None:
    mark = row.get("listing_mark")
    is_same = row["fingerprint"] is not None and row["fingerprint"] == row.get("known_fingerprint")
    if is_same and mark is not None and mark != row.get("known_listing_mark"):
        todo.marks[row["slide_id"]] = {"listing_mark": mark}
    if facts := changed_facts(row):
        todo.facts[row["slide_id"]] = facts
        todo.fact_names |= fact_names(row)


def _stop(todo: Todo, row: Row, reason: str) -> None:
    todo.stopped.append({"slide": row["slide_id"], "reason": reason})


def _to_cut(row: Row, tissue_by: TissueBy | None) -> Row:
    """Return a slide's row with all that a worker needs to cut the slide.

    Settings not given now are as the slide was cut, or as a stopped run was to cut it.

    Raises:
        SlideError: the mask or the segmenter of that run is missing.
    """
    user_settings, settings = row["given"], _cut_with(row) or CutSettings()
    if _is_scanned_again(row):
        if settings.mask and "mask" not in user_settings:
            msg = (
                f"it was scanned again, and its mask ({settings.mask}) was drawn on the earlier "
                "scan: give --masks with one of this scan, or --tissue to do without"
            )
            raise SlideError(msg)
        settings = replace(settings, mpp=None)  # the earlier file's
    settings = settings.with_user_settings(user_settings)
    if settings.mask and "mask" not in user_settings:
        settings = replace(settings, mask_mark=mask_mark(settings.mask))
    return {
        **row,
        **merged_facts(row),
        "mpp": settings.mpp,
        "mask": row["mask_url"] or settings.mask,
        "pen_veto": settings.pen_veto,
        "icc": settings.icc,
        "allow_anisotropic": settings.allow_anisotropic,
        "tissue_by": _tissue_by(settings.tissue, tissue_by),
        "cut_with": settings.to_json(),
    }


def _tissue_by(name: str, segmenter: TissueBy | None) -> TissueBy:
    if segmenter is not None and method_name(segmenter) == name:
        return segmenter
    if name not in NAMES:
        msg = f"its tissue was to be found by {name}; give that --tissue FILE.py again, or another"
        raise SlideError(msg)
    return name


def _as_kept(row: Row) -> Row:
    """Return the columns that a failure keeps: facts, and the settings to cut the slide with."""
    return {**merged_facts(row), "cut_with": row.get("known_cut_with") or row["cut_with"]}


def _cut_with(row: Row) -> CutSettings | None:
    text = row.get("known_cut_with")
    return _parsed(text) if text else None


@functools.lru_cache(maxsize=1024)
def _parsed(text: str) -> CutSettings:
    """Return settings from their text, which is the same for most slides."""
    return CutSettings.from_json(text)


def _is_scanned_again(row: Row) -> bool:
    lake_fingerprint = row.get("known_fingerprint")
    return row["state"] == "ready" and row["fingerprint"] not in (None, lake_fingerprint)


def _lacks_mask(user_settings: UserSettings) -> bool:
    """Whether the user gave masks, but none for this slide and no way to find its tissue."""
    return (
        "mask" in user_settings and user_settings["mask"] is None and "tissue" not in user_settings
    )


def _mask_is_gone(mask: str) -> str:
    return (
        f"it was cut with the mask {mask}, and --masks has none for it now: add one, or say how to "
        "find tissue without (--tissue); it is left as it is"
    )


def dry_run(
    lake_uri: str, inputs: Sequence[str], config: LakeConfig, options: IngestOptions, *, cores: int
) -> IngestPlan:
    """Return the plan of an `ingest` with the same arguments; nothing is written.

    Raises:
        InputError: for the reasons of `find_named_slides`.
    """
    named = find_named_slides(inputs, options, known_files=known_files_at(lake_uri))
    if Store(lake_uri).exists("lake.json"):
        lake = open_lake(lake_uri)
        refuse_near_lake(lake, named.rows, distinct_ids=options.get("distinct_ids", False))
        rows = lake.committer.known(named.rows)
        kept = [name for name in score_versions(lake) if name in SCORES]
    else:
        rows, kept = [{**row, "state": "pending"} for row in named.rows], []
    todo = sort_out(rows, options, named.tissue_by)
    plan = plan_ingest(todo.cut, config, cores=cores)
    plan.scores += kept
    plan.failed += [{"slide": row["slide_id"], "reason": row["reason"]} for row in todo.failed]
    plan.failed += todo.stopped + named.stopped
    plan.notes += [*named.notes, *todo.notes("would be updated")]
    plan.notes += [f"{name} would be cut again: {why}" for name, why in todo.again.items()]
    return plan


def _is_new_file(row: Row) -> bool:
    return bool(row["fingerprint"] != row.get("known_fingerprint"))


def _another_file(row: Row) -> str:
    return (
        f"{row['uri']} is not the file that was ingested as '{row['slide_id']}' "
        f"({row['known_uri']}); give it a slide_id of its own in a manifest, or replace the slide "
        "(--replace)"
    )
