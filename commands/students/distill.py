"""`slidelake distill`: a student from cached features."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.progress_text import counted
from commands.options.dataclass_options import command
from commands.options.failure_report import OnFailureOpt
from commands.options.path_kind import PathKind
from commands.options.printing import print_answer
from commands.options.saved_settings import saved_config
from commands.options.set_fields import with_assignments
from commands.options.shared_options import (
    AddressOpt,
    AtOpt,
    DistinctIdsOpt,
    JsonOpt,
    LikeOpt,
    MppsOpt,
    PermissionOpt,
    QuietOpt,
    SetOpt,
    TeachersOpt,
)
from commands.options.worker_options import WorkerOptions
from commands.students.recipe_listing import (
    Stage,
    check_term_settings,
    listing,
    paths_of,
    setting_rows,
)
from distill.recipes.recipe_table import recipes_help
from distill.terms.term_table import terms_help

if TYPE_CHECKING:
    from distill import Recipe
    from featurestore import Licence

app = typer.Typer()
DEFAULT_RECIPE = "agglomerate"
#: Teachers of a recipe that is shown without any.
SHOWN_TEACHERS = ("TEACHER", "TEACHER2")
#: Heads stand beside a student, in the recipe; they are looked for in the student.
ALIASES = {"student.head": "head", "student.head_width": "head_width"}
OPTION_NAMES = {"widths": "--width", "mpps": "--mpp"}


@dataclass(frozen=True, kw_only=True)
class RecipeOptions:
    """The fields of a recipe that have an option; options left out keep the recipe's values.

    Attributes:
        architecture: timm's name of the student's network.
        input_px: Side in pixels of the student's input.
        init: Weights to start from: timm (pretrained), a file, a student or a teacher (its first
            layers); random if not given.
        where: Train on tiles for which this holds, as "tissue > 0.5".
        per_slide: Most tiles of a slide, drawn at random.
        balance: See groups equally often: slide, patient, cluster (k-means on a column), or a
            column of an annotation (clinical.site).
        coreset: Keep a share of the tiles (--share): coverage, hard, easy or random.
        share: Share of the tiles that --coreset keeps.
        decode: How tiles become the input in training: full, or scaled (faster, slightly other
            pixels).
        epochs: Passes over the training tiles.
        batch_tiles: Tiles in a step, over all workers.
        accumulate: Parts of a step, for batches beyond the memory.
        learning_rate: Peak learning rate of AdamW.
        targets: Normalisation of the teachers' features: phi-s, z-score, l2 or none.
        head: Kind of heads: linear, mlp, normed, residual or ladder.
        weighting: Weighting of teachers: static, keep-max or balance.
        widths: First channels that must do alone (Matryoshka). Repeatable.
        stain: Jitter of each stain on the student's side; 0: none.
        ema: Momentum of the moving average of the weights that is kept; 0: none.
        precision: float32 or bfloat16.
        compile: Use torch.compile.
        holdout: Share of patients held out.
        split_seed: Random seed of the choice of held-out patients; as --seed of stats.
        seed: Random seed of weights, order and views.
    """

    architecture: str | None = None
    input_px: int | None = None
    init: Annotated[
        str | None, typer.Option(metavar="timm|PATH|STUDENT|TEACHER"), PathKind.FILES
    ] = None
    where: Annotated[str | None, typer.Option(metavar="SQL")] = None
    per_slide: Annotated[int | None, typer.Option(min=1)] = None
    balance: Annotated[str | None, typer.Option(metavar="slide|patient|cluster|COLUMN")] = None
    coreset: Annotated[str | None, typer.Option(metavar="coverage|hard|easy|random")] = None
    share: Annotated[float | None, typer.Option(min=0.0, max=1.0)] = None
    decode: Annotated[str | None, typer.Option(show_default="full")] = None
    epochs: int | None = None
    batch_tiles: int | None = None
    accumulate: int | None = None
    learning_rate: float | None = None
    targets: str | None = None
    head: str | None = None
    weighting: str | None = None
    terms: Annotated[tuple[str, ...], typer.Option("--term", help=terms_help())] = ()
    widths: Annotated[tuple[int, ...], typer.Option("--width")] = ()
    stain: float | None = None
    ema: float | None = None
    precision: str | None = None
    compile: Annotated[bool | None, typer.Option("--compile")] = None
    holdout: float | None = None
    split_seed: Annotated[int | None, typer.Option(show_default="0")] = None
    seed: Annotated[int | None, typer.Option(show_default="0")] = None

    def changes(self) -> dict[str, Any]:
        """Return the recipe fields on the command line, except its terms."""
        settings = {name: setting for name, setting in vars(self).items() if name != "terms"}
        settings["widths"] = self.widths or None
        return {name: setting for name, setting in settings.items() if setting is not None}


@dataclass(frozen=True, kw_only=True)
class DistillOptions:
    """Options of `slidelake distill`.

    Attributes:
        name: Name of the student.
        slides: Table (CSV, Parquet, XLSX) with a column slide_id: only these slides.
        checkpoint_s: Seconds between checkpoints, at least.
        show: List all settings of the recipe, with values and sources, and train nothing.
        cache_pixels: GB of decoded tiles that each machine keeps in $SLIDELAKE_PIXEL_CACHE for
            later epochs.
    """

    lake: Annotated[
        str | None,
        typer.Argument(metavar="LAKE", help="Folder or URL of the lake; --show needs none."),
        PathKind.LAKE,
    ] = None
    teachers: TeachersOpt = ()
    recipe: Annotated[
        str | None,
        typer.Option(help=recipes_help(), show_default=DEFAULT_RECIPE),
    ] = None
    name: str = "student"
    mpps: MppsOpt = ()
    fields: RecipeOptions
    slides: Annotated[str | None, PathKind.FILES] = None
    distinct_ids: DistinctIdsOpt = False
    assignments: SetOpt = ()
    like: LikeOpt = None
    workers: WorkerOptions
    checkpoint_s: float = 60.0
    show: Annotated[bool, typer.Option("--show")] = False
    cache_pixels: float = 0.0
    address: AddressOpt = None
    at: AtOpt = None
    permission: PermissionOpt = None
    on_failure: OnFailureOpt = None
    quiet: QuietOpt = False
    json: JsonOpt = False


@command(app, "distill")
def distill_command(options: DistillOptions) -> None:
    """Train a small student from cached teacher features; no teacher is run.

    `slidelake extract --teacher NAME` runs a student of pixels on tiles; a student of features
    (recipes without pixels) makes its column with the same command, from features.
    docs/distillation.md says what each recipe needs.

    The run's folder has metrics.jsonl, tensorboard/ and curve.png. A run that was killed goes on
    with the same command.

    Example: slidelake distill my-lake --teacher uni2_h --teacher virchow2 --name small --epochs 20
    """
    stages = recipe_stages(options)
    recipe = stages[-1].recipe
    if options.show:
        rows = setting_rows(stages)
        answer = {"recipe": recipe.name, "settings": rows}
        print_answer(answer, as_json=options.json, text=listing(rows))
        return
    from distill.train.ray_train import distill

    report = distill(
        _lake_uri(options),
        recipe,
        name=options.name,
        workers=options.workers.settings(),
        slides=_slide_ids(options.slides, options.distinct_ids),
        version=options.at,
        checkpoint_s=options.checkpoint_s,
        address=options.address,
        permission=options.permission,
        cache_pixels_gb=options.cache_pixels,
    )
    keys = ("student", "steps", "fidelity", "data_wait", "tiles_per_s", "run", "licences")
    answer = {key: report[key] for key in keys} | {"recipe": report["recipe"]["name"]}
    text = "\n".join(_distill_lines(report, options.name))
    print_answer(answer, as_json=options.json, text=text)


def chosen_recipe(options: DistillOptions) -> "Recipe":
    """Return the named recipe, or a run's recipe, with the changes of the options."""
    return recipe_stages(options)[-1].recipe


