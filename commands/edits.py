"""Commands that give a lake users' own columns, take things out of it, and mend names."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from commands.options import DistinctIdsOpt, JsonOpt, LakeArg, tell

if TYPE_CHECKING:
    from featurestore import Lake
    from featurestore.annotations import Annotated as Made
    from featurestore.annotations import AnnotationFile, PatientsSet
    from featurestore.edits import Edited

app = typer.Typer()


@app.command("annotate")
def annotate_command(
    lake: LakeArg,
    table: Annotated[
        str | None,
        typer.Argument(
            help="CSV, TSV, XLSX or Parquet with tile_id; or slide_id, x and y; or slide_id; or "
            "patient_id; and columns of your own."
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            help="Name of the annotation; 'patients' writes patient_id into the rows of the slides."
        ),
    ] = None,
    mpp: Annotated[
        float | None,
        typer.Option(help="The mpp of the tiles at x and y, where the lake has several."),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace the annotation of this name.")
    ] = False,
    tcga_patients: Annotated[
        bool,
        typer.Option("--tcga-patients", help="Read patients off the slides' TCGA barcodes."),
    ] = False,
    distinct_ids: DistinctIdsOpt = False,
    json_: JsonOpt = False,
) -> None:
    """Make columns of your own part of a lake: of tiles, of slides or of patients.

    They are then in queries, in `extract --where`, in exports, and `--labels lake:NAME` reads them.
    Values of x and y are level-0 pixels anywhere within a tile.

    Example: slidelake annotate my-lake regions.csv --name region --mpp 0.5
    """
    from featurestore import open_lake

    opened = open_lake(lake)
    if tcga_patients:
        if table is not None:
            msg = "--tcga-patients reads the slides' names: leave out the table"
            raise typer.BadParameter(msg)
        _tell_patients(_tcga(opened, replace=replace), as_json=json_)
        return
    if table is None or name is None:
        msg = "give a table and --name NAME, or --tcga-patients"
        raise typer.BadParameter(msg)
    from featurestore.annotations import annotate, read_annotation, set_patients
    from featurestore.tables import PATIENTS

    file = read_annotation(table, distinct_ids=distinct_ids)
    frame, notes = _with_lake_names(opened, file)
    if name == PATIENTS:
        done = set_patients(opened, frame, replace_old=replace)
        _tell_patients(done, as_json=json_, notes=notes)
        return
    made = annotate(opened, frame, name, mpp=mpp, replace_old=replace, source=file.source)
    _tell_annotation(made, notes, as_json=json_)


def _with_lake_names(lake: "Lake", file: "AnnotationFile") -> tuple[Any, list[str]]:
    """Return the table with the lake's names of slides, and notes on slides that do not match."""
    import polars as pl

    from downstream.cohorts.slide_names import match_slides, told

    notes = [*file.notes]
    if "slide_id" not in file.frame.columns:
        return file.frame, notes
    lake_names = lake.slides().select("slide_id").collect()["slide_id"]
    match = match_slides(file.frame["slide_id"].drop_nulls().unique(), lake_names)
    names = pl.col("slide_id").replace(dict(match.found))
    return file.frame.with_columns(names), [*notes, *told(match)]


def _tcga(lake: "Lake", *, replace: bool) -> "PatientsSet":
    from featurestore.annotations import set_patients, tcga_patients

    return set_patients(lake, tcga_patients(lake), replace_old=replace)


def _tell_patients(done: "PatientsSet", *, as_json: bool, notes: list[str] | None = None) -> None:
    from featurestore.messages import listing

    value = asdict(done)
    value["notes"] = [*(notes or []), *done.notes]
    lines = [*value["notes"]]
    if done.unmet:
        lines.append(f"not in the lake: {listing(done.unmet)}")
    lines.append(
        f"patients of {done.set} slides set, {done.same} were so already; version {done.version}"
    )
    tell(value, as_json=as_json, text="\n".join(lines))


