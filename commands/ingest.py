"""Commands that bring slides and features in."""

import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from commands.options import (
    AddressOpt,
    AutoVacuumOpt,
    DistinctIdsOpt,
    JsonOpt,
    LakeArg,
    MppsOpt,
    TeachersOpt,
    WeightsOpt,
    tell,
)

if TYPE_CHECKING:
    from featurestore import LakeConfig, Vacuumed
    from ingest.select.named_slides import IngestOptions

app = typer.Typer()


@app.command("ingest")
def ingest_command(
    lake: LakeArg,
    slides: Annotated[
        list[str],
        typer.Argument(
            metavar="SLIDES...",
            help="Files, folders, globs, URLs, or a manifest (CSV, TSV, XLSX, Parquet) with a "
            "column uri; its paths are relative to it. FILE.tif#2 is the second image of a TIFF; "
            "a folder of .dcm is a slide a series.",
        ),
    ],
    mpp: Annotated[
        list[float] | None,
        typer.Option(
            help="Microns per pixel of the tiles; repeat, as multiples of the finest. "
            "0.5 for a new lake."
        ),
    ] = None,
    tile_px: Annotated[
        str | None,
        typer.Option(
            metavar="PX|native",
            help="Side of a tile in pixels, 256 for a new lake; or native: the slides' own JPEG "
            "tiles are copied as they are, without loss and about 5 times as fast.",
        ),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(
            metavar="PX",
            help="Pixels from one tile to the next; the side of a tile for a new lake. Less makes "
            "tiles overlap.",
        ),
    ] = None,
    mix_codecs: Annotated[
        bool | None,
        typer.Option(help="With native: encode slides without such tiles; else they fail."),
    ] = None,
    tissue_min: Annotated[
        float | None, typer.Option(help="Least share of tissue in a tile; 0.1 for a new lake.")
    ] = None,
    mpp_override: Annotated[
        float | None, typer.Option(help="True mpp of slides whose manifest gives none.")
    ] = None,
    allow_anisotropic: Annotated[
        bool | None,
        typer.Option(
            help="Take slides whose mpps across and down differ by more than 2 %, at their mean; "
            "else they fail.",
        ),
    ] = None,
    icc: Annotated[
        bool | None,
        typer.Option(help="Convert colours to sRGB by the ICC profile that the scanner put in."),
    ] = None,
    masks: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="What is tissue, as SLIDE_ID.geojson (QuPath) or SLIDE_ID.png; slides without "
            "one are looked at as usual.",
        ),
    ] = None,
    tissue: Annotated[
        str | None,
        typer.Option(
            metavar="METHOD|FILE.py",
            help="How tissue is found: standard (of new slides, if not given), fixed, otsu, cells "
            "(cytology), none (every tile is kept), or a segmenter of your own.",
        ),
    ] = None,
    pen_veto: Annotated[
        bool | None,
        typer.Option(
            "--pen-veto/--no-pen-veto",
            help="Leave out tiles under pen, as standard does; --no-pen-veto for blue and green "
            "stains.",
        ),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="SLIDE_ID", help="Take this slide; repeat.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Cut at most so many slides in this run.")
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option(help="Take slides again that failed before.")
    ] = False,
    replace: Annotated[
        bool,
        typer.Option(
            help="Take another file for a known slide_id. A file that changed in place (scanned "
            "again) is taken anyway; the old rows stay readable at the versions before."
        ),
    ] = False,
    slide_timeout: Annotated[
        float, typer.Option(help="Minutes after which a slide is given up, and a second per MB.")
    ] = 10.0,
    distinct_ids: DistinctIdsOpt = False,
    dry_run: Annotated[
        bool,
        typer.Option(help="Say what would be done: slides, tiles, bytes, time. Write nothing."),
    ] = False,
    auto_vacuum: AutoVacuumOpt = False,
    address: AddressOpt = None,
    json_: JsonOpt = False,
) -> None:
    """Cut slides into tiles at one or several magnifications.

    Example: slidelake ingest my-lake slides/ --mpp 0.5 --mpp 2.0

    Slides that fail are listed with their reason, and the others go on; run it again to go on
    after a kill. What another run gives differently is done: patients and other facts are updated,
    a slide with another mpp, mask or way to find tissue is cut again; what is not given stays.
    LAKE/ingest.html shows every slide with its tissue and tiles.
    """
    from ingest.select.new_lake_settings import settings

    how: IngestOptions = {
        "mpp_override": mpp_override,
        "retry_failed": retry_failed,
        "replace": replace,
        "only": only or [],
        "limit": limit,
        "masks": masks,
        "tissue": tissue,
        "pen_veto": pen_veto,
        "allow_anisotropic": allow_anisotropic,
        "icc": icc,
        "distinct_ids": distinct_ids,
    }
    config = settings(
        lake,
        slides,
        how,
        tile_px=tile_px,
        stride_px=stride,
        mpps=mpp,
        tissue_min=tissue_min,
        mix_codecs=mix_codecs,
    )
    if dry_run:
        _dry_run(lake, slides, config, how, as_json=json_)
    from ingest.ray_ingest import ingest

    result = ingest(
        lake,
        slides,
        config,
        slide_timeout_s=60 * slide_timeout,
        address=address,
        auto_vacuum=auto_vacuum,
        **how,
    )
    lines = [f"{f['slide']} failed: {f['reason']}" for f in result.failed]
    lines += [f"{slide} was scanned again: its rows are replaced" for slide in result.replaced]
    lines += [f"{slide} was cut again: {why}" for slide, why in result.again.items()]
    lines += result.notes
    if again := len(result.again) + len(result.replaced):
        lines.append(f"{again} slides have new tiles: slidelake extract makes their features anew")
    tiles = ", ".join(f"{count:,} tiles at {name} mpp" for name, count in result.tiles.items())
    lines.append(f"{result.ready} slides ready, {len(result.failed)} failed; the lake has {tiles}")
    lines.append(f"every slide: {result.sheet}")
    lines += _freed_line(result.freed)
    tell(asdict(result), as_json=json_, text="\n".join(lines))
    raise typer.Exit(1 if result.failed else 0)


