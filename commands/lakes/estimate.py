"""`slidelake estimate`: what many slides would take: tiles, bytes, requests, hours, money."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.progress_text import counted
from commands.options.dataclass_options import command
from commands.options.path_kind import PathKind
from commands.options.printing import print_answer
from commands.options.shared_options import JsonOpt, MppsOpt, TeachersOpt

if TYPE_CHECKING:
    from ingest.estimate.estimating import Estimate

app = typer.Typer()


@dataclass(frozen=True, kw_only=True)
class EstimateOptions:
    """Options of `slidelake estimate`.

    Attributes:
        slides: Number of slides to estimate; those of the input if not given.
        gpu: GPU that hours are of, as the table of rates names it.
        rates: TOML file with rates of your own; its entries replace those of
            ingest/estimate/rates.toml.
        prices: TOML file with your prices, in the form of ingest/estimate/prices.toml.
    """

    source: Annotated[
        str,
        PathKind.SLIDES,
        typer.Argument(
            metavar="LAKE|MANIFEST|FOLDER",
            help="A lake with some slides, whose tiles and runs are gone by; or slides, a few of "
            "which are opened.",
        ),
    ]
    teachers: TeachersOpt = ()
    slides: Annotated[int | None, typer.Option("--slides", min=1)] = None
    mpps: MppsOpt = ()
    gpu: str = "a100"
    rates: Annotated[str | None, PathKind.FILES, typer.Option(metavar="FILE")] = None
    prices: Annotated[str | None, PathKind.FILES, typer.Option(metavar="FILE")] = None
    json: JsonOpt = False


@command(app, "estimate")
def estimate_command(options: EstimateOptions) -> None:
    """Estimate what many slides would take: tiles, bytes, requests, GPU-hours and their price.

    Example: slidelake estimate my-lake --teacher uni2_h --teacher virchow2 --slides 300000

    It goes by a lake that has some of the slides, and by its own runs of teachers; or by slides, a
    dozen of which are opened (3 in a bucket). Each number is a span, and what it rests on is
    printed. Nothing is written.
    """
    from ingest.estimate.estimate_lake import estimate

    whole = estimate(
        options.source,
        options.teachers,
        slides=options.slides,
        mpps=options.mpps,
        gpu=options.gpu,
        rates=options.rates,
        prices=options.prices,
    )
    print_answer(whole.to_json(), as_json=options.json, text="\n".join(estimate_lines(whole)))


def estimate_lines(whole: "Estimate") -> list[str]:
    """Return an estimate as lines: amounts, then each teacher, then money, then assumptions."""
    rows = [(f"tiles at {mpp:g} mpp", tiles.text()) for mpp, tiles in whole.tiles.items()]
    rows += [
        ("bytes of tiles", whole.tile_bytes.bytes_text()),
        ("bytes of features", whole.feature_bytes.bytes_text()),
        ("bytes of tables", whole.index_bytes.bytes_text()),
        ("objects", whole.objects.text()),
        ("requests", f"{whole.writes.text()} that write, {whole.reads.text()} that read"),
    ]
    if whole.cut_core_hours is not None:
        rows.append(("ingest", whole.cut_core_hours.text("core-hours")))
    for need in whole.teachers:
        hours = []
        if need.gpu_hours is not None:
            hours.append(need.gpu_hours.text(f"hours of one {whole.gpu}"))
        if need.core_hours is not None:
            hours.append(need.core_hours.text("core-hours without a GPU"))
        rows.append((need.teacher, f"{', or '.join(hours)}; {need.column_bytes.bytes_text()}"))
        rows.append(("", f"by {need.why}"))
    for name, price in whole.prices.items():
        goods = "storage, a month" if name == "storage_month" else name
        rows.append((f"price of {goods}", price.text(whole.currency)))
    width = max(len(name) for name, _ in rows) + 2
    return [
        f"{counted(whole.slides, 'slide')}, by {whole.source}",
        *(f"{name:{width}}{text}" for name, text in rows),
        "assumed:",
        *(f"- {text}" for text in whole.assumptions),
    ]
