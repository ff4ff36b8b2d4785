"""Commands that make students."""

from typing import Annotated

import typer

from commands.options import (
    AddressOpt,
    AtOpt,
    DistinctIdsOpt,
    JsonOpt,
    LakeArg,
    MppsOpt,
    SeedOpt,
    TeachersOpt,
    tell,
)
from distill.recipes.recipe_table import recipes_help
from distill.terms.term_table import terms_help

app = typer.Typer()


@app.command("stats")
def stats_command(
    lake: LakeArg,
    teacher: TeachersOpt,
    mpp: MppsOpt = None,
    holdout: Annotated[float, typer.Option(help="Share of patients left out.")] = 0.25,
    seed: SeedOpt = 0,
    at: AtOpt = None,
    json_: JsonOpt = False,
) -> None:
    """Mean, covariance and PHI-S rotation of teachers' features, without held-out patients.

    Example: slidelake stats my-lake --teacher efficientnet_lite0 --mpp 0.5
    """
    from distill.targets.missing_stats import stats

    found = stats(lake, teacher, mpps=mpp, holdout=holdout, seed=seed, version=at)
    lines = [
        f"{s['teacher']} at {s['mpp']} mpp: {s['rows']:,} tiles of {s['slides']} slides, lake "
        f"version {s['lake_version']}, {'fitted' if s['new'] else 'kept'}: {s['path']}"
        for s in found["sets"]
    ]
    tell(found, as_json=json_, text="\n".join(lines))


