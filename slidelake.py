"""The front door: the `slidelake` command and the public Python API. It has no logic of its own.

    >>> from slidelake import open_lake, ingest, extract

Nothing heavy is imported before a command needs it, so that `--help` answers at once.
"""

import importlib
import importlib.metadata
import importlib.util
import json
import os
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.exceptions import TyperException

if TYPE_CHECKING:
    from distill.fit import stats
    from distill.ray_columns import extract
    from distill.ray_train import distill
    from distill.recipes import make_recipe
    from downstream import run_mil, run_survival, write_report
    from downstream.probe_tiles import run_probe
    from downstream.retrieval import run_search
    from featurestore import (
        Lake,
        LakeConfig,
        Verdict,
        compact,
        create_lake,
        open_lake,
        query,
        repair,
        vacuum,
        verify,
    )
    from ingest import Card
    from ingest.ray_ingest import ingest
    from ingest.teachers import list_teachers
    from ingest.todo import How

PACKAGES = ("cluster", "distill", "downstream", "examples", "featurestore", "ingest")

#: The Python API: where each public name lives.
PUBLIC = {
    "Card": "ingest.cards",
    "Lake": "featurestore",
    "LakeConfig": "featurestore",
    "compact": "featurestore",
    "create_lake": "featurestore",
    "distill": "distill.ray_train",
    "extract": "distill.ray_columns",
    "ingest": "ingest.ray_ingest",
    "list_teachers": "ingest.teachers",
    "make_recipe": "distill.recipes",
    "open_lake": "featurestore",
    "query": "featurestore",
    "repair": "featurestore",
    "run_mil": "downstream",
    "run_probe": "downstream.probe_tiles",
    "run_search": "downstream.retrieval",
    "run_survival": "downstream",
    "stats": "distill.fit",
    "vacuum": "featurestore",
    "verify": "featurestore",
    "write_report": "downstream.report",
}

__all__ = [
    "Card",
    "Lake",
    "LakeConfig",
    "compact",
    "create_lake",
    "distill",
    "extract",
    "ingest",
    "list_teachers",
    "make_recipe",
    "open_lake",
    "query",
    "repair",
    "run_mil",
    "run_probe",
    "run_search",
    "run_survival",
    "stats",
    "vacuum",
    "verify",
    "write_report",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - any public name
    """Import a public name when it is first asked for."""
    if name not in PUBLIC:
        msg = f"module 'slidelake' has no attribute '{name}'"
        raise AttributeError(msg)
    return getattr(importlib.import_module(PUBLIC[name]), name)


def check_packages(root: Path) -> None:
    """Refuse to run with another distribution's package under one of our names.

    Raises:
        ImportError: one of the packages does not come from `root`; its distribution is named.
    """
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        origin = Path(spec.origin).resolve() if spec and spec.origin else None
        if origin is None or not origin.is_relative_to(root):
            owners = importlib.metadata.packages_distributions().get(name, ["not installed"])
            msg = (
                f"package '{name}' comes from {origin} ({', '.join(owners)}), not from {root}; "
                "run slidelake in an environment of its own (make setup)"
            )
            raise ImportError(msg)


check_packages(Path(__file__).resolve().parent)

app = typer.Typer(
    help="Whole-slide images in once, every teacher run once, everything after that reads a lake.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

LakeArg = Annotated[str, typer.Argument(metavar="LAKE", help="Folder or URL of the lake.")]
JsonOpt = Annotated[bool, typer.Option("--json", help="Print one JSON object last on stdout.")]
TeachersOpt = Annotated[
    list[str], typer.Option("--teacher", help="Name of a teacher; repeat for several.")
]
WeightsOpt = Annotated[
    str | None,
    typer.Option(
        metavar="DIR",
        help="Where weights are looked for first, as NAME.safetensors, NAME.pth or folders NAME as "
        "the hub has them; SLIDELAKE_WEIGHTS if not given.",
    ),
]
MppsOpt = Annotated[
    list[float] | None, typer.Option("--mpp", help="Microns per pixel; repeat for several.")
]
AtOpt = Annotated[
    str | None, typer.Option(help="Version number or snapshot to read; the newest if not given.")
]
AddressOpt = Annotated[
    str | None, typer.Option(help="Ray cluster to use; without one a local Ray is started.")
]
FeaturesOpt = Annotated[
    list[str],
    typer.Option("--features", help="A teacher, or several joined by +; repeat to compare."),
]
LabelsOpt = Annotated[
    str,
    typer.Option(
        help="CSV, TSV, XLSX or Parquet with slide_id and/or patient_id and the label columns; the "
        "tables of CLAM, STAMP and Patho-Bench as they are."
    ),
]
SeedOpt = Annotated[int, typer.Option(help="Same seed, same result.")]
FoldsOpt = Annotated[int, typer.Option(help="Folds over patients.")]
DownMppsOpt = Annotated[
    list[float], typer.Option("--mpp", help="Microns per pixel of the tiles; repeat for several.")
]
FusionOpt = Annotated[
    str, typer.Option(help="How teachers joined by + are fused: none, concat, shazam.")
]
InnerOpt = Annotated[
    int,
    typer.Option(
        help="Inner splits of each fold: 1 validation part, or more for an ensemble of one model "
        "a split."
    ),
]
RepeatsOpt = Annotated[int, typer.Option(help="Repetitions with other folds.")]
SplitsOpt = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Splits to use: CLAM's folder, Patho-Bench's k=all.tsv, STAMP's splits.json, or a "
        "run's splits.parquet.",
    ),
]
SiteOpt = Annotated[
    str | None,
    typer.Option(
        metavar="COLUMN",
        help="Leave one site out at a time: its column, or tcga to read it off the barcodes.",
    ),
]
SeedsOpt = Annotated[int, typer.Option(help="Trainings of each model with other random numbers.")]
EpochsOpt = Annotated[
    int | None, typer.Option(help="Most epochs; validation patients stop it earlier.")
]
RateOpt = Annotated[float | None, typer.Option(help="Learning rate of AdamW.")]
BatchOpt = Annotated[int | None, typer.Option(help="Patients a step.")]
MostTilesOpt = Annotated[
    int | None, typer.Option(help="Most tiles of a patient a step; a random subset of more.")
]
PrecisionOpt = Annotated[str, typer.Option(help="float32 or bfloat16.")]
ReferenceOpt = Annotated[
    str | None, typer.Option(help="Arm that the others are compared with; the first if not given.")
]
MarginOpt = Annotated[
    float | None,
    typer.Option(help="How much worse than the reference still counts as not inferior."),
]
SlideTableOpt = Annotated[
    str | None, typer.Option(metavar="FILE", help="Table of patients' slides, such as STAMP's.")
]
PatientColumnOpt = Annotated[str | None, typer.Option(help="Column of the patient.")]
SlideColumnOpt = Annotated[str | None, typer.Option(help="Column of the slide.")]
CpusOpt = Annotated[float, typer.Option(help="Cores of each training.")]
GpusOpt = Annotated[float, typer.Option(help="GPUs of each training; 0.25 lets four share one.")]
SearchOpt = Annotated[
    int,
    typer.Option(help="Draws of settings to try in each fold, judged by its validation patients."),
]
RunsOutOpt = Annotated[
    Path | None, typer.Option("--out", help="Write the whole table: .csv or .parquet.")
]
MppOpt = Annotated[float, typer.Option(help="Microns per pixel of the tiles.")]


