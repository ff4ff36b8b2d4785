"""The damage drill: one file of a small lake is damaged, and the lake is looked at and mended.

A case is a file and a way to damage it. What a reader gets is compared with what the undamaged lake
gives, so that neither `verify` nor `repair` is believed. Cases run in a child process: a file so
damaged that Lance ends its process is a row of the table like any other.
"""

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from featurestore import LakeConfig, LakeError, ShardReader, create_lake, open_lake
from featurestore.keep.lance_restore import restore
from featurestore.keep.repairing import plan_repair, repair
from featurestore.keep.verify.damage import Verdict
from featurestore.keep.verify.lance_checking import check_lake, lake_to_mend
from featurestore.lake import Lake
from featurestore.roots import roots_file as roots
from tests.worlds.small_lake import add_slides, add_teacher

ROOT_FOLDER = Path(__file__).resolve().parents[2]
WAYS = ("flip", "truncate", "delete", "zero")
# Written to or locked by who is at work: no part of the content.
NO_COPY_OF = "commit.lock"
NO_CONTENT = ("commit.lock", "leases/")

Key = tuple[str, ...]


def make_lake(folder: Path) -> Lake:
    """Make a lake of replaced scans, deletions, two teachers, a snapshot and old files."""
    lake = create_lake(folder, LakeConfig(mpps=(0.5, 2.0)))
    lake = add_slides(lake, {"a": 5, "b": 3})
    lake = add_teacher(lake, "t")
    lake = add_slides(lake, {"c": 4})
    lake = add_slides(lake, {"a": 6}, mark="again")
    lake = add_teacher(add_teacher(lake, "t"), "u", dim=4)
    lake.snapshot("first")
    lake.write_bytes("ingest.html", b"<p>pictures</p>")
    return lake.refreshed()


def link_or_copy(source: str, copy: str) -> str:
    """Copy a file by a hard link: files of a lake are replaced, only that of the lock is not."""
    if source.endswith(NO_COPY_OF):
        return str(shutil.copy2(source, copy))
    os.link(source, copy)
    return copy


