"""Options that `slidelake ingest` and `slidelake build` share: the grid, reading, which slides."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.progress_text import counted
from commands.options.path_kind import PathKind
from commands.options.shared_options import DistinctIdsOpt

if TYPE_CHECKING:
    from featurestore import LakeConfig
    from ingest.ray_ingest import IngestResult
    from ingest.select.ingest_plan import IngestPlan
    from ingest.select.named_slides import IngestOptions

SlidesArg = Annotated[
    tuple[str, ...],
    typer.Argument(
        metavar="SLIDES...",
        help="Files, folders, globs, URLs, or a manifest (CSV, TSV, XLSX, Parquet) with a column "
        "uri; its paths are relative to it. FILE.tif#2 is the second image of a TIFF; a folder of "
        ".dcm is a slide a series.",
    ),
    PathKind.SLIDES,
]


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
        mix_codecs: Encode slides without such tiles, with native; else they fail.
        tissue_min: Least share of tissue in a tile; 0.1 for a new lake.
    """

    PANEL = "Tiles of a new lake"

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

    PANEL = "Reading and tissue"

    mpp_override: float | None = None
    allow_anisotropic: bool | None = None
    icc: bool | None = None
    masks: Annotated[str | None, typer.Option(metavar="DIR"), PathKind.FILES] = None
    tissue: Annotated[str | None, typer.Option(metavar="METHOD|FILE.py"), PathKind.PYTHON] = None
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

    PANEL = "Which slides"

    only: Annotated[tuple[str, ...], typer.Option(metavar="SLIDE_ID")] = ()
    limit: Annotated[int | None, typer.Option(min=1)] = None
    retry_failed: bool = False
    replace: bool = False
    slide_timeout: float = 10.0
    distinct_ids: DistinctIdsOpt = False


def ingest_choices(reading: ReadingOptions, selection: SelectionOptions) -> "IngestOptions":
    """Return the options as `ingest` takes them."""
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


def lake_config(
    lake: str, slides: Sequence[str], grid: GridOptions, choices: "IngestOptions"
) -> "LakeConfig":
    """Return the settings of the lake: its own, or those of a new lake."""
    from ingest.select.new_lake_settings import settings

    return settings(
        lake,
        list(slides),
        choices,
        tile_px=grid.tile_px,
        stride_px=grid.stride_px,
        mpps=grid.mpps or None,
        tissue_min=grid.tissue_min,
        mix_codecs=grid.mix_codecs,
    )


def failed_slides(ingested: "IngestResult") -> list[str]:
    """Return a line for each slide that failed."""
    return [f"{failure['slide']} failed: {failure['reason']}" for failure in ingested.failed]


def ingest_lines(ingested: "IngestResult") -> list[str]:
    """Return what else an ingest did, a line each."""
    lines = [f"{slide} was scanned again: its rows are replaced" for slide in ingested.replaced]
    lines += [f"{slide} was cut again: {why}" for slide, why in ingested.again.items()]
    return lines + ingested.notes


def ingest_summary(ingested: "IngestResult") -> str:
    """Return the outcome of an ingest in one line."""
    tiles = ", ".join(
        f"{counted(count, 'tile')} at {name} mpp" for name, count in ingested.tiles.items()
    )
    ready = counted(ingested.ready, "slide")
    return f"{ready} ready, {len(ingested.failed)} failed; the lake has {tiles}"


def plan_lines(plan: "IngestPlan") -> list[str]:
    """Return the plan of an ingest, a line each; the last says that nothing was written."""
    from ingest.pages.page_templates import duration, size

    lines = list(plan.notes)
    if not plan.slides:
        return [*lines, "no slides to cut; nothing was written"]
    tiles = ", ".join(
        f"about {counted(count, 'tile')} at {name} mpp" for name, count in plan.tiles.items()
    )
    time = f"about {duration(plan.seconds)} on {plan.cores} cores"
    lines.append(f"{counted(plan.slides, 'slide')} to cut ({plan.sampled} looked at): {tiles}")
    return [*lines, f"{size(plan.bytes)} of shards; {time}; nothing was written"]


def planned_failures(plan: "IngestPlan") -> list[str]:
    """Return a line for each slide that would fail."""
    return [f"{failure['slide']} would fail: {failure['reason']}" for failure in plan.failed]
