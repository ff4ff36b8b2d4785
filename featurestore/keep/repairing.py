"""Repair: removes parts that `verify` reports as damaged, or rebuilds them from whole files.

Nothing undamaged is removed: a slide with only a damaged shard keeps its rows and features, a
damaged bag of features is removed without its neighbours, an index is rebuilt. The steps form a
list that can be read before; where a table of the newest version is damaged the list is empty,
since by a table that can't be believed nothing can be judged.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from featurestore.errors import LakeError
from featurestore.keep.lance_mending import (
    count_rows,
    drop_features,
    mend_roots,
    put_slide_rows_again,
    rebuild_table_index,
)
from featurestore.keep.verify.damage import (
    FEATURES,
    ROOT,
    ROW,
    SHARD,
    SHARD_INDEX,
    STRAY,
    TABLE_INDEX,
    TILES,
    Damage,
    Verdict,
)
from featurestore.lake import Lake
from featurestore.messages import counted
from featurestore.notebook.shown import Shown
from featurestore.shards.shard_index import rebuild_index
from featurestore.tables.schema import CATALOG, SLIDES

#: Above this share of the rows of a lake nothing is dropped unless the user agrees.
FREELY = 0.1
#: Number of slides that one commit of a repair sets to pending.
SLIDES_AT_ONCE = 1000


@dataclass(frozen=True, kw_only=True)
class RepairStep:
    """One step of a repair.

    Attributes:
        description: text for the user: the part that is dropped, rebuilt or marked.
        rows: rows of tiles or features that are dropped; 0 if none is.
        damage: damage that the step repairs.
    """

    description: str
    rows: int = 0
    damage: tuple[Damage, ...]


@dataclass(kw_only=True)
class RepairPlan:
    """The steps of a repair in their order, and the damage that it leaves.

    Attributes:
        steps: steps to do, in their order.
        left: damage that no step can repair.
        share: share of the lake's rows of tiles and features that are dropped.
        advice: why nothing is done although something is damaged, and the way back; else empty.
    """

    steps: list[RepairStep] = field(default_factory=list)
    left: list[Damage] = field(default_factory=list)
    share: float = 0.0
    advice: str = ""

    @property
    def is_large(self) -> bool:
        """Whether the plan drops more than `FREELY`, so that the user has to agree."""
        return self.share > FREELY


@dataclass(kw_only=True, repr=False)
class Repaired(Shown):
    """Slides and columns that a repair removed, to be ingested or extracted again.

    Attributes:
        slides: slides to be ingested again; the slides in `columns` need no ingest.
        columns: features to be extracted again, as (teacher, mpp, slides).
        rebuilt: files that were rebuilt from undamaged files.
        left: damage that no step can repair.
    """

    slides: list[str] = field(default_factory=list)
    columns: list[tuple[str, float, list[str]]] = field(default_factory=list)
    rebuilt: list[str] = field(default_factory=list)
    left: list[Damage] = field(default_factory=list)


def plan_repair(lake: Lake, verdict: Verdict) -> RepairPlan:
    """Return the steps of a repair of a lake.

    Args:
        lake: the lake that was verified, at its newest version.
        verdict: the result of `verify`.
    """
    if verdict.broken_tables:
        return RepairPlan(left=list(verdict.damage), advice=way_back(lake.uri, verdict))
    by_part: dict[str, list[Damage]] = {}
    for damage in verdict.damage:
        by_part.setdefault(damage.part, []).append(damage)
    plan = RepairPlan(left=[one for one in verdict.damage if one.part not in _STEPS])
    for part, steps in _STEPS.items():
        plan.steps += steps(lake, _steps_worth_doing(by_part, part))
    plan.share = _dropped_share(lake, plan)
    return plan


def way_back(uri: str, verdict: Verdict) -> str:
    """Return the advice for damaged tables: the names of the tables and the whole versions."""
    tables = ", ".join(sorted({damage.path or "a table" for damage in verdict.broken_tables}))
    text = f"nothing is judged, and nothing was changed, since {tables} can't be believed"
    if not verdict.whole:
        return f"{text}; no earlier version is whole: take {uri} from a copy"
    versions = ", ".join(str(version) for version in verdict.whole)
    return (
        f"{text}; whole versions: {versions}. `--at {verdict.whole[0]}` reads one, and `slidelake "
        f"restore {uri} --at {verdict.whole[0]}` makes it the newest again and deletes nothing"
    )


def _steps_worth_doing(by_part: dict[str, list[Damage]], part: str) -> list[Damage]:
    """Return the damage of a part, without what is dropped with its tiles anyhow."""
    gone = {(damage.number, damage.mpp) for damage in by_part.get(TILES, [])}
    damage = by_part.get(part, [])
    return [one for one in damage if part == TILES or (one.number, one.mpp) not in gone]


def _dropped_share(lake: Lake, plan: RepairPlan) -> float:
    dropped = sum(step.rows for step in plan.steps)
    if not dropped:
        return 0.0
    rows = lake.catalog().select("tiles").sum().collect().item()
    return float(dropped / max(int(rows or 0), 1))


def _damage_by_place(damage: Sequence[Damage], *names: str) -> dict[tuple[Any, ...], list[Damage]]:
    groups: dict[tuple[Any, ...], list[Damage]] = {}
    for one in damage:
        groups.setdefault(tuple(getattr(one, name) for name in names), []).append(one)
    return groups


def _rows_of(lake: Lake, damage: Sequence[Damage], *, teacher: str | None = None) -> int:
    """Count the rows of tiles and features of the damaged slides, or of one teacher's features."""
    numbers = sorted({one.number for one in damage})
    rows = lake.catalog().filter(pl.col("slide").is_in(numbers), pl.col("mpp") == damage[0].mpp)
    if teacher is not None:
        rows = rows.filter(pl.col("teacher") == teacher)
    return int(rows.select(pl.col("tiles").sum()).collect().item() or 0)