@app.command("distill")
def distill_command(
    lake: LakeArg,
    teacher: TeachersOpt,
    recipe: Annotated[str, typer.Option(help=recipes_help())] = "agglomerate",
    name: Annotated[str, typer.Option(help="Name of the student.")] = "student",
    mpp: MppsOpt = None,
    architecture: Annotated[
        str | None, typer.Option(help="timm's name of the student's network.")
    ] = None,
    input_px: Annotated[int | None, typer.Option(help="Side of the square that it sees.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training tiles.")] = None,
    batch_tiles: Annotated[
        int | None, typer.Option(help="Tiles in a step, over all workers.")
    ] = None,
    accumulate: Annotated[
        int | None, typer.Option(help="Parts of a step, for batches beyond the memory.")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak of AdamW's.")] = None,
    targets: Annotated[
        str | None, typer.Option(help="Normalisation: phi-s, z-score, l2 or none.")
    ] = None,
    head: Annotated[
        str | None, typer.Option(help="Kind of heads: linear, mlp, normed, residual or ladder.")
    ] = None,
    weighting: Annotated[
        str | None, typer.Option(help="Of teachers: static, keep-max or balance.")
    ] = None,
    term: Annotated[
        list[str] | None,
        typer.Option(help=terms_help()),
    ] = None,
    width: Annotated[
        list[int] | None,
        typer.Option(help="First channels that must do alone (Matryoshka). Repeatable."),
    ] = None,
    stain: Annotated[
        float | None, typer.Option(help="Jitter of each stain on the student's side; 0: none.")
    ] = None,
    ema: Annotated[
        float | None, typer.Option(help="Momentum of the average that is kept; 0: none.")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="float32 or bfloat16.")] = None,
    compile_: Annotated[bool | None, typer.Option("--compile", help="Use torch.compile.")] = None,
    slides: Annotated[
        str | None,
        typer.Option(help="Table (CSV, Parquet, XLSX) with a column slide_id: only these slides."),
    ] = None,
    distinct_ids: DistinctIdsOpt = False,
    holdout: Annotated[float | None, typer.Option(help="Share of patients held out.")] = None,
    split_seed: Annotated[
        int, typer.Option(help="Of which patients are held out; as --seed of stats.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="Of weights, order and views.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes that train together.")] = 1,
    checkpoint_s: Annotated[
        float, typer.Option(help="Seconds between checkpoints, at least.")
    ] = 60.0,
    address: AddressOpt = None,
    at: AtOpt = None,
    json_: JsonOpt = False,
) -> None:
    """Train a small student from cached teacher features; no teacher is run.

    Recipes: agglomerate (any number of teachers, embeddings and TEACHER:patches), xmag (tiles of a
    fine mpp into a student of a coarse one; two --mpp), gpfm (experts and self-distillation), h0
    (one teacher's embedding and patch tokens), g2l (one giant teacher, few slides), shazam (fuses
    teachers, no pixels), pathme (a region encoder over three --mpp, no pixels). All but the last
    two give students that `slidelake extract --teacher NAME` runs on tiles; those two make their
    columns with the same command, from features.

    The run's folder has metrics.jsonl, tensorboard/ and curve.png. A run that was killed goes on
    where it was with the same command.

    Example: slidelake distill my-lake --teacher uni2_h --teacher virchow2 --name small --epochs 20
    """
    from distill.recipes.recipe_table import make_recipe, parse_terms

    made = make_recipe(
        recipe,
        tuple(teacher),
        mpps=tuple(mpp) if mpp else None,
        architecture=architecture,
        input_px=input_px,
        epochs=epochs,
        batch_tiles=batch_tiles,
        accumulate=accumulate,
        learning_rate=learning_rate,
        targets=targets,
        head=head,
        weighting=weighting,
        extra_terms=parse_terms(term or []),
        widths=tuple(width) if width else None,
        stain=stain,
        ema=ema,
        precision=precision,
        compile=compile_,
        holdout=holdout,
        split_seed=split_seed,
        seed=seed,
    )
    from distill.train.ray_train import distill

    report = distill(
        lake,
        made,
        name=name,
        workers=workers,
        slides=_slide_ids(slides, distinct_ids),
        version=at,
        checkpoint_s=checkpoint_s,
        address=address,
    )
    lines = [
        f"{t}: cosine {f['cosine']:.3f} on held-out patients (mean feature {f['baseline']:.3f})"
        for t, f in report["fidelity"].items()
    ]
    speed = f"{report['tiles_per_s']:,.0f} tiles/s, {report['data_wait']:.1%} waiting for data"
    lines += [
        f"{report['steps']} steps, {speed}; runs/{report['run']}/curve.png",
        f"student '{name}' is in the lake",
    ]
    told = ("student", "steps", "fidelity", "data_wait", "tiles_per_s", "run")
    found = {key: report[key] for key in told} | {"recipe": report["recipe"]["name"]}
    tell(found, as_json=json_, text="\n".join(lines))


def _slide_ids(table: str | None, distinct_ids: bool) -> list[str] | None:
    """The slides that a table names."""
    if table is None:
        return None
    from downstream.cohorts.cohort import read_labels

    labels = read_labels(table, distinct_ids=distinct_ids)
    if "slide_id" not in labels.columns:
        msg = f"{table} has no column slide_id; it has {', '.join(labels.columns)}"
        raise typer.BadParameter(msg)
    if empty := labels["slide_id"].null_count():
        msg = f"{table} has {empty} rows without a slide_id; fill it in or remove them"
        raise typer.BadParameter(msg)
    return [str(name) for name in labels["slide_id"]]


@app.command("evaluate")
def evaluate_command(
    lake: LakeArg,
    student: Annotated[
        list[str], typer.Option(help="Name of a student. Repeatable: seeds are put together.")
    ],
    labels: Annotated[
        str | None,
        typer.Option(help="Table of tiles' labels: slide_id, x, y and a column of labels."),
    ] = None,
    label_column: Annotated[
        str | None, typer.Option(help="The column of labels, if there are several.")
    ] = None,
    distinct_ids: DistinctIdsOpt = False,
    single: Annotated[
        str | None,
        typer.Option(help="A student of a single teacher to compare with; found if not given."),
    ] = None,
    mpp: MppsOpt = None,
    tiles: Annotated[
        int, typer.Option(help="Most tiles at each mpp, to fit on and held out.")
    ] = 2048,
    robust_tiles: Annotated[int, typer.Option(help="Tiles that are perturbed.")] = 256,
    teacher_seconds: Annotated[
        float, typer.Option(help="Most seconds to run each teacher for; 0: none is run.")
    ] = 300.0,
    seed: SeedOpt = 0,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; a GPU if there is one.")] = None,
    threads: Annotated[int | None, typer.Option(help="On CPUs.")] = None,
    at: AtOpt = None,
    json_: JsonOpt = False,
) -> None:
    """Hold students against their teachers, PCA of them, and the same network undistilled.

    On held-out patients: fidelity by a linear read-out, CKA, neighbours; probes and retrieval on
    labels of tiles; robustness to stains and scanners; speed and what caching saved. What each
    number means is in docs/evaluate.md.

    Example: slidelake evaluate my-lake --student small --student small-seed1 --student small-seed2
    """
    from distill.evaluate.evaluation import evaluate
    from distill.evaluate.evaluation_spec import EvaluationSpec

    spec = EvaluationSpec(
        labels=labels,
        label_column=label_column,
        distinct_ids=distinct_ids,
        single=single,
        mpps=mpp,
        tiles=tiles,
        robust_tiles=robust_tiles,
        teacher_seconds=teacher_seconds,
        seed=seed,
        device=device,
        threads=threads,
    )
    found = evaluate(lake, student, spec, version=at)
    tell(found, as_json=json_, text=f"{lake}/runs/{found['run']}/report.html")


@app.command("export-student")
def export_student_command(
    lake: LakeArg,
    name: Annotated[str, typer.Argument(help="Of a student that sees pixels.")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="New local folder.")],
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Also as ONNX, checked for equality.")
    ] = False,
    json_: JsonOpt = False,
) -> None:
    """Write a student for use without slidelake: safetensors, card, and a README with timm's code.

    Example: slidelake export-student my-lake small small-model --onnx
    """
    from distill.students.export import export_student

    found = export_student(lake, name, out, onnx=onnx)
    tell(found, as_json=json_, text="\n".join(f"{out}/{file}" for file in found["files"]))
