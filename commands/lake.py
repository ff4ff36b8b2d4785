"""Commands that look at a lake and look after it."""

import contextlib
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from commands.options import (
    AtOpt,
    JsonOpt,
    LakeArg,
    tell,
)

if TYPE_CHECKING:
    from featurestore import Verdict
    from featurestore.keep import Repaired, RepairPlan

app = typer.Typer()


@app.command("query")
def query_command(
    lake: LakeArg,
    sql: Annotated[str, typer.Argument(help="SQL over slides, catalog, tiles_mpp0_5, ...")],
    form: Annotated[
        str | None,
        typer.Option("--format", help="table, csv, json or parquet; from the name of --out."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="File to write the answer to; needed for parquet.")
    ] = None,
    table: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FILE",
            help="A table of yours to join: CSV, TSV, XLSX or Parquet. Repeat for several.",
        ),
    ] = None,
    at: AtOpt = None,
    json_: JsonOpt = False,
) -> None:
    """Ask a lake in SQL; annotations of slides and patients are tables by their names.

    Example: slidelake query my-lake "SELECT slide_id, count(*) FROM tiles_mpp0_5 GROUP BY slide_id"
    """
    from featurestore import open_lake, query
    from featurestore.query import answer_bytes, answer_format, write_answer

    if json_ and form and out is None:
        msg = f"--json prints one object of its own: leave out --json or --format {form}"
        raise typer.BadParameter(msg)
    form = answer_format(form, out)
    frame = query(open_lake(lake, version=at), sql, own=_own_tables(table or []))
    if out is not None:
        write_answer(frame, form, out)
        written = {"out": str(out), "format": form, "columns": frame.columns, "rows": frame.height}
        tell(written, as_json=json_, text=f"{frame.height:,} rows written to {out}")
    elif json_:
        tell({"columns": frame.columns, "rows": frame.rows()}, as_json=True, text="")
    else:
        typer.echo(answer_bytes(frame, form).decode().rstrip("\n"))


def _own_tables(options: list[str]) -> dict[str, Any]:
    """Read users' tables for a query, by the names that `--table NAME=FILE` gives them."""
    from featurestore.annotations import query_frame

    tables: dict[str, Any] = {}
    for text in options:
        name, equals, path = text.partition("=")
        if not (name and equals and path) or name in tables:
            why = "is given twice" if name in tables else "is not NAME=FILE"
            msg = f"--table '{text}' {why}, as in --table clinical=clinical.csv"
            raise typer.BadParameter(msg)
        tables[name] = query_frame(path)
    return tables


@app.command("info")
def info_command(lake: LakeArg, at: AtOpt = None, json_: JsonOpt = False) -> None:
    """What a lake holds: slides, tiles, teachers, version, snapshots."""
    from featurestore import open_lake
    from featurestore.keep import upkeep

    opened = open_lake(lake, version=at)
    info, piled_up = opened.info(), upkeep(opened)
    info["upkeep"] = {**asdict(piled_up), "advice": piled_up.advice()}
    lines = [f"{info['lake']}: format {info['format']}, version {info['version']}"]
    lines.append(", ".join(f"{count} slides {state}" for state, count in info["slides"].items()))
    lines += [f"{count:,} tiles at {mpp} mpp" for mpp, count in info["tiles"].items()]
    lines += [
        f"{f['teacher']} at {f['mpp']} mpp: {f['tiles']:,} x {f['dim']}"
        + "".join(f", {name} {f[name]}" for name in ("where", "share") if name in f)
        + ("" if f["complete"] else " (incomplete: run extract again)")
        for f in info["features"]
    ]
    lines += [_annotation_line(annotation) for annotation in info["annotations"]]
    lines += [
        f"column {c['column']} at {c['mpp']} mpp: {c['type']}, of no teacher and no annotation"
        for c in info["other_columns"]
    ]
    lines += [f"snapshot {name}: version {version}" for name, version in info["snapshots"].items()]
    lines += piled_up.advice()
    tell(info, as_json=json_, text="\n".join(lines))


def _annotation_line(annotation: dict[str, Any]) -> str:
    columns = ", ".join(f"{name} ({kind})" for name, kind in annotation["columns"].items())
    where = (
        " at " + ", ".join(f"{mpp} mpp" for mpp in annotation["mpps"]) if annotation["mpps"] else ""
    )
    source = f", from {annotation['source']}" if annotation["source"] else ""
    what = f"annotation {annotation['name']} of {annotation['level']}s{where}"
    return f"{what}: {annotation['rows']:,} rows, {columns}{source}"


