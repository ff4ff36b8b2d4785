"""`slidelake ingest`: slides to tiles."""

import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from commands.options.dataclass_options import command
from commands.options.printing import freed_lines, print_answer
from commands.options.shared_options import (
    AddressOpt,
    AutoVacuumOpt,
    DistinctIdsOpt,
    JsonOpt,
    LakeArg,
)

if TYPE_CHECKING:
    from featurestore import LakeConfig
    from ingest.ray_ingest import IngestResult
    from ingest.select.named_slides import IngestOptions

app = typer.Typer()


@dataclass(frozen=True, kw_only=True)
class GridOptions:
    """The grid of tiles of a new lake; an existing lake keeps its own.

    Attributes:
        mpps: Microns per pixel of the tiles; repeat, as multiples of the finest. 0.5 for a new
            lake.
        tile_px: Side of a tile in pixels, 256 for a new lake; or native: the slides' own JPEG
            tiles are copied as they are, without loss and about 5 times as fast.
        stride_px: Pixels from one tile to the next; the side of a tile for a new lake. Less makes
            tiles overlap.
        mix_codecs: With native: encode slides without such tiles; else they fail.
        tissue_min: Least share of tissue in a tile; 0.1 for a new lake.
    """

    mpps: Annotated[tuple[float, ...], typer.Option("--mpp")] = ()
    tile_px: Annotated[str | None, typer.Option(metavar="PX|native")] = None
    stride_px: Annotated[int | None, typer.Option("--stride", metavar="PX")] = None
    mix_codecs: bool | None = None
    tissue_min: float | None = None


@dataclass(frozen=True, kw_only=True)
class ReadingOptions:
    """The reading of a slide, and the method that finds its tissue.

    Attributes:
        mpp_override: True mpp of slides without an mpp in the manifest.
        allow_anisotropic: Take slides whose mpps across and down differ by more than 2 %, at
            their mean; else they fail.
        icc: Convert colours to sRGB by the ICC profile that the scanner put in.
        masks: Folder with the tissue of each slide as SLIDE_ID.geojson (QuPath) or SLIDE_ID.png;
            in slides without one tissue is found as usual.
        tissue: Method that finds tissue: standard (of new slides, if not given), another of
            docs/tissue.md, as cells (cytology) or none (every tile is kept; an unknown one lists
            all), or a file with a segmenter of your own.
        pen_veto: Leave out tiles under pen, as standard does; --no-pen-veto for blue and green
            stains.
    """

    mpp_override: float | None = None
    allow_anisotropic: bool | None = None
    icc: bool | None = None
    masks: Annotated[str | None, typer.Option(metavar="DIR")] = None
    tissue: Annotated[str | None, typer.Option(metavar="METHOD|FILE.py")] = None
    pen_veto: Annotated[bool | None, typer.Option("--pen-veto/--no-pen-veto")] = None


@dataclass(frozen=True, kw_only=True)
class SelectionOptions:
    """The selection of slides for a run, among the slides of the arguments.

    Attributes:
        only: Take this slide; repeat.
        limit: Greatest number of slides to cut in this run.
        retry_failed: Retry slides that failed before.
        replace: Take another file for a known slide_id. A file that changed in place (scanned
            again) is taken anyway; the old rows stay readable at the versions before.
        slide_timeout: Minutes, plus a second per MB, after which a slide fails.
    """

    only: Annotated[tuple[str, ...], typer.Option(metavar="SLIDE_ID")] = ()
    limit: Annotated[int | None, typer.Option(min=1)] = None
    retry_failed: bool = False
    replace: bool = False
    slide_timeout: float = 10.0
    distinct_ids: DistinctIdsOpt = False


