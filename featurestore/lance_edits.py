"""Edits that touch several tables and appear at once: slides and columns dropped or renamed.

Lance changes a schema, rows and a file each in a commit of its own. So the goal of an edit is
written first, as a property of an empty commit to the first features table; then all tables are
changed, each step such that doing it twice is doing it once; then the catalog, in one commit. A
reader sees the lake before or after. After a kill in between, the next committer reads the goal
and does all of it again.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import lance
import numpy as np
import pyarrow as pa
from lance import LanceOperation

from featurestore import lance_features as features
from featurestore.annotations import lance_registry as registry
from featurestore.checksums import with_row_crc32
from featurestore.cuts import Row
from featurestore.lance_files import physical_column, put_files, write_column
from featurestore.lance_ledger import Change, Ledger, among, root_versions
from featurestore.lance_nearest import index_name
from featurestore.lance_tables import commit, open_table, properties_of
from featurestore.schema import CATALOG, DROPPED, SLIDES, SLIDES_SCHEMA, features_table

GOAL_KEY = "slidelake:goal"
LOOKED_BACK = 500  # versions in which an edit is looked for that was made before
ROWS_AT_ONCE = 1000  # rows of `slides` with their pictures, about 30 MB
FEW_SLIDES = 2000  # beyond this the catalog is read whole


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What an edit is to reach.

    Attributes:
        kind: one of `STEPS`.
        about: what it is made of, as JSON can hold it.
    """

    kind: str
    about: Mapping[str, Any] = field(default_factory=dict)

    def properties(self) -> dict[str, str]:
        """The goal as a property of a transaction."""
        value = {"kind": self.kind, "about": dict(self.about)}
        return {GOAL_KEY: json.dumps(value, sort_keys=True)}

    @classmethod
    def of(cls, table: lance.LanceDataset, version: int) -> Self | None:
        """The goal that the commit of a version carries; None if it carries none."""
        text = properties_of(table, version).get(GOAL_KEY)
        return None if text is None else cls(**json.loads(text))


def unfinished(ledger: Ledger) -> Goal | None:
    """The goal of an edit that the catalog does not know yet: its committer was killed."""
    rel = features_table(ledger.config.mpps[0])
    named = root_versions(open_table(ledger.store, CATALOG))[rel]
    table = open_table(ledger.store, rel)
    goals = (Goal.of(table, version) for version in range(table.version, named, -1))
    return next((goal for goal in goals if goal is not None), None)


def was_reached(ledger: Ledger, goal: Goal) -> bool:
    """Whether an edit of the same goal was made, in the versions that are kept."""
    table = open_table(ledger.store, features_table(ledger.config.mpps[0]))
    kept = {int(entry["version"]) for entry in table.versions()}
    latest = sorted(kept, reverse=True)[:LOOKED_BACK]
    return any(Goal.of(table, version) == goal for version in latest)


def begin(ledger: Ledger, goal: Goal) -> None:
    """Write the goal down, before any table is changed."""
    rel = features_table(ledger.config.mpps[0])
    table = open_table(ledger.store, rel)
    commit(
        ledger.store,
        rel,
        LanceOperation.Append([]),
        read_version=table.version,
        properties=goal.properties(),
    )


def reach(ledger: Ledger, goal: Goal, check: Callable[[], None]) -> list[Change]:
    """Change all tables but the catalog, and give the changes of the catalog that follow.

    Args:
        ledger: of the lake; the caller holds its lock.
        goal: as it was begun.
        check: raises LakeError if the lock is held no more; called before each commit.
    """
    return list(STEPS[goal.kind](ledger, goal.about, check))


# ---------------------------------------------------------------------- slides


def _drop_slides(
    ledger: Ledger, about: Mapping[str, Any], check: Callable[[], None]
) -> Iterator[Change]:
    """Delete all rows of slides; what is left of each is a row that keeps its number taken."""
    slides = {int(number): slide_id for number, slide_id in about["slides"].items()}
    for mpp in ledger.config.mpps:
        check()
        yield features.drop_tiles(ledger.store, ledger, mpp, list(slides))
    rows = [
        {"slide": number, "slide_id": dropped_id(number, name), "state": DROPPED, "uri": ""}
        for number, name in slides.items()
    ]
    check()
    _put_by_number(ledger, rows)