@app.callback()
def options(
    debug: Annotated[bool, typer.Option(help="Show the traceback of an error.")] = False,
) -> None:
    """Whole-slide images in once, every teacher run once, everything after that reads a lake."""
    if debug:
        os.environ["SLIDELAKE_DEBUG"] = "1"


@app.command("demo")
def demo_command(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="Where to make the demo's lake.")],
    json_: JsonOpt = False,
) -> None:
    """The whole way on a small cohort: slides, tiles, teachers, a student, MIL, survival, report.

    Takes about six minutes on two cores. Run it again: what is done is not done twice.
    """
    from examples.demo import DemoSettings, run_demo

    report = run_demo(Path(folder), DemoSettings())
    _out(report, as_json=json_, text=f"report: {Path(folder).absolute() / 'report.html'}")


@app.command("ingest")
def ingest_command(
    lake: LakeArg,
    slides: Annotated[
        list[str],
        typer.Argument(
            metavar="SLIDES...",
            help="Files, folders, globs, URLs, or a CSV/Parquet manifest with a column uri.",
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
    masks: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="What is tissue, as SLIDE_ID.geojson (QuPath) or SLIDE_ID.png; slides without "
            "one are looked at as usual.",
        ),
    ] = None,
    pen_veto: Annotated[
        bool,
        typer.Option(help="Leave out tiles under pen; --no-pen-veto for blue and green stains."),
    ] = True,
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
    dry_run: Annotated[
        bool,
        typer.Option(help="Say what would be done: slides, tiles, bytes, time. Write nothing."),
    ] = False,
    address: AddressOpt = None,
    json_: JsonOpt = False,
) -> None:
    """Cut slides into tiles at one or several magnifications.

    Example: slidelake ingest my-lake slides/ --mpp 0.5 --mpp 2.0

    Slides that fail are listed with their reason, and the others go on; run it again to go on
    after a kill. LAKE/ingest.html shows every slide with its tissue and tiles.
    """
    from ingest.settings import settings

    how: How = {
        "mpp_override": mpp_override,
        "retry_failed": retry_failed,
        "replace": replace,
        "only": only or [],
        "limit": limit,
        "masks": masks,
        "pen_veto": pen_veto,
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
        lake, slides, config, slide_timeout_s=60 * slide_timeout, address=address, **how
    )
    lines = [f"{f['slide']} failed: {f['reason']}" for f in result.failed]
    lines += [f"{slide} was scanned again: its rows are replaced" for slide in result.replaced]
    tiles = ", ".join(f"{count:,} tiles at {name} mpp" for name, count in result.tiles.items())
    lines.append(f"{result.ready} slides ready, {len(result.failed)} failed; the lake has {tiles}")
    lines.append(f"every slide: {result.sheet}")
    _out(asdict(result), as_json=json_, text="\n".join(lines))
    raise typer.Exit(1 if result.failed else 0)