@app.command("verify")
def verify_command(
    lake: LakeArg,
    sample: Annotated[
        float, typer.Option(min=0, max=1, help="Share of slides to read in full: a quick look.")
    ] = 1.0,
    at: AtOpt = None,
    json_: JsonOpt = False,
) -> None:
    """Compare a lake with its catalog: counts, keys, checksums, files. Exit code 1 on damage.

    Names slides, teachers and tables; if a table is damaged, also the versions that are whole.

    Example: slidelake verify my-lake --sample 0.05
    """
    from commands.isolated_verify import verify_isolated

    verdict = verify_isolated(lake, at=at, sample=sample)
    lines = [_damage_line(damage) for damage in verdict.as_dict()["damage"]]
    lines.append(_checked_line(verdict.as_dict()))
    lines += [
        f"{count:,} {name} have no checksum: `slidelake repair --checksums` adds them"
        for name, count in verdict.unchecked.items()
    ]
    if not verdict.ok:
        lines.append(_advice(lake, verdict))
    tell(verdict.as_dict(), as_json=json_, text="\n".join(lines))
    raise typer.Exit(0 if verdict.ok else 1)


def _advice(lake: str, verdict: "Verdict") -> str:
    from featurestore.keep import way_back

    if verdict.broken_tables:
        return way_back(lake, verdict)
    return "`slidelake repair` takes it out or makes it again; --dry-run says what it would do"


@app.command("repair")
def repair_command(
    lake: LakeArg,
    yes: Annotated[
        bool, typer.Option("--yes", help="Drop more than a tenth of the lake's rows, if need be.")
    ] = False,
    dry_run: Annotated[bool, typer.Option(help="Only say what would be done.")] = False,
    checksums: Annotated[
        bool,
        typer.Option(
            help="Add checksums that a lake of an earlier slidelake lacks, if it is whole."
        ),
    ] = False,
    json_: JsonOpt = False,
) -> None:
    """Take out what is damaged, or make it again from what is whole; the list is printed first.

    Only what is on the list is done. Earlier versions stay as they are. With a table damaged
    nothing is done: the versions to go back to are named. Exit code 1 if something is left.
    """
    from commands.isolated_verify import verify_isolated
    from featurestore.keep import Repaired, plan_repair, repair
    from featurestore.keep.verify import lake_to_mend

    verdict = verify_isolated(lake)
    if verdict.broken_tables:
        left = [*verdict.damage]
        lines = [_damage_line(damage.as_dict()) for damage in left]
        _tell_repair(Repaired(left=left), [*lines, _advice(lake, verdict)], {}, json_)
    opened = lake_to_mend(lake)
    plan = plan_repair(opened, verdict)
    for line in _plan_lines(plan):
        typer.echo(line, err=True)
    if dry_run:
        _tell_repair(Repaired(left=plan.left), [], {}, json_)
    done = repair(opened, verdict, plan=plan, yes=yes)
    added = _add_checksums(lake, verdict) if checksums else {}
    _tell_repair(done, _repaired_lines(done, added), added, json_)


def _add_checksums(lake: str, verdict: "Verdict") -> dict[str, int]:
    """Add what has no checksum, by kind; to a lake that was found whole."""
    from featurestore import LakeError, open_lake
    from featurestore.keep.verify import FILE_CHECKS

    if not verdict.ok:
        msg = f"{lake} was damaged, so no checksums were added: run it again once verify is clean"
        raise LakeError(msg)
    return {check.name: check.add(open_lake(lake)) for check in FILE_CHECKS}


def _plan_lines(plan: "RepairPlan") -> list[str]:
    lines = []
    for step in plan.steps:
        lines += [_damage_line(damage.as_dict()) for damage in step.damage]
        lines.append(f"  so: {step.description}")
    return lines + [f"left: {_damage_line(damage.as_dict())}" for damage in plan.left]


def _repaired_lines(done: "Repaired", added: dict[str, int]) -> list[str]:
    lines = [f"to be ingested again: {slide}" for slide in done.slides]
    lines += [
        f"to be extracted again: {teacher} at {mpp} mpp on {len(slides)} slides"
        for teacher, mpp, slides in done.columns
    ]
    lines += [f"made again: {name}" for name in done.rebuilt]
    lines += [f"left: {_damage_line(damage.as_dict())}" for damage in done.left]
    lines += [f"{count:,} checksums of {name} added" for name, count in added.items()]
    return lines


def _tell_repair(
    done: "Repaired", lines: list[str], added: dict[str, int], json_: bool
) -> NoReturn:
    value = {
        "slides": done.slides,
        "columns": [
            {"teacher": teacher, "mpp": mpp, "slides": slides}
            for teacher, mpp, slides in done.columns
        ],
        "rebuilt": done.rebuilt,
        "left": [damage.as_dict() for damage in done.left],
        "checksums": added,
    }
    tell(value, as_json=json_, text="\n".join(lines) or "nothing is damaged")
    raise typer.Exit(1 if done.left else 0)


