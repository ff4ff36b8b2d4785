"""`slidelake annotate`: users' own columns of tiles, slides and patients."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.progress_text import counted
from commands.options.dataclass_options import command
from commands.options.path_kind import PathKind
from commands.options.printing import print_answer
from commands.options.shared_options import DistinctIdsOpt, JsonOpt, LakeArg

if TYPE_CHECKING:
    from featurestore import Lake
    from featurestore.annotations import Annotated as AnnotationResult
    from featurestore.annotations import AnnotationFile, PatientsSet

app = typer.Typer()


@dataclass(frozen=True, kw_only=True)
class AnnotateOptions:
    """Options of `slidelake annotate`.

    Attributes:
        table: CSV, TSV, XLSX or Parquet with tile_id; or slide_id, x and y; or slide_id; or
            patient_id; and columns of your own.
        name: Name of the annotation; 'patients' writes patient_id into the rows of the slides.
        mpp: The mpp of the tiles at x and y, where the lake has several.
        replace: Replace the annotation of this name.
        tcga_patients: Read patients off the slides' TCGA barcodes.
    """

    lake: LakeArg
    table: Annotated[str | None, typer.Argument(), PathKind.FILES] = None
    name: str | None = None
    mpp: float | None = None
    replace: Annotated[bool, typer.Option("--replace")] = False
    tcga_patients: Annotated[bool, typer.Option("--tcga-patients")] = False
    distinct_ids: DistinctIdsOpt = False
    json: JsonOpt = False


@command(app, "annotate", without_pandas=True)
def annotate_command(options: AnnotateOptions) -> None:
    """Add your own columns of tiles, slides or patients to a lake.

    They are then in queries, in `extract --where`, in exports, and `--labels lake:NAME` reads them.
    Values of x and y are level-0 pixels anywhere within a tile.

    Example: slidelake annotate my-lake regions.csv --name region --mpp 0.5
    """
    from featurestore import open_lake

    lake = open_lake(options.lake)
    if options.tcga_patients:
        _annotate_tcga_patients(lake, options)
        return
    if options.table is None or options.name is None:
        msg = "give a table and --name NAME, or --tcga-patients"
        raise typer.BadParameter(msg)
    from featurestore.annotations import annotate, read_annotation, set_patients
    from featurestore.tables import PATIENTS

    file = read_annotation(options.table, distinct_ids=options.distinct_ids)
    frame, notes = _with_lake_names(lake, file)
    if not options.distinct_ids:
        _refuse_near_ids(lake, frame)
    if options.name == PATIENTS:
        patients = set_patients(lake, frame, replace_old=options.replace)
        _print_patients(patients, as_json=options.json, notes=notes)
        return
    annotated = annotate(
        lake,
        frame,
        options.name,
        mpp=options.mpp,
        replace_old=options.replace,
        source=file.source,
    )
    _print_annotation(annotated, notes, as_json=options.json)


def _annotate_tcga_patients(lake: "Lake", options: AnnotateOptions) -> None:
    if options.table is not None:
        msg = "--tcga-patients reads the slides' names: leave out the table"
        raise typer.BadParameter(msg)
    from featurestore.annotations import set_patients, tcga_patients

    patients = set_patients(lake, tcga_patients(lake), replace_old=options.replace)
    _print_patients(patients, as_json=options.json)


def _with_lake_names(lake: "Lake", file: "AnnotationFile") -> tuple[Any, list[str]]:
    """Return the table with the lake's names of slides, and notes on slides that do not match."""
    import polars as pl

    from downstream.cohorts.slide_names import match_notes, match_slides

    notes = [*file.notes]
    if "slide_id" not in file.frame.columns:
        return file.frame, notes
    lake_names = lake.slides().select("slide_id").collect()["slide_id"]
    match = match_slides(file.frame["slide_id"].drop_nulls().unique(), lake_names)
    names = pl.col("slide_id").replace(dict(match.slide_of))
    return file.frame.with_columns(names), [*notes, *match_notes(match)]


def _refuse_near_ids(lake: "Lake", frame: Any) -> None:  # noqa: ANN401 - Polars is slow to import
    """Refuse slides and patients that differ from the lake's by case, blanks or Unicode form only.

    Raises:
        AnnotationError: the first pairs.
    """
    from featurestore.tables.annotation import AnnotationError
    from featurestore.usertables import refuse_near_others, tables_raise

    slides = lake.slides().select("slide_id", "patient_id").collect()
    with tables_raise(AnnotationError):
        if "slide_id" in frame.columns:
            names = frame["slide_id"].drop_nulls().unique()
            refuse_near_others(names, slides["slide_id"], "slides", "the lake")
            slides = slides.filter(~slides["slide_id"].is_in(names.to_list()))
        if "patient_id" in frame.columns:
            patients = slides["patient_id"].drop_nulls().unique()
            table_patients = frame["patient_id"].drop_nulls().unique()
            refuse_near_others(table_patients, patients, "patients", "the lake")


def _print_patients(
    patients: "PatientsSet", *, as_json: bool, notes: list[str] | None = None
) -> None:
    from featurestore import listing

    answer = asdict(patients)
    answer["notes"] = [*(notes or []), *patients.notes]
    lines = [*answer["notes"]]
    if patients.unmet:
        lines.append(f"not in the lake: {listing(patients.unmet)}")
    lines.append(
        f"patients of {counted(patients.set, 'slide')} set, {patients.same} were so already; "
        f"version {patients.version}"
    )
    print_answer(answer, as_json=as_json, text="\n".join(lines))


def _print_annotation(added: "AnnotationResult", notes: list[str], *, as_json: bool) -> None:
    from featurestore import listing

    annotation = added.annotation
    answer = {
        **annotation.as_dict(),
        "version": added.version,
        "met": added.met,
        "unmet": added.unmet,
        "notes": [*notes, *added.notes],
    }
    lines = [*notes, *added.notes]
    if added.unmet:
        kept = "left out" if annotation.level == "tile" else "kept for later"
        lines.append(
            f"{counted(len(added.unmet), 'row', 'meet')} nothing in the lake, {kept}: "
            f"{listing(added.unmet)}"
        )
    columns = ", ".join(
        annotation.columns.values() if annotation.level == "tile" else annotation.columns
    )
    place = " at " + ", ".join(f"{mpp} mpp" for mpp in annotation.mpps) if annotation.mpps else ""
    lines.append(
        f"'{annotation.name}' is an annotation of {annotation.level}s{place}: "
        f"{counted(added.met, 'row')}, "
        f"columns {columns}; version {added.version}"
    )
    print_answer(answer, as_json=as_json, text="\n".join(lines))
