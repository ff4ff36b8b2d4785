"""Numbers in messages agree with their nouns: they are written by `counted`."""

import re
from collections.abc import Iterator

import pytest

from cluster import counted
from featurestore import messages
from slidelake import PACKAGES
from tests.conftest import ROOT

#: Mathematics that imports nothing of ours; its errors are of wrong calls.
ALONE = (
    "downstream/measures/",
    "downstream/mil/",
    "downstream/report/plots/",
    "downstream/splits/folds.py",
    "downstream/splits/site_folds.py",
    "downstream/survival/survival_losses.py",
    "downstream/survival/survival_scores.py",
    "distill/evaluate/measures/",
    "distill/students/heads.py",
    "featurestore/tables/lance_rows.py",
)
NOUNS = "slide tile file fragment row version mask patient column image picture feature site shard"
PLURAL = re.compile(r"\{len\([^{}]*\)(:,)?\} (?:\w+ )?(" + NOUNS.replace(" ", "|") + r")s\b")


def lines_of(text: str) -> Iterator[str]:
    """Yield the lines with a number before a plural, but for `1 of 5 slides` and the like."""
    yield from (line.strip() for line in text.splitlines() if PLURAL.search(line))


def test_a_number_in_front_of_a_noun_is_counted() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {line}"
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        if not str(path.relative_to(ROOT)).startswith(ALONE)
        for line in lines_of(path.read_text())
    ]
    assert found == []


def test_the_check_itself_finds_what_it_looks_for() -> None:
    text = 'f"{len(done)} slides"\nf"{len(a):,} other images"\nf"{counted(len(a), \'tile\')}"\n'
    assert list(lines_of(text)) == ['f"{len(done)} slides"', 'f"{len(a):,} other images"']


@pytest.mark.parametrize("number", [0, 1, 2, 1200])
@pytest.mark.parametrize(("noun", "verb"), [("slide", ""), ("class", "have"), ("mask", "match")])
def test_both_functions_write_alike(number: int, noun: str, verb: str) -> None:
    assert counted(number, noun, verb) == messages.counted(number, noun, verb)