def recipe_stages(options: DistillOptions) -> list[Stage]:
    """Return the named recipe, or a run's, after each source of settings; the last is the whole."""
    from distill.recipes.recipe_table import make_recipe, parse_terms

    like = options.like
    if not options.show:
        _lake_uri(options)
    saved = _saved_changes(_lake_uri(options), like, options.recipe) if like else {}
    name = options.recipe or saved.get("name", DEFAULT_RECIPE)
    teachers = _teachers(options, name, saved)
    stages = [Stage(source=f"recipe {name}", recipe=make_recipe(name, teachers))]
    if options.teachers:
        named = Stage(source="--teacher", recipe=stages[-1].recipe, paths=("teachers",))
        stages.append(named)
    kept = {field: setting for field, setting in saved.items() if field not in ("name", "teachers")}
    if like:
        stages.append(Stage(source=f"--like {like}", recipe=make_recipe(name, teachers, **kept)))
    changes = options.fields.changes() | ({"mpps": options.mpps} if options.mpps else {})
    kept |= changes
    if terms := parse_terms(options.fields.terms):
        added = {"terms": (*kept["terms"], *terms)} if "terms" in kept else {"extra_terms": terms}
        kept |= added
    # All at once: settings are checked against each other.
    recipe = make_recipe(name, teachers, **kept)
    if terms:
        stages.append(Stage(source="--term", recipe=recipe))
    for field in changes:
        option = OPTION_NAMES.get(field, f"--{field.replace('_', '-')}")
        stages.append(Stage(source=option, recipe=recipe, paths=paths_of(recipe, field)))
    if options.assignments:
        assignments = [_without_alias(text) for text in options.assignments]
        recipe = with_assignments(stages[-1].recipe, assignments)
        paths = [text.partition("=")[0].strip() for text in assignments]
        check_term_settings(recipe, paths)
        stages.append(Stage(source="--set", recipe=recipe, paths=paths))
    return stages


