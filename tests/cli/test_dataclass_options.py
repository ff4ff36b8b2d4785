"""Frozen dataclasses as options: what typer reads of them, and what a command receives."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import typer
from typer.core import TyperGroup
from typer.testing import CliRunner

import slidelake
from commands.options.dataclass_options import command
from commands.options.field_options import Changes, FieldOption, FieldOptions
from commands.options.set_fields import (
    field_paths,
    parse_assignment,
    with_assignments,
    with_values,
)
from commands.studies.mil import MIL_OPTIONS
from commands.studies.probe import PROBE_TEMPLATE
from commands.studies.study_options import MIL_TEMPLATE, SURVIVAL_TEMPLATE
from commands.studies.survival import SURVIVAL_OPTIONS


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A grid of tiles.

    Attributes:
        mpps: Microns per pixel;
            repeat for several.
        tile_px: Side of a tile.
        codec: Codec of a tile.
    """

    PANEL = "Grid"

    mpps: Annotated[tuple[float, ...], typer.Option("--mpp")] = (0.5,)
    tile_px: int | None = None
    codec: Literal["jpeg", "png"] = "jpeg"


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A schedule of training.

    Attributes:
        epochs: Most passes.
        rate: Size of a `step`.
    """

    epochs: int = 30
    rate: float | None = None


@dataclass(frozen=True, kw_only=True)
class Run:
    """The settings of a run.

    Attributes:
        names: Names of models.
        schedule: How it trains.
        terms: Parts of the loss.
        weights: Weight of each part.
    """

    names: tuple[str, ...] = ()
    schedule: Schedule = field(default_factory=Schedule)
    terms: tuple[Schedule, ...] = (Schedule(), Schedule(epochs=2))
    weights: dict[str, float] = field(default_factory=dict)


RUN_OPTIONS = (
    FieldOption(flag="--model", path="names", required=True),
    FieldOption(flag="--epochs", path="schedule.epochs", panel="Training", least=1),
)


@dataclass(frozen=True, kw_only=True)
class TrialOptions:
    """Options of a command.

    Attributes:
        lake: Folder of the lake.
        only: Take this slide.
        dry_run: Write nothing.
    """

    lake: Annotated[Path, typer.Argument(metavar="LAKE")]
    grid: Grid
    settings: Annotated[Changes, FieldOptions(Run(), RUN_OPTIONS)]
    only: tuple[str, ...] = ()
    dry_run: bool = False
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False


Parse = Callable[..., TrialOptions]


def parameters_of(app: typer.Typer, name: str) -> dict[str, Any]:
    """Return the parameters of a command by their longest way to write them."""
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    return {max(parameter.opts, key=len): parameter for parameter in group.commands[name].params}


@pytest.fixture
def received() -> list[TrialOptions]:
    """Return the options that the command has received."""
    return []


@pytest.fixture
def app(received: list[TrialOptions]) -> typer.Typer:
    """Return an application with one command of `TrialOptions`."""
    application = typer.Typer()
    application.callback()(lambda: None)

    @command(application, "trial")
    def trial_command(options: TrialOptions) -> None:
        """Try a lake."""
        received.append(options)

    return application


@pytest.fixture
def parse(app: typer.Typer, received: list[TrialOptions]) -> Parse:
    """Return the options that a command receives for some words."""

    def parse(*words: str) -> TrialOptions:
        outcome = CliRunner().invoke(app, ["trial", *words], catch_exceptions=False)
        assert outcome.exit_code == 0, outcome.output
        return received.pop()

    return parse


def test_a_command_receives_its_dataclass_with_groups(parse: Parse) -> None:
    defaults = parse("my-lake")
    assert defaults == TrialOptions(lake=Path("my-lake"), grid=Grid(), settings={})
    words = "my-lake --mpp 1 --mpp 2 --tile-px 512 --codec png --only a --only b --dry-run --json"
    assert parse(*words.split()) == TrialOptions(
        lake=Path("my-lake"),
        grid=Grid(mpps=(1.0, 2.0), tile_px=512, codec="png"),
        settings={},
        only=("a", "b"),
        dry_run=True,
        json=True,
    )


def test_options_of_settings_are_those_that_were_given(parse: Parse) -> None:
    changes = parse("my-lake", "--model", "abmil", "--model", "mean", "--epochs", "30").settings
    assert changes == {"names": ("abmil", "mean"), "schedule.epochs": 30}


def test_help_panel_and_choices_are_those_of_the_fields(app: typer.Typer) -> None:
    parameters = parameters_of(app, "trial")
    mpp, epochs = parameters["--mpp"], parameters["--epochs"]
    assert (mpp.help, mpp.rich_help_panel, mpp.multiple) == (
        "Microns per pixel; repeat for several.",
        "Grid",
        True,
    )
    assert (epochs.help, epochs.rich_help_panel, epochs.default) == ("Most passes.", "Training", 30)
    assert parameters["--model"].help == "Names of models. Required, unless --like gives it."
    assert parameters["--dry-run"].secondary_opts == ["--no-dry-run"]
    assert parameters["--json"].secondary_opts == []
    for words in (["my-lake", "--codec", "gif"], ["my-lake", "--epochs", "0"], []):
        assert CliRunner().invoke(app, ["trial", *words]).exit_code == 2


def test_a_field_without_documentation_is_refused() -> None:
    @dataclass(frozen=True)
    class Silent:
        """Options without a word on them."""

        size: int = 1

    with pytest.raises(TypeError, match="field 'size' of Silent has no entry under Attributes"):

        @command(typer.Typer(), "silent")
        def silent_command(options: Silent) -> None:
            """Do nothing."""


# ---------------------------------------------------------------------- --set


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("schedule.epochs=7", 7),
        ("schedule.rate=1e-3", 1e-3),
        ("schedule.rate=none", None),
        ("names=a, b", ("a", "b")),
        ("terms.1.epochs=5", 5),
        ("weights.dino=0.5", 0.5),
        ('weights={"dino": 2}', {"dino": 2}),
    ],
)
def test_a_value_is_read_in_the_type_of_its_field(text: str, value: object) -> None:
    path, parsed = parse_assignment(Run(), text)
    assert (path, parsed) == (text.partition("=")[0], value)


def test_all_changes_are_applied_at_once() -> None:
    changed = with_assignments(
        Run(), ["schedule.epochs=7", "schedule.rate=0.1", "terms.1.epochs=5", "weights.dino=0.5"]
    )
    assert changed == Run(
        schedule=Schedule(epochs=7, rate=0.1),
        terms=(Schedule(), Schedule(epochs=5)),
        weights={"dino": 0.5},
    )
    assert with_values(Run(), {}) == Run()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("schedule.epochs", "give FIELD=VALUE; fields are names, schedule.epochs, schedule.rate"),
        ("schedule.epoch=1", "no such field; fields are names, schedule.epochs, schedule.rate"),
        ("schedule=1", "give one of its fields, schedule.epochs, schedule.rate"),
        ("terms.2.epochs=1", "no such field"),
        ("schedule.epochs=ten", "schedule.epochs is a whole number"),
        ("schedule.epochs=1.5", "schedule.epochs is a whole number"),
        ("schedule.rate=fast", "schedule.rate is a number or none"),
    ],
)
def test_a_wrong_assignment_is_refused_with_what_is_allowed(text: str, message: str) -> None:
    with pytest.raises(typer.BadParameter) as refused:
        parse_assignment(Run(), text)
    assert message in str(refused.value)


@pytest.mark.parametrize("template", [MIL_TEMPLATE, SURVIVAL_TEMPLATE, PROBE_TEMPLATE])
def test_every_field_of_a_study_can_be_set_to_the_value_that_it_has(template: object) -> None:
    paths = list(field_paths(template))
    assert len(paths) > 15
    for path in paths:
        value: Any = template
        for name in path.split("."):
            value = getattr(value, name)
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        assert parse_assignment(template, f"{path}={text}")[1] == value or text == "", path


@pytest.mark.parametrize("options", [MIL_OPTIONS, SURVIVAL_OPTIONS])
def test_no_two_options_set_one_field(options: tuple[FieldOption, ...]) -> None:
    paths = [option.path for option in options]
    assert len(set(paths)) == len(paths)


def test_resources_have_the_same_words_in_every_command() -> None:
    for name in ("build", "distill", "extract"):
        assert {"--workers", "--device", "--cpus-per-worker", "--gpus-per-worker"} <= set(
            parameters_of(slidelake.app, name)
        )
    names = ("distill", "evaluate", "mil", "survival")
    flags = {flag for name in names for flag in parameters_of(slidelake.app, name)}
    assert {"--workers", "--device", "--cpus-per-worker", "--gpus-per-worker"} <= flags
    assert not {"--cpus", "--gpus", "--num-cpus", "--num-gpus", "--search"} & flags