@dataclass(frozen=True, kw_only=True)
class IngestCommandOptions:
    """Options of `slidelake ingest`.

    Attributes:
        slides: Files, folders, globs, URLs, or a manifest (CSV, TSV, XLSX, Parquet) with a column
            uri; its paths are relative to it. FILE.tif#2 is the second image of a TIFF; a folder
            of .dcm is a slide a series.
        dry_run: Only print what would be done: slides, tiles, bytes, time. Write nothing.
    """

    lake: LakeArg
    slides: Annotated[tuple[str, ...], typer.Argument(metavar="SLIDES...")]
    grid: GridOptions
    reading: ReadingOptions
    selection: SelectionOptions
    dry_run: bool = False
    auto_vacuum: AutoVacuumOpt = False
    address: AddressOpt = None
    json: JsonOpt = False


@command(app, "ingest")
def ingest_command(options: IngestCommandOptions) -> None:
    """Cut slides into tiles at one or several magnifications.

    Example: slidelake ingest my-lake slides/ --mpp 0.5 --mpp 2.0

    Slides that fail are listed with their reason, and the others go on; run it again to go on
    after a kill. Settings that differ from those of an earlier run are applied: patients and other
    facts are updated, a slide with another mpp, mask or tissue method is cut again; settings that
    are not given stay. LAKE/ingest.html shows every slide with its tissue and tiles.
    """
    from ingest.ray_ingest import ingest

    slides, choices = list(options.slides), _ingest_choices(options)
    config = _lake_config(options, choices)
    if options.dry_run:
        _dry_run(options, config, choices)
    ingested = ingest(
        options.lake,
        slides,
        config,
        slide_timeout_s=60 * options.selection.slide_timeout,
        address=options.address,
        auto_vacuum=options.auto_vacuum,
        **choices,
    )
    print_answer(asdict(ingested), as_json=options.json, text="\n".join(_ingest_lines(ingested)))
    raise typer.Exit(1 if ingested.failed else 0)


def _ingest_choices(options: IngestCommandOptions) -> "IngestOptions":
    reading, selection = options.reading, options.selection
    return {
        "mpp_override": reading.mpp_override,
        "retry_failed": selection.retry_failed,
        "replace": selection.replace,
        "only": list(selection.only),
        "limit": selection.limit,
        "masks": reading.masks,
        "tissue": reading.tissue,
        "pen_veto": reading.pen_veto,
        "allow_anisotropic": reading.allow_anisotropic,
        "icc": reading.icc,
        "distinct_ids": selection.distinct_ids,
    }


def _lake_config(options: IngestCommandOptions, choices: "IngestOptions") -> "LakeConfig":
    from ingest.select.new_lake_settings import settings

    grid = options.grid
    return settings(
        options.lake,
        list(options.slides),
        choices,
        tile_px=grid.tile_px,
        stride_px=grid.stride_px,
        mpps=grid.mpps or None,
        tissue_min=grid.tissue_min,
        mix_codecs=grid.mix_codecs,
    )


def _ingest_lines(ingested: "IngestResult") -> list[str]:
    lines = [f"{failure['slide']} failed: {failure['reason']}" for failure in ingested.failed]
    lines += [f"{slide} was scanned again: its rows are replaced" for slide in ingested.replaced]
    lines += [f"{slide} was cut again: {why}" for slide, why in ingested.again.items()]
    lines += ingested.notes
    if again := len(ingested.again) + len(ingested.replaced):
        lines.append(f"{again} slides have new tiles: slidelake extract makes their features anew")
    tiles = ", ".join(f"{count:,} tiles at {name} mpp" for name, count in ingested.tiles.items())
    lines.append(
        f"{ingested.ready} slides ready, {len(ingested.failed)} failed; the lake has {tiles}"
    )
    lines.append(f"every slide: {ingested.sheet}")
    return lines + freed_lines(ingested.freed)


def _dry_run(options: IngestCommandOptions, config: "LakeConfig", choices: "IngestOptions") -> None:
    from ingest.pages.page_templates import duration, size
    from ingest.select.slides_to_cut import dry_run

    cores = os.cpu_count() or 1
    plan = dry_run(options.lake, list(options.slides), config, choices, cores=cores)
    lines = [f"{failure['slide']} would fail: {failure['reason']}" for failure in plan.failed]
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
    print_answer(asdict(plan), as_json=options.json, text="\n".join(lines))
    raise typer.Exit(1 if plan.failed else 0)
