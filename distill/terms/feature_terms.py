"""What the terms of students of features have in common: their settings are checked."""

from collections.abc import Collection

from distill.errors import DistillError
from distill.recipes.recipe import Recipe, Term


def check_term(recipe: Recipe, term: Term, settings: Collection[str]) -> None:
    """Refuse a term with settings or teachers that are not there.

    Args:
        recipe: whose it is.
        term: to be checked.
        settings: that its kind has.

    Raises:
        DistillError: there is one.
    """
    wrong = sorted({*term.settings} - {*settings})
    unknown = sorted({*term.teachers} - {*recipe.teachers})
    if wrong or unknown:
        msg = (
            f"term '{term.kind}' given settings {wrong}, teachers {unknown}; it has settings "
            f"{list(settings)}, the recipe teachers {list(recipe.teachers)}"
        )
        raise DistillError(msg)