def _teachers(options: DistillOptions, recipe: str, saved: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the teachers of the options, or of another run; for --show, names of none."""
    teachers: tuple[str, ...] = options.teachers or saved.get("teachers", ())
    if not teachers and options.show:
        return SHOWN_TEACHERS if recipe == "shazam" else SHOWN_TEACHERS[:1]
    if not teachers:
        msg = "Missing option '--teacher': name a teacher, or a run by --like RUN"
        raise typer.BadParameter(msg)
    return teachers


def _lake_uri(options: DistillOptions) -> str:
    if options.lake is None:
        msg = "Missing argument 'LAKE'."
        raise typer.BadParameter(msg)
    return options.lake


def _without_alias(assignment: str) -> str:
    """Return an assignment with the path of the field in place of another name for it."""
    path, equals, text = assignment.partition("=")
    return f"{ALIASES.get(path.strip(), path)}{equals}{text}"


def _saved_changes(lake_uri: str, run: str, recipe: str | None) -> dict[str, Any]:
    """Return the recipe fields of a run as arguments of `make_recipe`.

    If another recipe is named, only the fields that all recipes have are kept: terms, student and
        levels
    are the recipe's own.
    """
    from distill.recipes.recipe import Term
    from featurestore import open_lake

    saved = saved_config(open_lake(lake_uri), run, "recipe")
    # Runs of earlier versions have no choice of tiles.
    parts = {name: saved.pop(name, {}) for name in ("student", "views", "tiles", "schedule")}
    terms = saved.pop("terms")
    changes = {
        name: tuple(setting) if isinstance(setting, list) else setting
        for name, setting in saved.items()
    }
    changes |= {**parts["views"], **parts["tiles"], **parts["schedule"]}
    if recipe in (None, changes["name"]):
        changes |= {
            name: tuple(setting) if isinstance(setting, list) else setting
            for name, setting in parts["student"].items()
        }
        changes["terms"] = tuple(
            Term(**{**term, "teachers": tuple(term["teachers"])}) for term in terms
        )
    else:
        del changes["levels"]
    return changes


def _slide_ids(table: str | None, distinct_ids: bool) -> list[str] | None:
    """Return the slides that a table names; None without a table."""
    if table is None:
        return None
    from downstream import read_labels

    labels = read_labels(table, distinct_ids=distinct_ids)
    if "slide_id" not in labels.columns:
        msg = f"{table} has no column slide_id; it has {', '.join(labels.columns)}"
        raise typer.BadParameter(msg)
    if empty := labels["slide_id"].null_count():
        msg = f"{table} has {counted(empty, 'row')} without a slide_id; fill it in or remove them"
        raise typer.BadParameter(msg)
    return [str(name) for name in labels["slide_id"]]


def _distill_lines(report: dict[str, Any], name: str) -> list[str]:
    from featurestore import licences_text

    lines = [
        f"{teacher}: cosine {fidelity['cosine']:.3f} on held-out patients (mean feature "
        f"{fidelity['baseline']:.3f}){_verdict(fidelity)}"
        for teacher, fidelity in report["fidelity"].items()
    ]
    if count := report.get("slides_without_patient"):
        lines.append(
            f"{counted(count, 'slide')} without a patient, each taken for a patient of its own; "
            "slidelake annotate LAKE patients.csv --name patients"
        )
    lines += switching_lines(report.get("switching", {}))
    speed = f"{report['tiles_per_s']:,.0f} tiles/s, {report['data_wait']:.1%} waiting for data"
    return [
        *lines,
        f"{report['steps']} steps, {speed}; runs/{report['run']}/curve.png",
        f"student '{name}' is in the lake",
        *([licences_text(licences)] if (licences := _licences(report)) else []),
        next_step(report["fidelity"], name),
    ]


def switching_lines(switching: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a line for each teacher on the sides and mpps at which it is predicted best and worst.

    >>> ends = {"best": {"centred": 0.8, "side_px": 128, "mpp": "0.5"},
    ...     "worst": {"centred": 0.5, "side_px": 64, "mpp": "2.0"}}
    >>> for line in switching_lines({"uni2_h": {**ends, "gap": 0.3, "flagged": True}}):
    ...     print(line)
    uni2_h: centred cosine 0.800 at 128 px and mpp 0.5, 0.500 at 64 px and mpp 2.0: the student ...
    """
    lines = []
    for teacher, one in switching.items():
        best, worst = (
            f"{one[end]['centred']:.3f} at {one[end]['side_px']} px and mpp {one[end]['mpp']}"
            for end in ("best", "worst")
        )
        advice = (
            ": the student switches modes; train it longer at the worse one, or leave that out"
            if one["flagged"]
            else ""
        )
        lines.append(f"{teacher}: centred cosine {best}, {worst}{advice}")
    return lines


def next_step(fidelity: Mapping[str, Mapping[str, float]], name: str) -> str:
    """Return what to do with a student; one that learnt nothing of any teacher is no encoder.

    >>> next_step({"uni2_h": {"cosine": 0.9, "baseline": 0.7}}, "small")
    'next: slidelake extract LAKE --teacher small'
    """
    if not fidelity or any(one["cosine"] > one["baseline"] for one in fidelity.values()):
        return f"next: slidelake extract LAKE --teacher {name}"
    return (
        f"next: distill again under another --name, with more --epochs or more slides: '{name}' is "
        "no better than the mean feature of its teachers"
    )


def _licences(report: dict[str, Any]) -> "dict[str, Licence]":
    """Return the teachers' licences; none of a student of an earlier version."""
    from featurestore import licence_from_json

    return {name: licence_from_json(kept) for name, kept in report.get("licences", {}).items()}


def _verdict(fidelity: dict[str, float]) -> str:
    """Return a warning if a student predicts a teacher worse than the teacher's mean feature."""
    if fidelity["cosine"] > fidelity["baseline"]:
        return ""
    return (
        ": no better than the mean feature, so it has learnt nothing of this teacher yet; train "
        "longer (--epochs) or on more slides"
    )
