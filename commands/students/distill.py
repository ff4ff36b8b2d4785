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
    LakeArg,
    LikeOpt,
    MppsOpt,
    PermissionOpt,
    QuietOpt,
    SetOpt,
    TeachersOpt,
)
from commands.options.worker_options import WorkerOptions
from distill.recipes.recipe_table import recipes_help
from distill.terms.term_table import terms_help

if TYPE_CHECKING:
    from distill import Recipe
    from featurestore import Licence

app = typer.Typer()
DEFAULT_RECIPE = "agglomerate"


@dataclass(frozen=True, kw_only=True)
class RecipeOptions:
    """The fields of a recipe that have an option; options left out keep the recipe's values.

    Attributes:
        architecture: timm's name of the student's network.
        input_px: Side in pixels of the student's input.
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
        cache_pixels: GB of decoded tiles that each machine keeps in $SLIDELAKE_PIXEL_CACHE for
            later epochs.
    """

    lake: LakeArg
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
    recipe = chosen_recipe(options)
    from distill.train.ray_train import distill

    report = distill(
        options.lake,
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
    from distill.recipes.recipe_table import make_recipe, parse_terms

    saved = _saved_changes(options.lake, options.like, options.recipe) if options.like else {}
    teachers = options.teachers or saved.get("teachers", ())
    if not teachers:
        msg = "Missing option '--teacher': name a teacher, or a run by --like RUN"
        raise typer.BadParameter(msg)
    name = options.recipe or saved.get("name", DEFAULT_RECIPE)
    kept = {field: setting for field, setting in saved.items() if field not in ("name", "teachers")}
    changes = {**kept, **options.fields.changes()}
    if options.mpps:
        changes["mpps"] = options.mpps
    terms = parse_terms(options.fields.terms)
    if "terms" in changes:
        changes["terms"] = (*changes["terms"], *terms)
    else:
        changes["extra_terms"] = terms
    return with_assignments(make_recipe(name, teachers, **changes), options.assignments)


def _saved_changes(lake_uri: str, run: str, recipe: str | None) -> dict[str, Any]:
    """Return the recipe fields of a run as arguments of `make_recipe`.

    If another recipe is named, only the fields that all recipes have are kept: terms, student and
        levels
    are the recipe's own.
    """
    from distill.recipes.recipe import Term
    from featurestore import open_lake

    saved = saved_config(open_lake(lake_uri), run, "recipe")
    parts = {name: saved.pop(name) for name in ("student", "views", "schedule")}
    terms = saved.pop("terms")
    changes = {
        name: tuple(setting) if isinstance(setting, list) else setting
        for name, setting in saved.items()
    }
    changes |= {**parts["views"], **parts["schedule"]}
    if recipe in (None, changes["name"]):
        changes |= parts["student"]
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
    speed = f"{report['tiles_per_s']:,.0f} tiles/s, {report['data_wait']:.1%} waiting for data"
    return [
        *lines,
        f"{report['steps']} steps, {speed}; runs/{report['run']}/curve.png",
        f"student '{name}' is in the lake",
        *([licences_text(licences)] if (licences := _licences(report)) else []),
        next_step(report["fidelity"], name),
    ]


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
