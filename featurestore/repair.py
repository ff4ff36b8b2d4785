"""Takes out what `verify` found damaged, so that the next ingest and extract make it again.

Nothing else is touched: a slide whose shard alone is damaged keeps its rows and features, and a
damaged column goes by fragment, the unit in which a teacher is run.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from featurestore.damage import FEATURES, SHARD, STRAY, TABLE, TILES, Damage, Verdict
from featurestore.lake import Lake
from featurestore.schema import SLIDES


@dataclass(kw_only=True)
class Repaired:
    """What was taken out, and so has to be made again.

    Attributes:
        slides: to be ingested again; those of `columns` need not be.
        columns: (teacher, mpp, fragments) to be extracted again.
        left: damage that nothing can be done about here.
    """

    slides: list[str] = field(default_factory=list)
    columns: list[tuple[str, float, list[int]]] = field(default_factory=list)
    left: list[Damage] = field(default_factory=list)


def repair(lake: Lake, verdict: Verdict) -> Repaired:
    """Drop what is damaged, in commits of their own; earlier versions stay as they are.

    Args:
        lake: the lake that was verified, at its newest version.
        verdict: what `verify` found.
    """
    by_part: dict[str, list[Damage]] = {}
    for found in verdict.damage:
        part = found.part if found.number >= 0 else "left"
        by_part.setdefault(part, []).append(found)
    done = Repaired(left=by_part.get("left", []))
    for found in by_part.get(STRAY, []):
        lake.committer.drop_rows(_mpp(found), found.fragment, [found.number])
    whole = [*by_part.get(TILES, []), *by_part.get(TABLE, [])]
    lost = {found.number for found in whole}
    if rows := _slides(lake, lost):
        lake.committer.drop_slides(rows)
    shards = {found.number for found in by_part.get(SHARD, [])} - lost
    if again := _slides(lake, shards):
        lake.committer.reopen(again)
    done.slides = sorted(row["slide_id"] for row in [*rows, *again])
    done.columns = _drop_columns(
        lake, [f for f in by_part.get(FEATURES, []) if f.number not in lost]
    )
    return done


def _mpp(found: Damage) -> float:
    return -1.0 if found.mpp is None else found.mpp


def _slides(lake: Lake, numbers: set[int]) -> list[dict[str, Any]]:
    if not numbers:
        return []
    where = f"slide IN ({', '.join(str(number) for number in sorted(numbers))})"
    rows: list[dict[str, Any]] = lake.table(SLIDES).to_table(filter=where).to_pylist()
    return rows


def _drop_columns(lake: Lake, damage: Sequence[Damage]) -> list[tuple[str, float, list[int]]]:
    columns: dict[tuple[str, float], set[int]] = {}
    for found in damage:
        columns.setdefault((found.teacher or "", _mpp(found)), set()).add(found.fragment)
    for (teacher, mpp), fragments in columns.items():
        lake.committer.drop_column(mpp, teacher, sorted(fragments))
    return [(teacher, mpp, sorted(found)) for (teacher, mpp), found in sorted(columns.items())]