# ---------------------------------------------------------------------- the list


def _root_steps(_: Lake, damage: Sequence[Damage]) -> Iterator[RepairStep]:
    for one in damage:
        yield RepairStep(description=f"{one.path} is written again", damage=(one,))


def _index_steps(_: Lake, damage: Sequence[Damage]) -> Iterator[RepairStep]:
    for (path,), group in _damage_by_place(damage, "path").items():
        made = "is made again" if path in {SLIDES, CATALOG} else "is taken out"
        yield RepairStep(description=f"the index of {path} {made}", damage=tuple(group))


def _stray_steps(lake: Lake, damage: Sequence[Damage]) -> Iterator[RepairStep]:
    for (mpp, fragment), group in _damage_by_place(damage, "mpp", "fragment").items():
        rows = count_rows(lake, mpp, fragment, [one.number for one in group])
        text = f"{rows} rows in fragment {fragment} at {mpp} mpp that the catalog does not name"
        yield RepairStep(description=f"{text} are dropped", rows=rows, damage=tuple(group))


def _tiles_steps(lake: Lake, damage: Sequence[Damage]) -> Iterator[RepairStep]:
    for (_number, slide, mpp), group in _damage_by_place(damage, "number", "slide", "mpp").items():
        rows = _rows_of(lake, group)
        text = f"slide {slide}: its {rows} rows of tiles and features at {mpp} mpp are dropped"
        yield RepairStep(description=f"{text}; ingest it again", rows=rows, damage=tuple(group))


def _row_steps(_: Lake, damage: Sequence[Damage]) -> Iterator[RepairStep]:
    for (_number, slide), group in _damage_by_place(damage, "number", "slide").items():
        text = f"slide {slide}: its row in {SLIDES} is emptied; ingest it again"
        yield RepairStep(description=text, damage=tuple(group))


def _shard_steps(_: Lake, damage: Sequence[Damage]) -> Iterator[RepairStep]:
    for (_number, slide), group in _damage_by_place(damage, "number", "slide").items():
        text = f"slide {slide}: it becomes pending, its rows stay; ingest makes its shards again"
        yield RepairStep(description=text, damage=tuple(group))


def _shard_index_steps(_: Lake, damage: Sequence[Damage]) -> Iterator[RepairStep]:
    for one in damage:
        text = f"slide {one.slide}: the index of {one.path} is made again from the shard"
        yield RepairStep(description=text, damage=(one,))


def _features_steps(lake: Lake, damage: Sequence[Damage]) -> Iterator[RepairStep]:
    for (teacher, mpp), group in _damage_by_place(damage, "teacher", "mpp").items():
        rows = _rows_of(lake, group, teacher=teacher)
        slides = len({one.number for one in group})
        text = f"{rows} features of {teacher} at {mpp} mpp ({counted(slides, 'slide')}) are dropped"
        yield RepairStep(
            description=f"{text}; extract makes them again", rows=rows, damage=tuple(group)
        )


#: What is done about each part, in this order: first what all else is read by.
_STEPS: dict[str, Callable[[Lake, Sequence[Damage]], Iterator[RepairStep]]] = {
    ROOT: _root_steps,
    TABLE_INDEX: _index_steps,
    STRAY: _stray_steps,
    TILES: _tiles_steps,
    ROW: _row_steps,
    SHARD: _shard_steps,
    SHARD_INDEX: _shard_index_steps,
    FEATURES: _features_steps,
}


# ---------------------------------------------------------------------- the work


