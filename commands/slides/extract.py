"""`slidelake extract`: tiles to columns of features."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cluster.progress_text import counted
from commands.options.dataclass_options import command
from commands.options.failure_report import OnFailureOpt
from commands.options.printing import freed_lines, print_answer
from commands.options.shared_options import (
    AddressOpt,
    AutoVacuumOpt,
    JsonOpt,
    LakeArg,
    MppsOpt,
    QuietOpt,
    TeachersOpt,
    WeightsOpt,
)
from commands.options.worker_options import WorkerOptions

if TYPE_CHECKING:
    from ingest.teachers.ray_extract import ExtractResult

app = typer.Typer()


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The way in which teachers are run, and the tiles that they are run on.

    Attributes:
        precision: Precision of new columns: float32 on CPUs and the card's own on GPUs if not
            given. Existing columns keep theirs.
        engine: Engine of new columns: ONNX Runtime for convolutional networks on CPUs if not
            given and there are 5,000 tiles or more; else torch.
        where: Only tiles for which this condition holds, as 'tissue > 0.5 AND pen < 0.05'; the
            features of the others are NaN, and bags leave them out.
        share: Only this share of the tiles, drawn by their keys.
        fov: Field of view of new columns. If not given, a teacher gets the row's tile where that
            is about its field (px at mpp, as `slidelake teachers` shows), else its field from tiles
            of a finer mpp or as a crop, and is refused where there is none. exact: its field to the
            pixel. nearest: the row's tile where it would be refused.
    """

    PANEL = "Teachers"

    weights: WeightsOpt = None
    precision: Literal["float32", "float16", "bfloat16"] | None = None
    engine: Literal["torch", "onnxruntime"] | None = None
    where: Annotated[str | None, typer.Option(metavar="SQL")] = None
    share: float | None = None
    fov: Literal["exact", "nearest"] | None = None


@dataclass(frozen=True, kw_only=True)
class ExtractOptions:
    """Options of `slidelake extract`."""

    lake: LakeArg
    teachers: TeachersOpt
    mpps: MppsOpt = ()
    run: RunOptions
    workers: WorkerOptions
    auto_vacuum: AutoVacuumOpt = False
    address: AddressOpt = None
    on_failure: OnFailureOpt = None
    quiet: QuietOpt = False
    json: JsonOpt = False


@command(app, "extract")
def extract_command(options: ExtractOptions) -> None:
    """Run teachers on every tile that lacks their features. Each shard is read and decoded once.

    Examples: slidelake extract my-lake --teacher uni2_h --teacher virchow2:cls --weights ~/weights
    or: slidelake extract my-lake --teacher my_encoder.py

    A teacher is NAME or NAME:POOLING (cls, mean, cls+mean, own, patches, patches25), with @L12 for
    the tokens after block 12, with @S1 for a stain variant of each tile, with @macenko or @reinhard
    for tiles whose stains are normalised; `slidelake teachers` lists the names.
    """
    from distill.students.feature_students import extract

    extracted = extract(
        options.lake,
        options.teachers,
        mpps=options.mpps or None,
        weights=options.run.weights,
        precision=options.run.precision,
        engine=options.run.engine,
        where=options.run.where,
        share=options.run.share,
        fov=options.run.fov,
        address=options.address,
        workers=options.workers.settings(),
        auto_vacuum=options.auto_vacuum,
    )
    print_answer(
        asdict(extracted),
        as_json=options.json,
        errors=failed_fragments(extracted),
        text="\n".join([*extract_lines(extracted), *freed_lines(extracted.freed)]),
        summary=extract_summary(extracted),
    )
    raise typer.Exit(1 if extracted.failed or extracted.did_nothing else 0)


def failed_fragments(extracted: "ExtractResult") -> list[str]:
    """Return a line for each fragment that failed, with its slides."""
    failures = extracted.failed
    return [f"slides {failure['slide']} failed: {failure['reason']}" for failure in failures]


def extract_lines(extracted: "ExtractResult") -> list[str]:
    """Return a line for each column, and on slides that have no tiles to run on."""
    lines = [_column_line(name, counts) for name, counts in extracted.teachers.items()]
    lines += extracted.notes
    lines += [
        f"{name}: {counted(int(counts['filled']), 'tile')} with background in place of tiles that "
        f"were not kept (column {name}@filled), {counts['left_out']:,} left out for too much of it"
        for name, counts in extracted.teachers.items()
        if counts.get("filled")
    ]
    if extracted.pending:
        lines.append(
            f"{counted(extracted.pending, 'slide')} pending: slidelake ingest goes on with them"
        )
    if not extracted.ready:
        lines.append("no slide is ready, so there is no tile to run on")
    return lines


def _column_line(name: str, counts: Mapping[str, float]) -> str:
    if not counts["tiles"]:
        return f"{name}: 0 tiles to run on; `slidelake info` shows what is there"
    return (
        f"{name}: {counts['tiles']:,.0f} tiles, {counts.get('tiles_per_s', 0):,.1f} tiles/s, "
        f"{counts['seconds']:.0f} s of computing, {counts['stall']:.1%} waiting for data"
    )


def extract_summary(extracted: "ExtractResult") -> str:
    """Return the outcome of an extract in one line."""
    tiles = ", ".join(
        f"{name}: {counts['tiles']:,.0f} tiles" for name, counts in extracted.teachers.items()
    )
    failed = f"; {counted(len(extracted.failed), 'fragment')} failed" if extracted.failed else ""
    return tiles + failed if extracted.ready else extract_lines(extracted)[-1]