def _freed_line(freed: "Vacuumed | None") -> list[str]:
    if freed is None:
        return []
    return [f"freed {freed.versions:,} old versions, {freed.bytes / 1e6:,.1f} MB"]


def _dry_run(
    lake: str, slides: list[str], config: "LakeConfig", how: "IngestOptions", *, as_json: bool
) -> None:
    from ingest.pages.page_templates import duration, size
    from ingest.select.slides_to_cut import dry_run

    plan = dry_run(lake, slides, config, how, cores=os.cpu_count() or 1)
    lines = [f"{f['slide']} would fail: {f['reason']}" for f in plan.failed]
    lines += plan.notes
    if plan.slides:
        tiles = ", ".join(
            f"about {count:,} tiles at {name} mpp" for name, count in plan.tiles.items()
        )
        lines.append(f"{plan.slides} slides to cut ({plan.sampled} looked at): {tiles}")
        time = f"about {duration(plan.seconds)} on {plan.cores} cores"
        lines.append(f"{size(plan.bytes)} of shards; {time}; nothing was written")
    else:
        lines.append("no slides to cut; nothing was written")
    tell(asdict(plan), as_json=as_json, text="\n".join(lines))
    raise typer.Exit(1 if plan.failed else 0)


@app.command("extract")
def extract_command(
    lake: LakeArg,
    teacher: TeachersOpt,
    mpp: MppsOpt = None,
    weights: WeightsOpt = None,
    precision: Annotated[
        Literal["float32", "float16", "bfloat16"] | None,
        typer.Option(
            help="Of new columns: float32 on CPUs and the card's own on GPUs if not given; columns "
            "that are there go on in theirs."
        ),
    ] = None,
    engine: Annotated[
        Literal["torch", "onnxruntime"] | None,
        typer.Option(
            help="Of new columns: ONNX Runtime for convolutional networks on CPUs if not given and "
            "there are 5,000 tiles or more; else torch."
        ),
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(
            metavar="SQL",
            help="Only tiles for which this holds, as 'tissue > 0.5 AND pen < 0.05'; the features "
            "of the others are NaN, and bags leave them out.",
        ),
    ] = None,
    share: Annotated[
        float | None, typer.Option(help="Only this share of the tiles, drawn by their keys.")
    ] = None,
    auto_vacuum: AutoVacuumOpt = False,
    address: AddressOpt = None,
    json_: JsonOpt = False,
) -> None:
    """Run teachers on every tile that lacks their features. Each shard is read and decoded once.

    Examples: slidelake extract my-lake --teacher uni2_h --teacher virchow2:cls --weights ~/weights
    or: slidelake extract my-lake --teacher my_encoder.py

    A teacher is NAME or NAME:POOLING (cls, mean, cls+mean, own, patches, patches25), with @L12 for
    the tokens after block 12, with @S1 for a stain variant of each tile; `slidelake teachers` lists
    the names.
    """
    from distill.students.feature_students import extract

    result = extract(
        lake,
        teacher,
        mpps=mpp,
        weights=weights,
        precision=precision,
        engine=engine,
        where=where,
        share=share,
        address=address,
        auto_vacuum=auto_vacuum,
    )
    lines = [f"slides {f['slide']} failed: {f['reason']}" for f in result.failed]
    lines += [
        f"{name}: {counts['tiles']:,.0f} tiles, {counts.get('tiles_per_s', 0):,.1f} tiles/s, "
        f"{counts['seconds']:.0f} s of computing, {counts['stall']:.1%} waiting for data"
        for name, counts in result.teachers.items()
    ]
    if result.pending:
        lines.append(f"{result.pending} slides pending: slidelake ingest goes on with them")
    if not result.ready:
        lines.append("no slide is ready, so there is no tile to run on")
    lines += _freed_line(result.freed)
    tell(asdict(result), as_json=json_, text="\n".join(lines))
    raise typer.Exit(1 if result.failed or result.did_nothing else 0)


@app.command("teachers")
def teachers_command(
    lake: Annotated[
        str | None, typer.Argument(metavar="[LAKE]", help="Also list its students.")
    ] = None,
    weights: WeightsOpt = None,
    json_: JsonOpt = False,
) -> None:
    """Which teachers are known, and whether their weights are here."""
    from featurestore import open_lake
    from ingest.teachers.find_teacher import list_teachers

    rows = list_teachers(open_lake(lake).store if lake else None, folder=weights)
    lines = [
        f"{r['teacher']:20} {r['dim']:>5} dims  {r['mpp'] or '-':>5} mpp  "
        f"{_weights_are(r):8}"
        f"{', '.join(r['poolings']):16} {r['licence']}"
        for r in sorted(rows, key=lambda r: not r["available"])
    ]
    tell({"teachers": rows}, as_json=json_, text="\n".join(lines))


def _weights_are(row: dict[str, Any]) -> str:
    """Where a teacher's weights are, in a word."""
    if row["available"]:
        return "here"
    return "gated" if row["gated"] else "on hub" if row["downloads"] else "missing"