def _dry_run(
    lake: str, slides: list[str], config: "LakeConfig", how: "How", *, as_json: bool
) -> None:
    from ingest.todo import dry_run

    plan = dry_run(lake, slides, config, how, cores=os.cpu_count() or 1)
    lines = [f"{f['slide']} would fail: {f['reason']}" for f in plan.failed]
    tiles = ", ".join(f"about {count:,} tiles at {name} mpp" for name, count in plan.tiles.items())
    lines.append(f"{plan.slides} slides to cut ({plan.sampled} looked at): {tiles}")
    time = f"about {plan.seconds / 60:,.1f} minutes on {plan.cores} cores"
    lines.append(f"{plan.bytes / 1e9:,.2f} GB of shards; {time}; nothing was written")
    _out(asdict(plan), as_json=as_json, text="\n".join(lines))
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
    from distill.ray_columns import extract

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
    )
    lines = [f"slides {f['slide']} failed: {f['reason']}" for f in result.failed]
    lines += [
        f"{name}: {counts['tiles']:,.0f} tiles, {counts.get('tiles_per_s', 0):,.1f} tiles/s, "
        f"{counts['seconds']:.0f} s of computing, {counts['stall']:.1%} waiting for data"
        for name, counts in result.teachers.items()
    ]
    _out(asdict(result), as_json=json_, text="\n".join(lines))
    raise typer.Exit(1 if result.failed else 0)


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
    from distill.fit import stats

    found = stats(lake, teacher, mpps=mpp, holdout=holdout, seed=seed, version=at)
    lines = [
        f"{s['teacher']} at {s['mpp']} mpp: {s['rows']:,} tiles of {s['slides']} slides, lake "
        f"version {s['lake_version']}, {'fitted' if s['new'] else 'kept'}: {s['path']}"
        for s in found["sets"]
    ]
    _out(found, as_json=json_, text="\n".join(lines))