def repair(
    lake: Lake, verdict: Verdict, *, plan: RepairPlan | None = None, yes: bool = False
) -> Repaired:
    """Do what `plan_repair` lists and nothing else, in commits; earlier versions stay as they are.

    Args:
        lake: the lake that was verified, at its newest version.
        verdict: the result of `verify`.
        plan: plan of the repair; None to compute it here.
        yes: whether more than a tenth of the lake's rows may be dropped.

    Raises:
        LakeError: more would be dropped, and `yes` is False.

    Examples:
        >>> lake = sl.open_lake("my-lake")
        >>> repaired = sl.repair(lake, sl.verify(lake))
        >>> repaired.slides, repaired.left
        ([], [])
    """
    plan = plan or plan_repair(lake, verdict)
    if plan.is_large and not yes:
        msg = (
            f"{plan.share:.0%} of the rows of {lake.uri} would be dropped: nothing was changed; "
            "`slidelake repair --yes` does it, or yes=True"
        )
        raise LakeError(msg)
    done = Repaired(left=list(plan.left))
    todo: dict[str, list[Damage]] = {}
    for step in plan.steps:
        todo.setdefault(step.damage[0].part, []).extend(step.damage)
    for part, work in _WORK.items():
        if part in todo:
            work(lake, todo[part], done)
    done.slides = sorted(set(done.slides))
    return done


def _mend_roots(lake: Lake, damage: Sequence[Damage], done: Repaired) -> None:
    mend_roots(lake, [one.path or "" for one in damage])
    done.rebuilt += [one.path or "" for one in damage]


def _mend_indexes(lake: Lake, damage: Sequence[Damage], done: Repaired) -> None:
    for path in sorted({one.path or "" for one in damage}):
        rebuild_table_index(lake, path)
        done.rebuilt.append(f"index of {path}")


def _drop_strays(lake: Lake, damage: Sequence[Damage], _: Repaired) -> None:
    for (mpp, fragment), group in _damage_by_place(damage, "mpp", "fragment").items():
        lake.committer.drop_rows(mpp, fragment, [one.number for one in group])


def _drop_slides(lake: Lake, damage: Sequence[Damage], done: Repaired) -> None:
    for (mpp,), group in _damage_by_place(damage, "mpp").items():
        for rows in _slides(lake, {one.number for one in group}):
            lake.committer.drop_slides(rows, [mpp])
            done.slides += [row["slide_id"] for row in rows]


def _empty_rows(lake: Lake, damage: Sequence[Damage], done: Repaired) -> None:
    done.slides += put_slide_rows_again(lake, damage)


def _reopen(lake: Lake, damage: Sequence[Damage], done: Repaired) -> None:
    for rows in _slides(lake, {one.number for one in damage}):
        lake.committer.reopen(rows)
        done.slides += [row["slide_id"] for row in rows]


def _mend_shard_indexes(lake: Lake, damage: Sequence[Damage], done: Repaired) -> None:
    for one in damage:
        rows = lake.tiles_of(mpp=_mpp(one), slide_ids=[one.slide or ""])
        row = rows.row(0, named=True)
        rebuild_index(
            lake.store,
            row["shard"],
            shard_bytes=row["shard_bytes"],
            shard_crc32=row["shard_crc32"],
        )
        done.rebuilt.append(f"index of {row['shard']}")


def _drop_features(lake: Lake, damage: Sequence[Damage], done: Repaired) -> None:
    for (teacher, mpp), group in sorted(_damage_by_place(damage, "teacher", "mpp").items()):
        for (fragment,), fragment_damage in _damage_by_place(group, "fragment").items():
            drop_features(lake, mpp, teacher, fragment, {one.number for one in fragment_damage})
        done.columns.append((teacher, mpp, sorted({one.slide or "" for one in group})))


_WORK: dict[str, Callable[[Lake, Sequence[Damage], Repaired], None]] = {
    ROOT: _mend_roots,
    TABLE_INDEX: _mend_indexes,
    STRAY: _drop_strays,
    TILES: _drop_slides,
    ROW: _empty_rows,
    SHARD: _reopen,
    SHARD_INDEX: _mend_shard_indexes,
    FEATURES: _drop_features,
}


def _mpp(damage: Damage) -> float:
    return -1.0 if damage.mpp is None else damage.mpp


def _slides(lake: Lake, numbers: set[int]) -> Iterator[list[dict[str, Any]]]:
    """Yield whole rows of slides in batches: with its pictures a row has about 30 kB."""
    ordered = sorted(numbers)
    for start in range(0, len(ordered), SLIDES_AT_ONCE):
        some = ordered[start : start + SLIDES_AT_ONCE]
        where = f"slide IN ({', '.join(str(number) for number in some)})"
        yield lake.refreshed().table(SLIDES).to_table(filter=where).to_pylist()