def _tell_annotation(made: "Made", notes: list[str], *, as_json: bool) -> None:
    from featurestore.messages import listing

    annotation = made.annotation
    value = {**annotation.as_dict(), "version": made.version, "met": made.met, "unmet": made.unmet}
    value["notes"] = [*notes, *made.notes]
    lines = [*value["notes"]]
    if made.unmet:
        kept = "left out" if annotation.level == "tile" else "kept for later"
        lines.append(
            f"{len(made.unmet)} rows meet nothing in the lake, {kept}: {listing(made.unmet)}"
        )
    columns = ", ".join(
        annotation.columns.values() if annotation.level == "tile" else annotation.columns
    )
    where = " at " + ", ".join(f"{mpp} mpp" for mpp in annotation.mpps) if annotation.mpps else ""
    lines.append(
        f"'{annotation.name}' is an annotation of {annotation.level}s{where}: {made.met:,} rows, "
        f"columns {columns}; version {made.version}"
    )
    tell(value, as_json=as_json, text="\n".join(lines))


@app.command("drop")
def drop_command(
    lake: LakeArg,
    slide: Annotated[
        list[str] | None, typer.Option(help="slide_id of a slide; repeat for several.")
    ] = None,
    teacher: Annotated[
        list[str] | None, typer.Option(help="Name of a teacher; repeat for several.")
    ] = None,
    annotation: Annotated[
        list[str] | None, typer.Option(help="Name of an annotation; repeat for several.")
    ] = None,
    json_: JsonOpt = False,
) -> None:
    """Take slides, teachers or annotations out of a lake, in one commit.

    Earlier versions keep them (--at) until `slidelake vacuum`. A dropped slide can be ingested
    again, as a new one.

    Example: slidelake drop my-lake --slide P003-1
    """
    from featurestore import open_lake
    from featurestore.edits import drop
    from featurestore.messages import listing

    chosen = {"slide": slide, "teacher": teacher, "annotation": annotation}
    requests = [(kind, names) for kind, names in chosen.items() if names]
    if len(requests) != 1:
        msg = "give one of --slide, --teacher and --annotation; each may be repeated"
        raise typer.BadParameter(msg)
    [(kind, names)] = requests
    done = drop(open_lake(lake), kind, names)  # type: ignore[arg-type]
    listed = f"{kind} {listing(done.names)}"
    text = f"{listed}: dropped before, nothing to do"
    if done.done:
        text = f"{listed}: dropped in version {done.version}; --at {done.before} still reads it"
    _tell_edit(done, text, as_json=json_)


@app.command("rename")
def rename_command(
    lake: LakeArg,
    old: Annotated[str, typer.Argument(help="A slide, a teacher or an annotation.")],
    new: Annotated[str, typer.Argument(help="The name that it is to have.")],
    what: Annotated[
        Literal["slide", "teacher", "annotation"] | None,
        typer.Option(help="slide, teacher or annotation, where several have this name."),
    ] = None,
    json_: JsonOpt = False,
) -> None:
    """Give a slide, a teacher or an annotation another name, in one commit.

    Nothing else of it changes: a teacher keeps its identity, a slide its number. Tars keep the
    name that a slide had when it was cut in their .json members.

    Example: slidelake rename my-lake P003-1 P003-A
    """
    from featurestore import open_lake
    from featurestore.edits import rename

    done = rename(open_lake(lake), old, new, what=what)
    text = f"{done.what} '{new}' is there and no '{old}': renamed before, nothing to do"
    if done.done:
        text = (
            f"{done.what} '{old}' is '{new}' from version {done.version} on; --at {done.before} "
            "has the old name"
        )
    _tell_edit(done, text, as_json=json_)


def _tell_edit(done: "Edited", text: str, *, as_json: bool) -> None:
    lines = [f"named in {folder}, which stays as it is" for folder in done.named_in]
    tell(asdict(done), as_json=as_json, text="\n".join([*lines, text]))