def dropped_id(number: int, slide_id: str) -> str:
    """What the row of a dropped slide is called, so that its name is free again."""
    return f"{DROPPED}:{number}:{slide_id}"


def _rename_slide(
    ledger: Ledger, about: Mapping[str, Any], check: Callable[[], None]
) -> Iterator[Change]:
    number, new = int(about["slide"]), str(about["new"])
    for mpp in ledger.config.mpps:
        rows = ledger.rows(f"mpp = {mpp} AND {among([number])}")
        for fragment in sorted({row["fragment"] for row in rows} - {-1}):
            check()
            _name_rows(ledger, mpp, fragment, number, new)
        if rows:
            drop = f"mpp = {mpp} AND {among([number])}"
            yield Change(drop=drop, add=[{**row, "slide_id": new} for row in rows])
    there = open_table(ledger.store, SLIDES).to_table(filter=among([number])).to_pylist()
    check()
    _put_by_number(ledger, [{**row, "slide_id": new} for row in there])
    registry.rename_slide(ledger.store, str(about["old"]), new, check)


def _name_rows(ledger: Ledger, mpp: float, fragment: int, slide: int, slide_id: str) -> None:
    """Write the names of a fragment's slides again; no other column of it is touched."""
    store, rel = ledger.store, features_table(mpp)
    table = open_table(store, rel)
    numbers = physical_column(store, rel, table, fragment, "slide").to_numpy()
    names = physical_column(store, rel, table, fragment, "slide_id").to_pylist()
    here = np.flatnonzero(numbers == slide).tolist()
    if all(names[at] == slide_id for at in here):
        return
    for at in here:
        names[at] = slide_id
    column = table.schema.field("slide_id")
    path = write_column(store, rel, column, pa.array(names, column.type))
    put_files(store, rel, {fragment: path})


def _set_patients(
    ledger: Ledger, about: Mapping[str, Any], check: Callable[[], None]
) -> Iterator[Change]:
    """Write the patients of slides into their rows, a thousand rows at a time."""
    patients: dict[str, str] = json.loads(ledger.store.read_bytes(about["plan"]))
    table = open_table(ledger.store, SLIDES).to_table(columns=["slide", "slide_id", "patient_id"])
    todo = [
        row["slide"]
        for row in table.to_pylist()
        if patients.get(row["slide_id"], row["patient_id"]) != row["patient_id"]
    ]
    for start in range(0, len(todo), ROWS_AT_ONCE):
        some = among(todo[start : start + ROWS_AT_ONCE])
        rows = open_table(ledger.store, SLIDES).to_table(filter=some).to_pylist()
        check()
        _put_by_number(ledger, [{**row, "patient_id": patients[row["slide_id"]]} for row in rows])
    yield from ()


def _put_by_number(ledger: Ledger, rows: Sequence[Row]) -> None:
    """Write whole rows of `slides` in place of those of the same numbers."""
    if not rows:
        return
    values = [{name: row.get(name) for name in SLIDES_SCHEMA.names} for row in rows]
    table = with_row_crc32(pa.Table.from_pylist(values, schema=SLIDES_SCHEMA))
    merge = open_table(ledger.store, SLIDES).merge_insert("slide")
    merge.when_matched_update_all().execute(table)


# ---------------------------------------------------------------------- columns


def _drop_columns(
    ledger: Ledger, about: Mapping[str, Any], check: Callable[[], None]
) -> Iterator[Change]:
    for mpp in ledger.config.mpps:
        for column in about["columns"]:
            check()
            drop_column(ledger, mpp, column)
            yield Change(drop=f"mpp = {mpp} AND teacher = '{column}'")


def drop_column(ledger: Ledger, mpp: float, column: str) -> None:
    """Take a column out of a features table, with its index; its files stay until vacuum."""
    rel = features_table(mpp)
    if column in open_table(ledger.store, rel).schema.names:
        _drop_index(ledger, rel, column)
        open_table(ledger.store, rel).drop_columns([column])


