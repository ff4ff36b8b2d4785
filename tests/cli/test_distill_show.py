"""`distill --show` lists every setting of a recipe, and `--set` reaches each of them."""

from typing import Any

import pytest

from distill.recipes.recipe_table import RECIPES
from tests.worlds.command_lines import Output, command_line, run_words

SHOW = command_line(
    "distill --recipe gpfm --show --epochs 3 --term contrast=0.1 --set student.head_width=128 "
    "--set terms.1.settings.crops=4 --set views.brightness=0.2 --teacher uni2_h --json"
)
WRONG_TERM = command_line("distill --recipe gpfm --show --set terms.1.settings.crop=4")
WRONG_GROUP = command_line("distill --recipe gpfm --show --set terms.prototypes=64")
NO_LAKE = command_line("distill --teacher uni2_h")


def rows(answer: dict[str, Any]) -> dict[str, tuple[object, str]]:
    return {row["setting"]: (row["value"], row["source"]) for row in answer["settings"]}


def test_every_setting_is_shown_with_value_and_source(capsys: Output) -> None:
    shown = rows(SHOW.run(capsys, {}).value)
    expected = {
        "teachers": (["uni2_h"], "--teacher"),
        "schedule.epochs": (3, "--epochs"),
        "schedule.clip": (1.0, "default"),
        "head_width": (128, "--set"),
        "keep": (0.5, "default"),
        "views.brightness": (0.2, "--set"),
        "terms.0.settings.patch": (0.25, "recipe gpfm"),
        "terms.0.settings.cosine": (0.9, "default"),
        "terms.1.kind": ("self", "recipe gpfm"),
        "terms.1.settings.crops": (4.0, "--set"),
        "terms.1.settings.prototypes": (1024, "default"),
        "terms.2.kind": ("contrast", "--term"),
        "terms.2.settings.temperature": (0.1, "default"),
    }
    assert {name: shown[name] for name in expected} == expected


@pytest.mark.parametrize("name", RECIPES)
def test_each_setting_that_is_shown_can_be_set(capsys: Output, name: str) -> None:
    """Each with its own value: nothing but the source changes."""
    words = ["distill", "--recipe", name, "--show", "--json"]
    shown = rows(run_words(capsys, words).value)
    numbers = {k: x for k, (x, _) in shown.items() if type(x) in (int, float)}
    assert len(numbers) > 12
    sets = [word for path, x in numbers.items() for word in ("--set", f"{path}={x}")]
    again = rows(run_words(capsys, [*words, *sets]).value)
    assert again == {
        path: (value, "--set" if path in numbers else source)
        for path, (value, source) in shown.items()
    }


def test_options_are_checked_together(capsys: Output) -> None:
    """Neither 63 tiles in 2 parts nor 64 in 3 go."""
    words = ["distill", "--recipe", "gpfm", "--show", "--json", "--batch-tiles", "63"]
    shown = rows(run_words(capsys, [*words, "--accumulate", "3", "--term", "contrast"]).value)
    assert shown["schedule.batch_tiles"] == (63, "--batch-tiles")
    assert shown["schedule.accumulate"] == (3, "--accumulate")
    assert shown["terms.2.kind"] == ("contrast", "--term")
    assert "63 tiles over 1 worker x 2 parts" in (
        run_words(capsys, [*words, "--accumulate", "2"], code=None).stderr
    )


def test_the_list_is_read_by_people(capsys: Output) -> None:
    text = run_words(capsys, ["distill", "--recipe", "h0", "--show"]).stdout
    assert any(line.split() == ["head_width", "512", "default"] for line in text.splitlines())
    assert any(line.split() == ["mpps", "-", "default"] for line in text.splitlines())


def test_settings_that_are_not_there_are_refused(capsys: Output) -> None:
    assert "term 'self' has dino, ibot, koleo, crops," in WRONG_TERM.run(capsys, {}, code=2).stderr
    assert "there is no such field" in WRONG_GROUP.run(capsys, {}, code=2).stderr
    assert "Missing argument 'LAKE'" in NO_LAKE.run(capsys, {}, code=2).stderr
    wrong = run_words(capsys, ["distill", "--show", "--set", "brightness=1"], code=2).stderr
    assert "did you mean views.brightness?" in wrong