@app.command("distill")
def distill_command(
    lake: LakeArg,
    teacher: TeachersOpt,
    recipe: Annotated[
        str, typer.Option(help="agglomerate, g2l, gpfm, h0, pathme, shazam or xmag.")
    ] = "agglomerate",
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
        typer.Option(
            help="A further term KIND[:TEACHER][=WEIGHT], as contrast=0.1 or kl:COLUMN; kinds are "
            "contrast, decoupled, kl, log-sum, match, multi-level, privileged, prototypes, "
            "relation, self, token-relation. Repeatable."
        ),
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
    from distill.recipes import make_recipe, parse_terms

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
    from distill.ray_train import distill

    report = distill(
        lake,
        made,
        name=name,
        workers=workers,
        slides=_slide_ids(slides),
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
    _out(found, as_json=json_, text="\n".join(lines))


def _slide_ids(table: str | None) -> list[str] | None:
    """The slides that a table names."""
    if table is None:
        return None
    from downstream.cohort import read_labels

    found = read_labels(table)
    if "slide_id" not in found.columns:
        msg = f"{table} has no column slide_id; it has {', '.join(found.columns)}"
        raise typer.BadParameter(msg)
    return [str(name) for name in found["slide_id"]]


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
    from distill.evaluate import evaluate

    found = evaluate(
        lake,
        student,
        labels=labels,
        label_column=label_column,
        single=single,
        mpps=mpp,
        tiles=tiles,
        robust_tiles=robust_tiles,
        teacher_seconds=teacher_seconds,
        seed=seed,
        device=device,
        threads=threads,
        version=at,
    )
    _out(found, as_json=json_, text=f"{lake}/runs/{found['run']}/report.html")


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
    from distill.export import export_student

    found = export_student(lake, name, out, onnx=onnx)
    _out(found, as_json=json_, text="\n".join(f"{out}/{file}" for file in found["files"]))


@app.command("mil")
def mil_command(
    lake: LakeArg,
    labels: LabelsOpt,
    target: Annotated[
        list[str],
        typer.Option(help="Column to predict; repeat for labels that do not exclude each other."),
    ],
    features: FeaturesOpt,
    mpp: DownMppsOpt = (0.5,),  # type: ignore[assignment]
    model: Annotated[
        list[str],
        typer.Option(
            help="abmil, clam_sb, clam_mb, dsmil, transmil, transformer, mean, max, hierarchical "
            "(give several --mpp), or on pooled features linear, knn; repeat to compare."
        ),
    ] = ("abmil",),  # type: ignore[assignment]
    task: Annotated[
        str, typer.Option(help="binary, multiclass, multilabel, regression; auto looks.")
    ] = "auto",
    fusion: FusionOpt = "none",
    folds: FoldsOpt = 5,
    inner: InnerOpt = 1,
    repeats: RepeatsOpt = 1,
    splits: SplitsOpt = None,
    site: SiteOpt = None,
    shots: Annotated[
        int | None, typer.Option(help="Few-shot: training patients of each class.")
    ] = None,
    experts: Annotated[
        bool, typer.Option("--experts", help="Two heads, one trained class by class: long tails.")
    ] = False,
    soft_labels: Annotated[
        float | None,
        typer.Option(help="Share of an ensemble's opinion in a label; needs --inner 2 or more."),
    ] = None,
    pseudo_tiles: Annotated[
        int | None,
        typer.Option(help="Teach a tile classifier by so many surest tiles of each bag (MILTS)."),
    ] = None,
    seeds: SeedsOpt = 1,
    epochs: EpochsOpt = None,
    learning_rate: RateOpt = None,
    batch_patients: BatchOpt = None,
    max_tiles: MostTilesOpt = None,
    precision: PrecisionOpt = "float32",
    search: SearchOpt = 0,
    reference: ReferenceOpt = None,
    margin: MarginOpt = None,
    accuracy: Annotated[
        float, typer.Option(help="For how many patients can it answer with this accuracy?")
    ] = 0.95,
    slide_table: SlideTableOpt = None,
    patient_column: PatientColumnOpt = None,
    slide_column: SlideColumnOpt = None,
    seed: SeedOpt = 0,
    address: AddressOpt = None,
    cpus: CpusOpt = 1.0,
    gpus: GpusOpt = 0.0,
    at: AtOpt = None,
    json_: JsonOpt = False,
) -> None:
    """Predict classes, labels or a number from a patient's tiles, cross-validated over patients.

    Validation patients within each fold decide when training stops and where the threshold lies;
    test patients are only scored. Every measure has an interval over patients. Killed, it goes on
    where it was; all predictions, the splits and a page are kept in the lake's runs/.
    """
    from downstream import Plan, run_mil

    given = {
        "epochs": epochs,
        "learning_rate": learning_rate,
        "batch_patients": batch_patients,
        "max_tiles": max_tiles,
        "experts": experts,
        "soft_labels": soft_labels,
        "pseudo_tiles": pseudo_tiles,
    }
    result = run_mil(
        lake,
        labels,
        target[0] if len(target) == 1 else target,
        features,
        mpps=mpp,
        models=model,
        task=task,
        ids=_ids(slide_table, patient_column, slide_column),
        plan=Plan(folds=folds, inner=inner, repeats=repeats, sites=site, file=splits, shots=shots),
        seeds=seeds,
        seed=seed,
        reference=reference,
        margin=margin,
        accuracy=accuracy,
        settings=_mil_settings(fusion=fusion, precision=precision, **given),
        version=at,
        address=address,
        search=search,
        cpus_per_cell=cpus,
        gpus_per_cell=gpus,
    )
    _out(result, as_json=json_, text=_metrics_text(result))


@app.command("survival")
def survival_command(
    lake: LakeArg,
    labels: LabelsOpt,
    time: Annotated[str, typer.Option(help="Column of the time to event or end of follow-up.")],
    event: Annotated[str, typer.Option(help="Column that is 1 where the event was seen.")],
    features: FeaturesOpt,
    mpp: DownMppsOpt = (0.5,),  # type: ignore[assignment]
    model: Annotated[
        list[str],
        typer.Option(
            help="On pooled features: cox, coxnet, forest, boosting; of bags: abmil, transmil and "
            "the other models of `mil` without a loss of their own; repeat to compare."
        ),
    ] = ("cox",),  # type: ignore[assignment]
    head: Annotated[
        str, typer.Option(help="Of a model of bags: hazards (of time bins) or cox.")
    ] = "hazards",
    bins: Annotated[int | None, typer.Option(help="Time bins of hazards.")] = None,
    fusion: FusionOpt = "none",
    folds: FoldsOpt = 5,
    inner: InnerOpt = 1,
    repeats: RepeatsOpt = 1,
    splits: SplitsOpt = None,
    site: SiteOpt = None,
    seeds: SeedsOpt = 1,
    epochs: EpochsOpt = None,
    learning_rate: RateOpt = None,
    batch_patients: BatchOpt = None,
    max_tiles: MostTilesOpt = None,
    precision: PrecisionOpt = "float32",
    search: SearchOpt = 0,
    reference: ReferenceOpt = None,
    margin: MarginOpt = None,
    slide_table: SlideTableOpt = None,
    patient_column: PatientColumnOpt = None,
    slide_column: SlideColumnOpt = None,
    seed: SeedOpt = 0,
    address: AddressOpt = None,
    cpus: CpusOpt = 1.0,
    gpus: GpusOpt = 0.0,
    at: AtOpt = None,
    json_: JsonOpt = False,
) -> None:
    """Predict survival, cross-validated over patients; a higher risk is a worse outlook.

    Bins, risk groups and censoring weights come from training patients. The C-index and all other
    measures have an interval over patients.
    """
    from downstream import Plan, run_survival

    given = {
        "epochs": epochs,
        "learning_rate": learning_rate,
        "batch_patients": batch_patients,
        "max_tiles": max_tiles,
        "bins": bins,
    }
    result = run_survival(
        lake,
        labels,
        time,
        event,
        features,
        mpps=mpp,
        models=model,
        head=head,
        ids=_ids(slide_table, patient_column, slide_column),
        plan=Plan(folds=folds, inner=inner, repeats=repeats, sites=site, file=splits),
        seeds=seeds,
        seed=seed,
        reference=reference,
        margin=margin,
        settings=_mil_settings(fusion=fusion, precision=precision, **given),
        version=at,
        address=address,
        search=search,
        cpus_per_cell=cpus,
        gpus_per_cell=gpus,
    )
    _out(result, as_json=json_, text=_metrics_text(result))


@app.command("probe")
def probe_command(
    lake: LakeArg,
    labels: Annotated[
        str, typer.Option(help="Table of tiles: slide_id, tile_id or x and y (level 0), target.")
    ],
    target: Annotated[str, typer.Option(help="Column of classes.")],
    features: FeaturesOpt,
    mpp: MppOpt = 0.5,
    shots: Annotated[
        int | None,
        typer.Option(min=1, help="Fit on so many tiles of each class; all if not given."),
    ] = None,
    draws: Annotated[int, typer.Option(min=1, help="How often so few are drawn.")] = 10,
    tiles: Annotated[int, typer.Option(min=1, help="Most labelled tiles, drawn by class.")] = 20000,
    folds: FoldsOpt = 5,
    patient_column: PatientColumnOpt = None,
    slide_column: SlideColumnOpt = None,
    seed: SeedOpt = 0,
    at: AtOpt = None,
    json_: JsonOpt = False,
) -> None:
    """Classes of labelled tiles by a linear probe and nearest neighbours, folds over patients.

    Example: slidelake probe my-lake --labels tiles.csv --target tissue --features uni2 --shots 10
    """
    from downstream.probe_folds import Options
    from downstream.probe_tiles import run_probe

    options = Options(folds=folds, shots=shots, draws=draws, seed=seed, tiles=tiles)
    ids = _ids(None, patient_column, slide_column)
    result = run_probe(
        lake, labels, target, features, mpp=mpp, options=options, ids=ids, version=at
    )
    lines = [
        f"{arm}: {name} {m['estimate']:.3f} ({m['low']:.3f} to {m['high']:.3f})"
        for arm, found in result["metrics"].items()
        for name, m in found["measures"].items()
    ]
    lines += [*result["notes"], f"{len(result['missing'])} labels are of no tile with features"]
    lines.append(f"{result['tiles']:,} tiles of {result['patients']} patients, {folds} folds")
    _out(result, as_json=json_, text="\n".join(lines))


@app.command("attention")
def attention_command(
    lake: LakeArg,
    run: Annotated[str, typer.Argument(metavar="RUN", help="Name of a finished run.")],
    slide: Annotated[str, typer.Argument(metavar="SLIDE", help="Id of a slide it tested.")],
    arm: Annotated[
        str | None, typer.Option(help="Which arm; all that weigh tiles if not given.")
    ] = None,
    out: Annotated[str, typer.Option(metavar="DIR", help="Where the files go.")] = "attention",
    json_: JsonOpt = False,
) -> None:
    """A slide's attention in a run: a picture, tiles for QuPath (GeoJSON), and a table."""
    from downstream.attention_maps import write_attention
    from featurestore import open_lake

    files = [str(p) for p in write_attention(open_lake(lake), run, slide, arm=arm, folder=out)]
    _out({"run": run, "slide": slide, "files": files}, as_json=json_, text="\n".join(files))


@app.command("search")
def search_command(
    lake: LakeArg,
    like: Annotated[
        str,
        typer.Option(
            metavar="SLIDE[:x,y]",
            help="With a place in level-0 pixels: tiles like the one that covers it. Without: "
            "slides like this one, by the mean of their tiles' features.",
        ),
    ],
    features: Annotated[str, typer.Option(help="A teacher or student whose features are there.")],
    mpp: MppOpt = 0.5,
    k: Annotated[int, typer.Option("-k", help="How many are found.")] = 12,
    other_patients_only: Annotated[
        bool,
        typer.Option(
            "--other-patients-only",
            help="Leave out the query's own patient; else what is its own is marked.",
        ),
    ] = False,
    exact: Annotated[
        bool, typer.Option("--exact", help="Compare with all tiles, even if there is an index.")
    ] = False,
    build_index: Annotated[
        bool,
        typer.Option(
            "--build-index",
            help="First index the features, if no index covers all of them. Worth it for a million "
            "tiles or more; what is added later is found without it, too.",
        ),
    ] = False,
    recall_tiles: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Random tiles on which the index is held against the exact search, which is one "
            "pass over all features; 16 if they are 2 GB or less, else 0.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Picture of what was found: a .png or .html file.")
    ] = None,
    at: AtOpt = None,
    json_: JsonOpt = False,
) -> None:
    """Find the tiles nearest to a tile, or the slides nearest to a slide, by a teacher's features.

    Examples: slidelake search my-lake --like slide7:10240,8192 --features uni2_h --out found.html
    or: slidelake search my-lake --like slide7 --features uni2_h --other-patients-only

    Near is the cosine of features, 1 for the same direction. Tiles of one slide share its stain and
    scanner and are often each other's nearest: --other-patients-only looks beyond them.
    """
    from downstream.retrieval import found_text, run_search

    found = run_search(
        lake,
        like,
        features,
        mpp=mpp,
        k=k,
        exact=exact,
        build=build_index,
        other_patients_only=other_patients_only,
        recall_tiles=recall_tiles,
        out=out,
        version=at,
    )
    _out(found, as_json=json_, text=found_text(found))


