"""`slidelake ls`: the names in a lake."""

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

import typer

from commands.options.dataclass_options import command
from commands.options.printing import print_answer
from commands.options.shared_options import AtOpt, JsonOpt, LakeArg

app = typer.Typer()
SHOWN_RUNS = 12


@dataclass(frozen=True, kw_only=True)
class LsOptions:
    """Options of `slidelake ls`."""

    lake: LakeArg
    at: AtOpt = None
    json: JsonOpt = False


@command(app, "ls", without_pandas=True)
def ls_command(options: LsOptions) -> None:
    """List a lake at a glance: slides, tiles, columns, students, annotations, runs, snapshots.

    Example: slidelake ls my-lake

    The names are those that other commands take: a column after --features, a student after
    --teacher, a run after --like, a snapshot after --at. The lake may lie in a bucket. For sizes,
    versions and advice on upkeep there is `slidelake info`, for the slides one by one
    `slidelake query`.
    """
    from featurestore import open_lake

    lake = open_lake(options.lake, version=options.at)
    listing = lake.info()
    listing |= {name: lake.store.names(name) for name in ("students", "runs")}
    print_answer(listing, as_json=options.json, text="\n".join(_lines(listing)))


def _lines(listing: dict[str, Any]) -> list[str]:
    """Return the listing as lines, the kind of thing at the head of its first line."""
    tiles = [f"{count:,} at {mpp} mpp" for mpp, count in listing["tiles"].items()]
    parts = {
        "slides": [", ".join(f"{count:,} {state}" for state, count in listing["slides"].items())],
        "tiles": [f"{', '.join(tiles)}, of {listing['tile_px']} px"],
        "columns": _columns(listing),
        "students": listing["students"],
        "annotations": [
            f"{one['name']}, of {one['level']}s: {', '.join(one['columns'])}"
            for one in listing["annotations"]
        ],
        "runs": _runs(listing["runs"]),
        "snapshots": [
            f"{name}: version {version}" for name, version in listing["snapshots"].items()
        ],
    }
    lines = [f"{listing['lake']}, version {listing['version']}"]
    for kind, rows in parts.items():
        for at, row in enumerate(rows or ["none"]):
            lines.append(f"{kind if at == 0 else '':12}{row}")
    return lines


def _columns(listing: dict[str, Any]) -> list[str]:
    """Return a line for each column, with its mpps and what it lacks."""
    columns = defaultdict(list)
    for column in listing["features"]:
        columns[column["teacher"]].append(column)
    return [
        f"{name}: {parts[0]['dim']:,} numbers a tile at "
        + ", ".join(_level(part, listing["tiles"]) for part in parts)
        for name, parts in columns.items()
    ]


def _level(column: dict[str, Any], tiles: dict[str, int]) -> str:
    """Return the mpp of a column, and how many of its tiles have it if not all."""
    text = f"{column['mpp']} mpp"
    if column["complete"]:
        return text
    all_tiles = next(count for mpp, count in tiles.items() if float(mpp) == column["mpp"])
    return f"{text} ({column['tiles']:,} of {all_tiles:,} tiles: extract makes the rest)"


def _runs(names: list[str]) -> list[str]:
    """Return the names of the runs, and the number of each kind if they are many."""
    if len(names) <= SHOWN_RUNS:
        return names
    kinds = Counter(name.partition("-")[0] for name in names)
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    return [f"{counts}; slidelake runs lists their measures"]
