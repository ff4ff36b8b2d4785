"""The recipes: each is a function of the teachers that returns a frozen configuration.

The command line sets a few fields. What a recipe keeps and changes of its source is in
docs/distillation.md.
"""

import difflib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

from distill.errors import DistillError
from distill.recipes.recipe import Recipe, Schedule, Term
from distill.recipes.student_settings import (
    ContextStudent,
    FusionStudent,
    RegionStudent,
    RobustStudent,
    TileStudent,
)

Teachers = tuple[str, ...]


def agglomerate(teachers: Teachers) -> Recipe:
    """Distil the embeddings and patch tokens of all teachers into one student.

    Source: the union of AM-RADIO, UNIC and OMNI.
    """
    return Recipe(
        name="agglomerate",
        teachers=teachers,
        student=TileStudent(),
        terms=(Term(kind="match"),),
        weighting="keep-max",
    )


def xmag(teachers: Teachers) -> Recipe:
    """Distil teachers of a fine mpp into a student of a coarse one; two mpps.

    Targets are the mean and the grid of the teachers' features of the fine tiles under a tile.
    Source: XMAG (arXiv 2509.23097).
    """
    match = Term(kind="match", settings={"grid": 0.5})
    return Recipe(name="xmag", teachers=teachers, student=TileStudent(), terms=(match,), levels=2)


def gpfm(teachers: Teachers) -> Recipe:
    """Distil expert teachers, beside self-distillation by DINO, iBOT and KoLeo.

    Source: GPFM (arXiv 2407.18449).
    """
    expert = Term(kind="match", settings={"patch": 0.25})
    return Recipe(
        name="gpfm",
        teachers=teachers,
        student=TileStudent(),
        terms=(expert, Term(kind="self")),
    )


def h0(teachers: Teachers) -> Recipe:
    """Match one teacher's class and patch tokens, and its assignments to prototypes.

    Source: H0-mini (arXiv 2501.16239).
    """
    cards = {name.partition("~")[0].partition(":")[0].partition("@")[0] for name in teachers}
    if len(cards) > 1:
        msg = f"recipe 'h0' is of a single teacher; {', '.join(sorted(cards))} given"
        raise DistillError(msg)
    return Recipe(
        name="h0",
        teachers=teachers,
        student=TileStudent(),
        terms=(Term(kind="prototypes", weight=0.1), Term(kind="match")),
    )


def g2l(teachers: Teachers) -> Recipe:
    """Distil one large teacher on few slides of one cancer, by a log-sum loss.

    Source: G2L (arXiv 2510.11176).
    """
    if len(teachers) > 1:
        msg = f"recipe 'g2l' is of a single teacher; {', '.join(teachers)} given"
        raise DistillError(msg)
    return Recipe(
        name="g2l",
        teachers=teachers,
        student=TileStudent(),
        terms=(Term(kind="log-sum"),),
        head="normed",
    )


def shazam(teachers: Teachers) -> Recipe:
    """Fuse the teachers' features of a tile by cross-attention; no pixels.

    The student reads no pixels. `agglomerate` can distil its vector into a student of pixels, once
    the vector is a column of the lake.

    Source: Shazam.
    """
    if len(teachers) < 2:
        msg = f"recipe 'shazam' fuses teachers: {len(teachers)} given, at least 2 needed"
        raise DistillError(msg)
    return Recipe(
        name="shazam",
        teachers=teachers,
        student=FusionStudent(),
        terms=(Term(kind="reconstruct"), Term(kind="fuse", weight=0.01)),
        schedule=Schedule(batch_tiles=256, learning_rate=1e-3, epochs=20),
    )


def pathme(teachers: Teachers) -> Recipe:
    """Train a region encoder, self-supervised on one teacher's cached grids at three mpps.

    It sees the first teacher's features, and also predicts those of the other teachers; no pixels.

    Source: PatHME.
    """
    return Recipe(
        name="pathme",
        teachers=teachers,
        student=RegionStudent(),
        terms=(
            Term(kind="dino"),
            Term(kind="ibot"),
            Term(kind="koleo", weight=0.1),
            Term(kind="expert"),
            Term(kind="hierarchy", weight=10.0),
        ),
        levels=3,
        schedule=Schedule(batch_tiles=16, learning_rate=5e-4, epochs=20),
    )


def context(teachers: Teachers) -> Recipe:
    """Reconstruct all teachers' features of a region's tiles from any teacher's; nested mpps.

    The student sees a coarse tile and the finer tiles under it, some of them hidden; no pixels. Its
    vector is that of the coarse tile in its context.

    Source: TICON (arXiv 2512.21331).
    """
    return Recipe(
        name="context",
        teachers=teachers,
        student=ContextStudent(),
        terms=(Term(kind="context"),),
        levels=2,
        schedule=Schedule(batch_tiles=32, learning_rate=5e-4, epochs=20),
    )