@app.command("runs")
def runs_command(lake: LakeArg, out: RunsOutOpt = None, json_: JsonOpt = False) -> None:
    """Every measure of every finished run, one row each, with lake version and seeds."""
    from downstream.run_table import run_table
    from featurestore import open_lake

    table = run_table(open_lake(lake))
    if out is not None:
        (table.write_parquet if out.suffix == ".parquet" else table.write_csv)(out)
    main = table.filter(table["main"]).select(
        "run", "target", "arm", "measure", "estimate", "low", "high", "patients", "lake_version"
    )
    _out(table.to_dicts(), as_json=json_, text=str(main) if out is None else f"-> {out}")


@app.command("query")
def query_command(
    lake: LakeArg,
    sql: Annotated[str, typer.Argument(help="SQL over slides, catalog, tiles_mpp0_5, ...")],
    form: Annotated[
        str | None,
        typer.Option("--format", help="table, csv, json or parquet; from the name of --out."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="File to write the answer to; needed for parquet.")
    ] = None,
    at: AtOpt = None,
    json_: JsonOpt = False,
) -> None:
    """Ask a lake in SQL.

    Example: slidelake query my-lake "SELECT slide_id, count(*) FROM tiles_mpp0_5 GROUP BY slide_id"
    """
    from featurestore import open_lake, query
    from featurestore.answers import answer_bytes, answer_format, write_answer

    if json_ and form and out is None:
        msg = f"--json prints one object of its own: leave out --json or --format {form}"
        raise typer.BadParameter(msg)
    form = answer_format(form, out)
    frame = query(open_lake(lake, version=at), sql)
    if out is not None:
        write_answer(frame, form, out)
        written = {"out": str(out), "format": form, "columns": frame.columns, "rows": frame.height}
        _out(written, as_json=json_, text=f"{frame.height:,} rows written to {out}")
    elif json_:
        _out({"columns": frame.columns, "rows": frame.rows()}, as_json=True, text="")
    else:
        typer.echo(answer_bytes(frame, form).decode().rstrip("\n"))


