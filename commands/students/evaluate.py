"""`slidelake evaluate`: students compared with their teachers."""

from dataclasses import dataclass
from typing import Annotated

import typer

from commands.options.completion import complete_student
from commands.options.dataclass_options import command
from commands.options.path_kind import PathKind
from commands.options.printing import print_answer
from commands.options.shared_options import (
    AddressOpt,
    AtOpt,
    DistinctIdsOpt,
    JsonOpt,
    LakeArg,
    MppsOpt,
    QuietOpt,
    SeedOpt,
)

app = typer.Typer()


@dataclass(frozen=True, kw_only=True)
class TileLabelOptions:
    """Labels of tiles, for probes and retrieval.

    Attributes:
        labels: Table of tiles' labels: slide_id, x, y and a column of labels.
        label_column: The column of labels, if there are several.
    """

    labels: Annotated[str | None, PathKind.FILES] = None
    label_column: str | None = None
    distinct_ids: DistinctIdsOpt = False


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Options of `slidelake evaluate`.

    Attributes:
        students: Name of a student; repeat for several. Seeds of one recipe are summarised
            together.
        single: A student of a single teacher to compare with; found if not given.
        tiles: Most tiles at each mpp, to fit on and held out.
        robust_tiles: Tiles that are perturbed.
        teacher_seconds: Most seconds to run each teacher for; 0: none is run.
        device: cpu or cuda; a GPU if there is one.
        threads: Threads of the networks on CPUs.
    """

    lake: LakeArg
    students: Annotated[tuple[str, ...], typer.Option("--student", autocompletion=complete_student)]
    labels: TileLabelOptions
    single: str | None = None
    mpps: MppsOpt = ()
    tiles: int = 2048
    robust_tiles: int = 256
    teacher_seconds: float = 300.0
    seed: SeedOpt = 0
    device: str | None = None
    threads: int | None = None
    at: AtOpt = None
    address: AddressOpt = None
    quiet: QuietOpt = False
    json: JsonOpt = False


@command(app, "evaluate")
def evaluate_command(options: EvaluateOptions) -> None:
    """Compare students with their teachers, PCA of them, and the same network undistilled.

    On held-out patients: fidelity by a linear read-out, CKA, neighbours; probes and retrieval on
    labels of tiles; robustness to stains and scanners; speed and what caching saved. The meaning of
    each number is in docs/evaluate.md. On a cluster (--address, RAY_ADDRESS) a worker does it.

    Example: slidelake evaluate my-lake --student small --student small-seed1 --student small-seed2
    """
    from distill.evaluate.evaluation_spec import EvaluationSpec
    from distill.evaluate.ray_evaluation import evaluate_there

    spec = EvaluationSpec(
        labels=options.labels.labels,
        label_column=options.labels.label_column,
        distinct_ids=options.labels.distinct_ids,
        single=options.single,
        mpps=options.mpps or None,
        tiles=options.tiles,
        robust_tiles=options.robust_tiles,
        teacher_seconds=options.teacher_seconds,
        seed=options.seed,
        device=options.device,
        threads=options.threads,
    )
    evaluation = evaluate_there(
        options.lake, options.students, spec, version=options.at, address=options.address
    )
    lines = [verdict["text"] for verdict in evaluation["verdicts"]]
    lines.append(f"{options.lake}/runs/{evaluation['run']}/report.html")
    print_answer(evaluation, as_json=options.json, text="\n".join(lines))
