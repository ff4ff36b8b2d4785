"""`slidelake stats`: statistics of teachers' features."""

from dataclasses import dataclass

import typer

from cluster.progress_text import counted
from commands.options.dataclass_options import command
from commands.options.printing import print_answer
from commands.options.shared_options import (
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
    """

    lake: LakeArg
    teachers: TeachersOpt
    mpps: MppsOpt = ()
    holdout: float = 0.25
    seed: SeedOpt = 0
    at: AtOpt = None
    quiet: QuietOpt = False
    json: JsonOpt = False


@command(app, "stats")
def stats_command(options: StatsOptions) -> None:
    """Fit mean, covariance and PHI-S rotation of teachers' features, without held-out patients.

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
    )
    lines = [
        f"{fitted['teacher']} at {fitted['mpp']} mpp: {counted(fitted['rows'], 'tile')} of "
        f"{counted(fitted['slides'], 'slide')}, lake version {fitted['lake_version']}, "
        f"{'fitted' if fitted['new'] else 'kept'}: {fitted['path']}"
        for fitted in answer["sets"]
    ]
    print_answer(answer, as_json=options.json, text="\n".join(lines))
