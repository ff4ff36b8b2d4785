"""The tables of students and terms: what they name is there, and docs are made of them."""

from pathlib import Path

import pytest

from distill.errors import DistillError
from distill.recipes.recipe_table import RECIPES, make_recipe, recipes_help
from distill.recipes.student_settings import StudentSettings
from distill.students.student_kind import StudentKind
from distill.students.student_table import STUDENT_KINDS, kind_of, student_kind
from distill.terms.term import TermLoss
from distill.terms.term_table import TERMS, term_class, terms_help, terms_markdown

DOCS = Path(__file__).resolve().parents[3] / "docs"


def test_each_kind_of_settings_is_in_the_table() -> None:
    for name in STUDENT_KINDS:
        assert isinstance(student_kind(name), StudentKind)
    assert {kind.__name__ for kind in StudentSettings.__subclasses__()} == set(STUDENT_KINDS)


@pytest.mark.parametrize("name", RECIPES)
def test_a_student_that_extract_restores_sees_no_pixels(name: str) -> None:
    recipe = make_recipe(name, ("a", "b") if name not in {"g2l", "h0"} else ("a",))
    assert recipe.pixels == (kind_of(recipe).restore is None)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(DistillError, match="no kind of student 'SoundStudent'; there are Context"):
        student_kind("SoundStudent")


def test_settings_of_another_kind_are_refused() -> None:
    recipe = make_recipe("shazam", ("a", "b"))
    others = [type(make_recipe(name, ("a",)).student) for name in ("g2l", "pathme")]
    for other in others:
        with pytest.raises(TypeError, match=f"trains a FusionStudent, not a {other.__name__}"):
            recipe.student_as(other)


@pytest.mark.parametrize("kind", TERMS)
def test_each_term_of_the_table_can_be_imported(kind: str) -> None:
    assert issubclass(term_class(kind), TermLoss)


def test_help_and_docs_are_made_of_the_tables() -> None:
    assert terms_markdown() in (DOCS / "distillation.md").read_text()
    assert all(f" {kind}," in terms_help() or f" {kind}." in terms_help() for kind in TERMS)
    for name, function in RECIPES.items():
        first = str(function.__doc__).partition("\n")[0].rstrip(".")
        assert f" {name}: {first};" in recipes_help() or f" {name}: {first}." in recipes_help()
        assert f"### {name}\n" in (DOCS / "distillation.md").read_text()
