"""Names of runs: settings that came later do not change those of runs that were there before."""

import hashlib
import json

import pytest

from distill.recipes.recipe_table import make_recipe
from distill.train.distill_run import _hashed_recipe

TEACHERS = {"h0": ("a", "a:patches"), "g2l": ("a",)}
#: The hash of each recipe before there were labels, shifts, sizes, second students,
#: coresets and self-paced weights.
BEFORE = {
    "agglomerate": "b5cfb7e81868738b",
    "xmag": "67b7765581dee1c2",
    "gpfm": "9d26b182611b32a1",
    "h0": "b034ca3ab2408ba4",
    "g2l": "a1468b09e12ce9f6",
    "shazam": "5c025b55b37fef6c",
    "pathme": "c5a425bfecc40b0f",
}


@pytest.mark.parametrize("name", BEFORE)
def test_later_settings_at_their_defaults_are_in_no_hash(name: str) -> None:
    recipe = make_recipe(name, TEACHERS.get(name, ("a", "b")))
    text = json.dumps(_hashed_recipe(recipe), sort_keys=True, default=str)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == BEFORE[name]