@app.command("info")
def info_command(lake: LakeArg, at: AtOpt = None, json_: JsonOpt = False) -> None:
    """What a lake holds: slides, tiles, teachers, version, snapshots."""
    from featurestore import open_lake

    info = open_lake(lake, version=at).info()
    lines = [f"{info['lake']}: format {info['format']}, version {info['version']}"]
    lines.append(", ".join(f"{count} slides {state}" for state, count in info["slides"].items()))
    lines += [f"{count:,} tiles at {mpp} mpp" for mpp, count in info["tiles"].items()]
    lines += [
        f"{f['teacher']} at {f['mpp']} mpp: {f['tiles']:,} x {f['dim']}"
        + "".join(f", {name} {f[name]}" for name in ("where", "share") if name in f)
        + ("" if f["complete"] else " (incomplete: run extract again)")
        for f in info["features"]
    ]
    lines += [f"snapshot {name}: version {version}" for name, version in info["snapshots"].items()]
    _out(info, as_json=json_, text="\n".join(lines))


@app.command("verify")
def verify_command(
    lake: LakeArg,
    sample: Annotated[
        float, typer.Option(min=0, max=1, help="Share of slides to read in full: a quick look.")
    ] = 1.0,
    at: AtOpt = None,
    json_: JsonOpt = False,
) -> None:
    """Compare a lake with its catalog: counts, keys, checksums, files. Exit code 1 on damage.

    Example: slidelake verify my-lake --sample 0.05
    """
    from featurestore import open_lake

    verdict = _verify(open_lake(lake, version=at), sample)
    lines = [_damage_line(found) for found in verdict.as_dict()["damage"]]
    lines.append(_checked_line(verdict.as_dict()))
    if not verdict.ok:
        lines.append("`slidelake repair` takes it out; ingest and extract then make it again")
    _out(verdict.as_dict(), as_json=json_, text="\n".join(lines))
    raise typer.Exit(0 if verdict.ok else 1)


@app.command("repair")
def repair_command(lake: LakeArg, json_: JsonOpt = False) -> None:
    """Take out what is damaged, so that the next ingest and extract make it again.

    Earlier versions stay as they are. Exit code 1 if something is damaged that can't be taken out.
    """
    from featurestore import open_lake, repair

    opened = open_lake(lake)
    opened.committer.recover()
    opened = opened.refreshed()
    verdict = _verify(opened, 1.0)
    done = repair(opened, verdict)
    lines = [_damage_line(found) for found in verdict.as_dict()["damage"]]
    lines += [f"to be ingested again: {slide}" for slide in done.slides]
    lines += [
        f"to be extracted again: {teacher} at {mpp} mpp, {len(fragments)} fragments"
        for teacher, mpp, fragments in done.columns
    ]
    lines += [f"left: {found.what}" for found in done.left]
    value = {
        "slides": done.slides,
        "columns": [
            {"teacher": teacher, "mpp": mpp, "fragments": fragments}
            for teacher, mpp, fragments in done.columns
        ],
        "left": [found.as_dict() for found in done.left],
    }
    _out(value, as_json=json_, text="\n".join(lines) or "nothing is damaged")
    raise typer.Exit(1 if done.left else 0)


@app.command("compact")
def compact_command(
    lake: LakeArg,
    rows: Annotated[int, typer.Option(min=1, help="Most tiles in a merged fragment.")] = 250_000,
    json_: JsonOpt = False,
) -> None:
    """Merge the small fragments that many small ingests leave, and drop replaced rows for good."""
    from cluster import progress
    from featurestore import compact, open_lake

    with progress("compact", total=None, unit="fragments") as bar:
        done = compact(open_lake(lake), rows=rows, on_group=bar.advance)
    text = f"{done.before} fragments became {done.after}; `slidelake vacuum` frees the old files"
    _out(asdict(done), as_json=json_, text=text)


@app.command("vacuum")
def vacuum_command(
    lake: LakeArg,
    keep: Annotated[int, typer.Option(min=1, help="Newest versions that stay readable.")] = 10,
    dry_run: Annotated[bool, typer.Option(help="Only say what would be removed.")] = False,
    json_: JsonOpt = False,
) -> None:
    """Remove old versions, and files that killed jobs left. Refused while a job is writing.

    The newest versions, snapshots, and the versions that runs were made from stay.
    """
    from featurestore import open_lake, vacuum

    done = vacuum(open_lake(lake), keep=keep, dry_run=dry_run)
    verb = "would remove" if dry_run else "removed"
    text = (
        f"{verb} {done.versions} versions, {done.files} files, {done.bytes / 1e6:,.1f} MB; "
        f"readable: versions {', '.join(str(version) for version in done.kept)}"
    )
    _out(asdict(done), as_json=json_, text=text)


