"""`slidelake stats`: statistics of teachers' features."""

from dataclasses import dataclass
from typing import Annotated

import typer

from cluster.progress_text import counted
from commands.options.dataclass_options import command
from commands.options.printing import print_answer
from commands.options.shared_options import (
    AddressOpt,
    AtOpt,
    JsonOpt,
    LakeArg,
    MppsOpt,
    QuietOpt,
    SeedOpt,
    TeachersOpt,
)

app = typer.Typer()


@dataclass(frozen=True, kw_only=True)
class StatsOptions:
    """Options of `slidelake stats`.

    Attributes:
        holdout: Share of patients left out.
        tiles: Tiles of a sample at each mpp, spread evenly over all slides; all tiles if not given.
        cpus_per_worker: Cores that each task on a cluster reserves; 1 if not given.
    """

    lake: LakeArg
    teachers: TeachersOpt
    mpps: MppsOpt = ()
    holdout: float = 0.25
    tiles: Annotated[int | None, typer.Option(min=2)] = None
    seed: SeedOpt = 0
    at: AtOpt = None
    cpus_per_worker: float | None = None
    address: AddressOpt = None
    quiet: QuietOpt = False
    json: JsonOpt = False


@command(app, "stats")
def stats_command(options: StatsOptions) -> None:
    """Fit mean, covariance and PHI-S rotation of teachers' features, without held-out patients.

    On a cluster (--address, RAY_ADDRESS) its workers read the features. A fit that was stopped goes
    on with the same command.

    Example: slidelake stats my-lake --teacher efficientnet_lite0 --mpp 0.5
    """
    from distill.targets.missing_stats import stats

    answer = stats(
        options.lake,
        options.teachers,
        mpps=options.mpps or None,
        holdout=options.holdout,
        seed=options.seed,
        version=options.at,
        tiles=options.tiles,
        address=options.address,
        cpus_per_worker=options.cpus_per_worker,
    )
    lines = [
        f"{fitted['teacher']} at {fitted['mpp']} mpp: {counted(fitted['rows'], 'tile')} "
        f"{'sampled from' if 'sample' in fitted else 'of'} "
        f"{counted(fitted['slides'], 'slide')}, lake version {fitted['lake_version']}, "
        f"{'fitted' if fitted['new'] else 'kept'}: {fitted['path']}"
        for fitted in answer["sets"]
    ]
    print_answer(answer, as_json=options.json, text="\n".join(lines))
