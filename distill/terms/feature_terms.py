"""The check of terms of students of features: their settings and teachers."""

from collections.abc import Collection

from distill.errors import DistillError
from distill.recipes.recipe import Recipe, Term


def check_term(recipe: Recipe, term: Term, settings: Collection[str]) -> None:
    """Refuse a term with settings or teachers that do not exist.

    Args:
        recipe: the recipe that has the term.
        term: the term to check.
        settings: names of the settings of the term's kind.

    Raises:
        DistillError: there is such a setting or teacher.
    """
    wrong = sorted({*term.settings} - {*settings})
    unknown = sorted({*term.teachers} - {*recipe.teachers})
    if wrong or unknown or term.labels:
        msg = (
            f"term '{term.kind}' given settings {wrong}, teachers {unknown}, labels "
            f"'{term.labels or 'none'}'; it has settings {list(settings)}, the recipe teachers "
            f"{list(recipe.teachers)}, and labels are for students of pixels"
        )
        raise DistillError(msg)