def _rename_columns(
    ledger: Ledger, about: Mapping[str, Any], check: Callable[[], None]
) -> Iterator[Change]:
    for mpp in ledger.config.mpps:
        for old, new in about["columns"].items():
            check()
            _rename_column(ledger, mpp, old, new, about.get("annotation"))
            rows = ledger.rows(f"mpp = {mpp} AND teacher = '{old}'")
            if rows:
                drop = f"mpp = {mpp} AND teacher = '{old}'"
                yield Change(drop=drop, add=[{**row, "teacher": new} for row in rows])


def _rename_column(
    ledger: Ledger, mpp: float, old: str, new: str, annotation: str | None
) -> None:
    """Rename a column; the index over it is named after it, and is to be built again."""
    rel = features_table(mpp)
    if old in open_table(ledger.store, rel).schema.names:
        _drop_index(ledger, rel, old)
        open_table(ledger.store, rel).alter_columns({"path": old, "name": new})
    table = open_table(ledger.store, rel)
    if annotation is not None and new in table.schema.names:
        table.update_field_metadata({new: {registry.NAME_KEY.decode(): annotation}})


def _drop_index(ledger: Ledger, rel: str, column: str) -> None:
    table = open_table(ledger.store, rel)
    if index_name(column) in {index.name for index in table.describe_indices()}:
        table.drop_index(index_name(column))


def _add_columns(
    ledger: Ledger, about: Mapping[str, Any], check: Callable[[], None]
) -> Iterator[Change]:
    """Put the columns of an annotation into the tables, in place of those of the same name."""
    plan = json.loads(ledger.store.read_bytes(about["plan"]))
    for mpp in ledger.config.mpps:
        for column in about["instead_of"]:
            check()
            _drop_other(ledger, mpp, column, about["mark"])
            yield Change(drop=f"mpp = {mpp} AND teacher = '{column}'")
    for part in plan["parts"]:
        mpp, column = part["mpp"], part["column"]
        check()
        _add_column(ledger, mpp, part)
        sums = {int(slide): crc32 for slide, crc32 in part["crc32"].items()}
        tiles = [row for row in _tiles_rows(ledger, mpp, list(sums)) if row["slide"] in sums]
        names = ("slide", "slide_id", "mpp", "tiles", "fragment", "row_start")
        rows = [
            {**{n: row[n] for n in names}, "teacher": column, "crc32": sums[row["slide"]]}
            for row in tiles
            if str(row["fragment"]) in part["files"]
        ]
        yield Change(add=rows)


def _tiles_rows(ledger: Ledger, mpp: float, slides: Sequence[int]) -> list[Row]:
    if len(slides) <= FEW_SLIDES:
        return ledger.tiles_rows(mpp, slides)
    return ledger.rows(f"teacher IS NULL AND mpp = {mpp}")


def _drop_other(ledger: Ledger, mpp: float, column: str, mark: str) -> None:
    """Drop a column unless it is the new one already."""
    schema = open_table(ledger.store, features_table(mpp)).schema
    if column in schema.names and registry.mark_of(schema.field(column)) != mark:
        drop_column(ledger, mpp, column)


def _add_column(ledger: Ledger, mpp: float, part: Mapping[str, Any]) -> None:
    rel = features_table(mpp)
    wanted = registry.field_from(part)
    if wanted.name not in open_table(ledger.store, rel).schema.names:
        open_table(ledger.store, rel).add_columns([wanted])
    files = {int(fragment): path for fragment, path in part["files"].items()}
    put_files(ledger.store, rel, files)


STEPS: dict[
    str, Callable[[Ledger, Mapping[str, Any], Callable[[], None]], Iterator[Change]]
] = {
    "add columns": _add_columns,
    "drop columns": _drop_columns,
    "drop slides": _drop_slides,
    "rename columns": _rename_columns,
    "rename slide": _rename_slide,
    "set patients": _set_patients,
}
