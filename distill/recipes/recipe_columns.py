"""The columns of a recipe's teachers in a lake, and the check that none is missing."""

from typing import Any

from distill.errors import DistillError
from distill.recipes.recipe import Recipe
from distill.targets.target_sources import TeacherColumn
from featurestore import Lake, mpp_name
from ingest import TeacherError, find_card
from ingest.teachers import card_name


def check(lake: Lake, recipe: Recipe) -> None:
    """Refuse a recipe for which the lake lacks features, before the run starts.

    Raises:
        DistillError: a teacher's features are missing at an mpp, or exist for some tiles only.
    """
    completeness = {(f["teacher"], f["mpp"]): f["complete"] for f in lake.info()["features"]}
    for teacher, mpp in recipe.needs(lake.config.mpps):
        needed_features = f"'{teacher}' for every tile at mpp {mpp_name(mpp)}"
        if not completeness.get((teacher, mpp)):
            msg = (
                f"recipe '{recipe.name}' needs features of {needed_features}: run "
                f"slidelake extract {lake.uri} --teacher {teacher} --mpp {mpp_name(mpp)}"
            )
            raise DistillError(msg)
        restrictions = {"where", "share"} & set(lake.identity(teacher, mpp=mpp))
        if restrictions:
            msg = (
                f"recipe '{recipe.name}' needs {needed_features}; it was run on some of them "
                f"(--{', --'.join(sorted(restrictions))})"
            )
            raise DistillError(msg)


def columns_of(lake: Lake, recipe: Recipe) -> list[TeacherColumn]:
    """Return the columns of the recipe's teachers."""
    at = dict(reversed(recipe.needs(lake.config.mpps)))
    return [_column(lake, teacher, mpp=at[teacher]) for teacher in recipe.teachers]


def _column(lake: Lake, teacher: str, *, mpp: float) -> TeacherColumn:
    identity: dict[str, Any] = lake.identity(teacher, mpp=mpp)
    dim = lake.teachers(mpp=mpp)[teacher]
    if identity.get("pooling") != "patches":
        return TeacherColumn(name=teacher, teacher=_card_name(teacher), dim=dim)
    tokens = int(identity["tokens"])
    card = find_card(lake.store, teacher)
    sampled = "sample" in identity
    places = teacher.partition("~")[0].replace(":patches", ":places") if sampled else None
    if places is not None:
        lake.check_teacher(places, mpp=mpp)
    return TeacherColumn(
        name=teacher,
        teacher=_card_name(teacher),
        dim=dim // tokens,
        tokens=tokens,
        places=places,
        side=card.grid[0] if card.grid else None,
    )


def _card_name(teacher: str) -> str:
    """Return the card's name of a column; several columns of one card weigh as one teacher."""
    try:
        return card_name(teacher)
    except TeacherError:
        # Imported columns may have any name.
        return teacher