@app.command("snapshot")
def snapshot_command(
    lake: LakeArg,
    name: Annotated[str, typer.Argument(help="Letters, digits, _ . -")],
    at: AtOpt = None,
    json_: JsonOpt = False,
) -> None:
    """Name a version of a lake: --at NAME opens it, and vacuum never removes it.

    Example: slidelake snapshot my-lake paper-v1
    """
    from featurestore import open_lake

    opened = open_lake(lake, version=at)
    opened.snapshot(name)
    text = f"snapshot '{name}' is version {opened.version}"
    _out({"snapshot": name, "version": opened.version}, as_json=json_, text=text)


@app.command("import")
def import_command(
    lake: LakeArg,
    folder: Annotated[str, typer.Argument(metavar="DIR", help="What the other tool wrote.")],
    format_: Annotated[
        str, typer.Option("--format", help="Of which tool: trident, clam, stamp or slide2vec.")
    ],
    mpp: Annotated[
        float | None, typer.Option(help="Microns per pixel of the tiles; CLAM does not say it.")
    ] = None,
    level0_mpp: Annotated[
        float | None,
        typer.Option(help="Microns per pixel of the slides' level 0; STAMP does not say it."),
    ] = None,
    teacher: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME of the encoder where files do not say it, or NAMEs to take of several; "
            "NAME=FOLDER names one folder of features. Repeat for several."
        ),
    ] = None,
    tile_px: Annotated[
        int | None, typer.Option(help="Side of a tile in its own pixels, where files lack it.")
    ] = None,
    tile_px_level0: Annotated[
        int | None, typer.Option(help="Side of a tile in level-0 pixels, where files lack it.")
    ] = None,
    json_: JsonOpt = False,
) -> None:
    """Take tiles and features that another tool extracted; without pixels. Run it again to go on.

    Example: slidelake import my-lake CLAM_FEATURES --format clam --mpp 0.5 --teacher resnet50
    """
    from cluster import progress
    from featurestore.interop import Given, import_folder

    given = Given(
        mpp=mpp,
        level0_mpp=level0_mpp,
        teachers=tuple(teacher or ()),
        tile_px=tile_px,
        tile_px_level0=tile_px_level0,
    )
    with progress("import", total=None, unit="files") as bar:
        result = import_folder(
            lake, folder, format=format_, given=given, on_slide=lambda slide, what: bar.advance()
        )
    lines = [f"{f['slide_id']} failed: {f['reason']}" for f in result.failed]
    lines += [f"{f['slide_id']} left out: {f['reason']}" for f in result.left_out]
    lines += [f"{tiles:,} tiles at {name} mpp" for name, tiles in result.tiles.items()]
    lines += [f"{name}: {slides} slides" for name, slides in result.features.items()]
    lines.append(f"{result.slides} slides, {result.new} new; {len(result.failed)} files failed")
    _out(asdict(result), as_json=json_, text="\n".join(lines))
    raise typer.Exit(1 if result.failed else 0)


@app.command("export")
def export_command(
    lake: LakeArg,
    out: Annotated[str, typer.Argument(metavar="OUT", help="Local folder to write to.")],
    format_: Annotated[
        str,
        typer.Option("--format", help="For which tool: trident, clam, stamp, anndata or geojson."),
    ],
    teacher: Annotated[
        list[str] | None, typer.Option(help="Whose features; repeat for several; all if not given.")
    ] = None,
    mpp: Annotated[
        float | None, typer.Option(help="Microns per pixel; needed if the lake has several.")
    ] = None,
    tiles: Annotated[
        bool, typer.Option("--tiles", help="With geojson: the tiles as rectangles, too.")
    ] = False,
    at: AtOpt = None,
    json_: JsonOpt = False,
) -> None:
    """Write a lake's tiles and features as another tool's files; what is there stays.

    Example: slidelake export my-lake for-trident --format trident --teacher uni2 --mpp 0.5
    """
    from cluster import progress
    from featurestore.interop import export_folder

    with progress("export", total=None, unit="slides") as bar:
        result = export_folder(
            lake,
            out,
            format=format_,
            teachers=tuple(teacher or ()),
            mpp=mpp,
            version=at,
            tiles=tiles,
            on_slide=lambda slide, files: bar.advance(),
        )
    lines = [f"{f['slide']} failed: {f['reason']}" for f in result.failed]
    lines += [f"{f['slide']} left out: {f['reason']}" for f in result.left_out]
    lines.append(
        f"{result.out}: {result.written} slides written in {result.files} files, "
        f"{result.complete} were there already, {len(result.failed)} failed"
    )
    _out(asdict(result), as_json=json_, text="\n".join(lines))
    raise typer.Exit(1 if result.failed else 0)


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
    from ingest.teachers import list_teachers

    rows = list_teachers(open_lake(lake).store if lake else None, folder=weights)
    lines = [
        f"{r['teacher']:20} {r['dim']:>5} dims  {r['mpp'] or '-':>5} mpp  "
        f"{_weights_are(r):8}"
        f"{', '.join(r['poolings']):16} {r['licence']}"
        for r in sorted(rows, key=lambda r: not r["available"])
    ]
    _out({"teachers": rows}, as_json=json_, text="\n".join(lines))