def damaged(data: bytes, way: str, place: float = 0.5) -> bytes | None:
    """The bytes of a file after damage; None if it is deleted."""
    at = min(int(len(data) * place), len(data) - 1)
    if way == "flip":
        return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]
    if way == "truncate":
        return data[: len(data) // 2]
    return None if way == "delete" else bytes(len(data))


def kind_of(path: str) -> str:
    """Return the kind of a file, for the table: `catalog.lance data`, `tiles idx`."""
    parts = path.split("/")
    if ".lance" in path:
        table = "features" if parts[0] == "features" else parts[0]
        inner = parts[parts.index(next(p for p in parts if p.endswith(".lance"))) + 1]
        last = parts[-1] if inner == "_indices" or "hint" in parts[-1] else ""
        return f"{table} {inner} {last}".strip()
    return f"{parts[0]} {parts[-1].rpartition('.')[2]}" if len(parts) > 1 else path


def content(lake: Lake) -> dict[Key, Any]:
    """Return what readers get of a lake, row by row and picture by picture."""
    contents: dict[Key, Any] = {}
    _put(contents, ("slides",), lambda: lake.slides().collect().sort("slide").rows())
    _put(
        contents, ("scans",), lambda: [lake.tiles(mpp=m).collect().rows() for m in lake.config.mpps]
    )
    for mpp in lake.config.mpps:
        rows = _try(functools.partial(lake.tiles_of, mpp=mpp))
        for row in [] if rows is None else rows.to_dicts():
            _put_slide(contents, lake, mpp, row)
    return contents


def _put_slide(contents: dict[Key, Any], lake: Lake, mpp: float, row: dict[str, Any]) -> None:
    slide, place = row["slide_id"], (row["slide_id"], str(mpp))
    lies = row["fragment"], row["row_start"], row["tiles"]
    _put(contents, ("tiles", *place), lambda: lake.row_reader(mpp=mpp).tiles(*lies).to_pydict())
    teachers = list(_try(lambda: lake.teachers(mpp=mpp)) or {})
    # All teachers in one read, which is quicker; one by one where that fails.
    bag = _try(lambda: lake.bag(slide, teachers, mpp=mpp))
    for teacher in teachers:
        alone = functools.partial(_features, lake, slide, teacher, mpp)
        value = _try(alone) if bag is None else bag.by_teacher[teacher].tobytes()
        if value is not None:
            contents["features", *place, teacher] = value
    with_shard = _try(lambda: ShardReader.of(lake.store, row))
    if with_shard is not None:
        with with_shard as reader:
            for at, key in enumerate(reader.tile_id.tolist()):
                _put(contents, ("jpeg", *place, str(key)), functools.partial(reader.jpeg, at))


def _features(lake: Lake, slide: str, teacher: str, mpp: float) -> bytes:
    return lake.bag(slide, teacher, mpp=mpp).features.tobytes()


def _put(contents: dict[Key, Any], key: Key, work: Callable[[], Any]) -> None:
    value = _try(work)
    if value is not None:
        contents[key] = value


def _try(work: Callable[[], Any]) -> Any:  # noqa: ANN401 - what `work` returns
    try:
        return work()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # noqa: BLE001 - a reader that raises is not wrong
        return None


@dataclass(kw_only=True)
class Outcome:
    """The outcome for a lake with one damaged file.

    Attributes:
        path: the file.
        way: how it was damaged.
        named: the damage that `verify` names; empty if none.
        did: "nothing", "repair", "restore" or "refused".
        faults: what went wrong, in words; empty if all went as it must.
    """

    path: str
    way: str
    named: str
    did: str
    faults: list[str]


@functools.cache
def _content_of(source: str) -> dict[Key, Any]:
    return content(open_lake(source))


def run_case(
    source: Path, work: Path, path: str, way: str, place: float = 0.5, *, go_on: bool = True
) -> Outcome:
    """Damage one file of a copy of a lake, look at it, mend it, and compare with the undamaged."""
    roots._check.cache_clear()  # the folder is another lake now
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(source, work, copy_function=link_or_copy)
    whole = _content_of(str(source))
    file = work / path
    data = damaged(file.read_bytes(), way, place)
    file.unlink()
    if data is not None:
        file.write_bytes(data)
    faults: list[str] = []
    _info_names_it(work, faults)
    now = _try(lambda: content(open_lake(work))) or {}
    readable = right(now, whole)
    verdict = check_lake(work)
    if verdict.ok:
        if now != whole:
            faults.append("verify found nothing, but readers get something else")
        return Outcome(path=path, way=way, named="", did="nothing", faults=faults)
    named = "; ".join(sorted({one.part for one in verdict.damage}))
    did = mend(work, verdict, whole, readable, faults)
    if go_on and did != "refused":
        _goes_on(work, faults)
    return Outcome(path=path, way=way, named=named, did=did, faults=faults)


def _info_names_it(work: Path, faults: list[str]) -> None:
    """Run `info`: it answers, or names the damage in one line of ours."""
    try:
        open_lake(work).info()
    except LakeError as error:
        if not any(word in str(error) for word in (".lance", ".json", "snapshot")):
            faults.append(f"info names nothing: {error}")
    except BaseException as error:  # noqa: BLE001 - a panic is what is looked for
        faults.append(f"info raised {type(error).__name__}: {error}")


def right(now: dict[Key, Any], whole: dict[Key, Any]) -> set[Key]:
    """Keys whose content is that of the undamaged lake."""
    return {key for key, value in now.items() if whole.get(key) == value}


def mend(
    work: Path, verdict: Verdict, whole: dict[Key, Any], readable: set[Key], faults: list[str]
) -> str:
    """Repair or restore, and note what is worse than before."""
    if verdict.broken_tables:
        if not verdict.whole:
            return "refused"
        done = restore(str(work), verdict.whole[0])
        after = check_lake(work)
        if not after.ok:
            faults.append(f"restored, but {after.damage[0].description}")
        if done.version != after.version:
            faults.append(f"restored to {done.version}, but {after.version} is read")
        return "restore"
    lake = lake_to_mend(work)
    plan = plan_repair(lake, verdict)
    if not plan.steps:
        return "refused"
    repair(lake, verdict, plan=plan, yes=True)
    # Pictures of tiles whose rows are damaged go with the rows; the shard itself stays.
    tiles = {key[1:3] for key in readable if key[0] == "tiles"}
    kept = {key for key in readable if key[0] != "jpeg" or key[1:3] in tiles} - {
        ("slides",),
        ("scans",),
    }
    lost = kept - right(content(open_lake(work)), whole)
    if lost:
        faults.append(f"repair lost {sorted(lost)[:2]}")
    left = {one.part for one in check_lake(work).damage} - {"shard", "file"}
    if left:
        faults.append(f"after repair there is still damage of {sorted(left)}")
    return "repair"


def _goes_on(work: Path, faults: list[str]) -> None:
    """Ingest and extract what is missing, as a user would: the lake must end whole."""
    lake = add_slides(open_lake(work), {"a": 6}, mark="again")
    lake = add_slides(lake, {"b": 3, "c": 4})
    lake = add_teacher(add_teacher(lake, "t"), "u", dim=4)
    left = check_lake(work).damage
    if any(one.part != "file" for one in left):
        faults.append(f"after ingest and extract there is damage: {left[0].description}")
    counts = lake.info()
    if [f["complete"] for f in counts["features"]] != [True] * 4 or counts["tiles"]["0.5"] != 13:
        faults.append(f"after ingest and extract the lake is not complete: {counts['tiles']}")


# ---------------------------------------------------------------------- many cases


def cases_of(lake: Path) -> list[tuple[str, str]]:
    """Return all files of a lake with all ways to damage them."""
    paths = sorted(str(p.relative_to(lake)) for p in lake.rglob("*") if p.is_file())
    return [(path, way) for path in paths if not path.startswith(NO_CONTENT) for way in WAYS]


def run_cases(
    source: Path,
    work: Path,
    cases: Sequence[tuple[str, str]],
    place: float = 0.5,
    *,
    go_on: bool = True,
) -> Iterator[Outcome]:
    """Run cases in child processes; a case that ends its process is a fault."""
    todo = list(cases)
    while todo:
        request = json.dumps([str(source), str(work), todo, place, go_on])
        done = subprocess.run(
            [sys.executable, "-m", "tests.worlds.damage_drill", request],
            cwd=ROOT_FOLDER,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT_FOLDER)},
        )
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        outcomes = [Outcome(**json.loads(line)) for line in lines]
        yield from outcomes
        todo = todo[len(outcomes) :]
        if todo and done.returncode:
            path, way = todo.pop(0)
            fault = f"the process ended with {done.returncode}: {done.stderr[-2000:]}"
            yield Outcome(path=path, way=way, named="", did="died", faults=[fault])


def main(request: str) -> None:
    """Run cases one after the other and print an outcome a line."""
    source, work, cases, place, go_on = json.loads(request)
    for path, way in cases:
        outcome = run_case(Path(source), Path(work), path, way, place, go_on=go_on)
        print(json.dumps(asdict(outcome)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