@app.command("restore")
def restore_command(
    lake: LakeArg,
    at: Annotated[str, typer.Option(help="Number or snapshot of the version to go back to.")],
    json_: JsonOpt = False,
) -> None:
    """Make a new version that is equal to an earlier, whole one. Nothing is deleted.

    For a lake whose newest version is damaged, or to undo what was done since. `slidelake verify`
    names versions that are whole. Refused while a job is writing.

    Example: slidelake restore my-lake --at 41
    """
    from featurestore import restore

    done = restore(lake, at)
    lines = [f"version {done.version} of {lake} is equal to version {done.equal_to}"]
    lines += [
        f"{rel}: versions {', '.join(str(number) for number in numbers)} were lost"
        for rel, numbers in done.lost.items()
    ]
    lines += [f"a damaged manifest lies in {path} now" for path in done.set_aside]
    lines += [f"made again: the index of {rel}" for rel in done.rebuilt]
    tell(asdict(done), as_json=json_, text="\n".join(lines))


@app.command("compact")
def compact_command(
    lake: LakeArg,
    rows: Annotated[int, typer.Option(min=1, help="Most tiles in a merged fragment.")] = 250_000,
    json_: JsonOpt = False,
) -> None:
    """Merge the small fragments that many small ingests leave, and drop replaced rows for good."""
    from cluster import progress
    from featurestore import compact, open_lake

    with progress("compact", total=None, unit="fragments") as bar:
        done = compact(open_lake(lake), rows=rows, on_group=bar.advance)
    text = f"{done.before} fragments became {done.after}; `slidelake vacuum` frees the old files"
    tell(asdict(done), as_json=json_, text=text)


@app.command("vacuum")
def vacuum_command(
    lake: LakeArg,
    keep: Annotated[int, typer.Option(min=1, help="Newest versions that stay readable.")] = 10,
    dry_run: Annotated[bool, typer.Option(help="Only say what would be removed.")] = False,
    json_: JsonOpt = False,
) -> None:
    """Remove old versions, and files that killed jobs left. Refused while a job is writing.

    The newest versions, snapshots, and the versions that runs were made from stay.
    """
    from featurestore import open_lake, vacuum

    done = vacuum(open_lake(lake), keep=keep, dry_run=dry_run)
    verb = "would remove" if dry_run else "removed"
    text = (
        f"{verb} {done.versions} versions, {done.files} files, {done.bytes / 1e6:,.1f} MB; "
        f"readable: versions {', '.join(str(version) for version in done.kept)}"
    )
    tell(asdict(done), as_json=json_, text=text)


@app.command("snapshot")
def snapshot_command(
    lake: LakeArg,
    name: Annotated[str, typer.Argument(help="Letters, digits, _ . -")],
    at: AtOpt = None,
    json_: JsonOpt = False,
) -> None:
    """Name a version of a lake: --at NAME opens it, and vacuum never removes it.

    Example: slidelake snapshot my-lake paper-v1
    """
    from featurestore import open_lake

    opened = open_lake(lake, version=at)
    opened.snapshot(name)
    text = f"snapshot '{name}' is version {opened.version}"
    tell({"snapshot": name, "version": opened.version}, as_json=json_, text=text)


@app.command("copy")
def copy_command(
    lake: LakeArg,
    dest: Annotated[
        str, typer.Argument(metavar="DEST", help="Folder or URL of the copy; nothing is there yet.")
    ],
    at: AtOpt = None,
    json_: JsonOpt = False,
) -> None:
    """Copy a whole lake while jobs write to it: from or to a folder or a bucket.

    One version is copied (the newest, or --at), with all snapshots and the versions that runs were
    made from. A copy that was stopped goes on when the same command is given again.

    Example: slidelake copy my-lake s3://lab/my-lake
    """
    from cluster import progress
    from featurestore import copy_lake

    with contextlib.ExitStack() as stack:
        bars = []
        done = copy_lake(
            lake,
            dest,
            version=at,
            on_plan=lambda files: bars.append(
                stack.enter_context(progress("copy", total=files, unit="files"))
            ),
            on_file=lambda size: bars[0].advance(1, kB=round(size / 1000)),
        )
    versions = ", ".join(str(version) for version in done.versions)
    text = (
        f"{done.uri}: version {done.version}, {done.files:,} files, {done.bytes / 1e6:,.1f} MB "
        f"({done.copied:,} copied now); readable: versions {versions}"
    )
    tell(asdict(done), as_json=json_, text=text)


def _damage_line(damage: dict[str, Any]) -> str:
    place = [f"slide {damage['slide']}" if damage["slide"] else "the lake"]
    place += [f"at {damage['mpp']} mpp"] if damage["mpp"] is not None else []
    place += [f"teacher {damage['teacher']}"] if damage["teacher"] else []
    return f"{', '.join(place)}: {damage['what']}"


def _checked_line(verdict: dict[str, Any]) -> str:
    checked = verdict["checked"]
    return (
        f"version {verdict['version']}: {checked['slides']:,} slides, {checked['tiles']:,} tiles, "
        f"{checked['features']:,} bags of features, {checked['shards']:,} shards, "
        f"{checked['bytes'] / 1e6:,.0f} MB read: "
        + ("all as it was committed" if verdict["ok"] else f"{len(verdict['damage'])} damaged")
    )