def _weights_are(row: dict[str, Any]) -> str:
    """Where a teacher's weights are, in a word."""
    if row["available"]:
        return "here"
    return "gated" if row["gated"] else "on hub" if row["downloads"] else "missing"


@app.command("report")
def report_command(lake: LakeArg, at: AtOpt = None, json_: JsonOpt = False) -> None:
    """Write report.html and report.json of what a lake holds and what its runs found."""
    from downstream.report import write_report

    report = write_report(lake, version=at)
    _out(report, as_json=json_, text=f"report: {lake}/report.html")


@app.command("submit", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def submit_command(
    context: typer.Context,
    address: Annotated[str | None, typer.Option(help="The cluster's job server.")] = None,
) -> None:
    """Run any of the other commands as a Ray job: slidelake submit -- info my-lake."""
    from cluster import submit

    if not context.args:
        msg = "give the command to run after --, as in: slidelake submit -- info my-lake"
        raise typer.BadParameter(msg)
    raise typer.Exit(submit(context.args, address=address))


def _verify(lake: "Lake", sample: float) -> "Verdict":
    from cluster import progress
    from featurestore import verify

    slides = sum(lake.tiles_of(mpp=mpp).height for mpp in lake.config.mpps)
    with progress("verify", total=round(slides * sample), unit="slides") as bar:
        return verify(lake, sample=sample, on_slide=bar.advance)


def _damage_line(damage: dict[str, Any]) -> str:
    place = [f"slide {damage['slide']}" if damage["slide"] else "the lake"]
    place += [f"at {damage['mpp']} mpp"] if damage["mpp"] is not None else []
    place += [f"teacher {damage['teacher']}"] if damage["teacher"] else []
    return f"{', '.join(place)}: {damage['what']}"


def _checked_line(verdict: dict[str, Any]) -> str:
    checked = verdict["checked"]
    return (
        f"version {verdict['version']}: {checked['slides']:,} slides, {checked['tiles']:,} tiles, "
        f"{checked['features']:,} bags of features, {checked['shards']:,} shards, "
        f"{checked['bytes'] / 1e6:,.0f} MB read: "
        + ("all as it was committed" if verdict["ok"] else f"{len(verdict['damage'])} damaged")
    )


def _ids(
    slide_table: str | None, patient_column: str | None, slide_column: str | None
) -> dict[str, str]:
    """What was said of a label table's ids."""
    given = {"slides": slide_table, "patient_column": patient_column, "slide_column": slide_column}
    return {name: value for name, value in given.items() if value is not None}


def _mil_settings(**given: Any) -> Any:  # noqa: ANN401
    """Settings with what was given; the rest as it is."""
    from downstream import MilSettings

    return MilSettings(**{name: value for name, value in given.items() if value is not None})


def _metrics_text(result: dict[str, Any]) -> str:
    """A line an arm, then comparisons, and what was left out."""
    lines = []
    for name, m in result["metrics"].items():
        value = "undefined on these patients"
        if m["estimate"] is not None:
            value = f"{m['estimate']:.3f} ({m['low']:.3f} to {m['high']:.3f})"
        lines.append(f"{name}: {m['metric']} {value}")
    for row in result["comparisons"]:
        more = "" if row["margin"] is None else f", margin {row['margin']:g}: "
        if row["margin"] is not None:
            more += "not inferior" if row["not_inferior"] else "not shown to be as good"
        lines.append(
            f"{row['one']} - {row['other']}: {row['estimate']:+.3f} ({row['low']:+.3f} to "
            f"{row['high']:+.3f}), p {row['p_holm']:.3f} (Holm){more}"
        )
    counts = f"{result['patients']} patients, {result['slides']} slides, {result['folds']} folds"
    for key, what in (("missing", "labelled but not used"), ("surplus", "slides without a label")):
        if result[key]:
            counts += f"; {len(result[key])} {what}"
    return "\n".join([*lines, counts, *result["notes"], f"runs/{result['run']}/report.html"])


def _out(value: Any, *, as_json: bool, text: str) -> None:  # noqa: ANN401
    typer.echo(json.dumps(value, default=str) if as_json else text)


def main() -> None:
    """Run the command; an error is one line on stderr unless --debug asks for its traceback."""
    try:
        code = app(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except (KeyboardInterrupt, typer.Abort):
        typer.echo("slidelake: stopped; run the same command again to go on", err=True)
        sys.exit(130)
    except Exception as error:  # noqa: BLE001 - the last handler there is
        sys.exit(_explain(error))


def _explain(error: Exception) -> int:
    """Say what went wrong; the exit code: 2 for wrong usage, 1 for damage, 3 for our own faults."""
    if isinstance(error, TyperException):
        typer.echo(f"slidelake: {error.format_message()} (slidelake --help)", err=True)
        return error.exit_code
    if os.environ.get("SLIDELAKE_DEBUG"):
        traceback.print_exc()
    text = " ".join(str(error).split()) or type(error).__name__
    ours = type(error).__module__.partition(".")[0] in PACKAGES
    if not ours:
        text = f"{type(error).__name__}: {text} (slidelake --debug shows where)"
    typer.echo(f"slidelake: {text}", err=True)
    if not ours:
        return 3
    return 1 if type(error).__name__ == "DamageError" else 2


if __name__ == "__main__":
    main()