def robust(teachers: Teachers) -> Recipe:
    """Train a small head on a frozen column that depends less on stain and site.

    The first teacher is the column, the others are its stain variants (`TEACHER@S1`); no pixels.

    Source: Mettle's head, SPECTRA's acquisition-aware InfoNCE.
    """
    return Recipe(
        name="robust",
        teachers=teachers,
        student=RobustStudent(),
        terms=(Term(kind="acquisition"), Term(kind="keep")),
        schedule=Schedule(batch_tiles=256, learning_rate=1e-3, epochs=20),
    )


RECIPES: dict[str, Callable[[Teachers], Recipe]] = {
    "agglomerate": agglomerate,
    "context": context,
    "g2l": g2l,
    "gpfm": gpfm,
    "h0": h0,
    "pathme": pathme,
    "robust": robust,
    "shazam": shazam,
    "xmag": xmag,
}


def recipes_help() -> str:
    """Return the help of `--recipe`: each recipe with the first line of its function's docstring.

    >>> "; shazam: Fuse the teachers' features" in recipes_help()
    True
    """
    summaries = [
        f"{name}: {inspect.cleandoc(function.__doc__ or '').partition(chr(10))[0].rstrip('.')}"
        for name, function in RECIPES.items()
    ]
    return f"Name of the recipe. {'; '.join(summaries)}."


def make_recipe(name: str, teachers: Teachers, **changes: Any) -> Recipe:  # noqa: ANN401
    """Return a named recipe with some fields changed; fields passed as None are not changed.

    Fields of the student, the views and the schedule are passed by name as well; `extra_terms` are
    added to the recipe's terms.

    Raises:
        DistillError: the recipe is not known, or has no such field.

    Examples:
        >>> recipe = sl.make_recipe("agglomerate", ("uni2_h", "virchow2"), epochs=5, head_width=256)
        >>> recipe.schedule.epochs, recipe.head_width
        (5, 256)
    """
    if name not in RECIPES:
        close = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        msg = f"no recipe '{name}': {hint}known are {', '.join(RECIPES)}"
        raise DistillError(msg)
    settings = {key: setting for key, setting in changes.items() if setting is not None}
    recipe = RECIPES[name](teachers)
    extra: tuple[Term, ...] = tuple(settings.pop("extra_terms", ()))
    settings.setdefault("terms", (*recipe.terms, *extra))
    return _with_settings(recipe, settings)


def _with_settings(recipe: Recipe, settings: dict[str, Any]) -> Recipe:
    recipe_fields = {field.name for field in fields(Recipe)}
    replaced = {key: settings[key] for key in recipe_fields & set(settings)}
    for part in ("student", "views", "tiles", "schedule"):
        part_settings = replaced.get(part, getattr(recipe, part))
        if not is_dataclass(part_settings):
            continue
        names = {field.name for field in fields(part_settings)} & set(settings)
        replaced[part] = replace(part_settings, **{key: settings.pop(key) for key in names})  # type: ignore[type-var]
    wrong = sorted(set(settings) - recipe_fields)
    if wrong:
        msg = f"recipe '{recipe.name}' trains a {type(recipe.student).__name__}; it has no {wrong}"
        raise DistillError(msg)
    return replace(recipe, **replaced)


def parse_terms(texts: Sequence[str]) -> tuple[Term, ...]:
    """Parse terms of the form KIND[:TEACHER][/LABELS][=WEIGHT].

    >>> parse_terms(["contrast=0.1"])[0].weight
    0.1
    >>> term = parse_terms(["kl:logits/clinical.grade"])[0]
    >>> term.teachers, term.labels
    (('logits',), 'clinical.grade')

    Raises:
        DistillError: a term is not of this form.
    """
    return tuple(_parse_term(text) for text in texts)


def _parse_term(text: str) -> Term:
    term_name, _, weight = text.partition("=")
    column_name, _, labels = term_name.partition("/")
    kind, _, teacher = column_name.partition(":")
    try:
        number = float(weight) if weight else 1.0
    except ValueError as error:
        msg = f"term '{text}' has no number after '='; give KIND[:TEACHER][/LABELS][=WEIGHT]"
        raise DistillError(msg) from error
    teachers = (teacher,) if teacher else ()
    return Term(kind=kind, weight=number, teachers=teachers, labels=labels)
