"""`slidelake probe`: classes of tiles from features."""

from dataclasses import dataclass
from typing import Annotated

import typer

from commands.options.dataclass_options import command
from commands.options.field_options import Changes, FieldOption, FieldOptions
from commands.options.path_kind import PathKind
from commands.options.printing import print_answer
from commands.options.set_fields import parse_assignment, with_values
from commands.options.shared_options import JsonOpt, LakeArg, LikeOpt, SetOpt
from commands.studies.study_lines import probe_text
from commands.studies.study_options import (
    ANY_FEATURES,
    COMPARISON_OPTIONS,
    FEATURE_OPTIONS,
    ID_COLUMN_OPTIONS,
    SPLITS,
    UNSEEN_OPTION,
    missing_option,
)
from downstream.probes.probe_spec import ProbeSpec
from downstream.run.study_spec import LabelOptions

app = typer.Typer()

PROBE_TEMPLATE = ProbeSpec(labels=LabelOptions(table="", target=("",)), features=ANY_FEATURES)
PROBE_OPTIONS = (
    FieldOption(
        flag="--labels",
        path="labels.table",
        required=True,
        text="Table of tiles: slide_id, tile_id or x and y (level 0), target.",
        path_kind=PathKind.FILES,
    ),
    FieldOption(flag="--target", path="labels.target", required=True, text="Column of classes."),
    *FEATURE_OPTIONS,
    FieldOption(flag="--shots", path="probe.shots", least=1),
    FieldOption(flag="--draws", path="probe.draws", least=1),
    FieldOption(flag="--tiles", path="probe.tiles", least=1),
    FieldOption(flag="--folds", path="probe.folds", panel=SPLITS),
    UNSEEN_OPTION,
    FieldOption(flag="--site", path="sites", panel=SPLITS, metavar="COLUMN"),
    *COMPARISON_OPTIONS,
    *ID_COLUMN_OPTIONS,
    FieldOption(flag="--seed", path="probe.seed"),
    FieldOption(flag="--at", path="features.version", value_type=str | None),
)


@dataclass(frozen=True, kw_only=True)
class ProbeCommandOptions:
    """Options of `slidelake probe`: fields of its settings, and the lake."""

    lake: LakeArg
    settings: Annotated[Changes, FieldOptions(PROBE_TEMPLATE, PROBE_OPTIONS)]
    assignments: SetOpt = ()
    like: LikeOpt = None
    json: JsonOpt = False


@command(app, "probe")
def probe_command(options: ProbeCommandOptions) -> None:
    """Predict classes of labelled tiles by a linear probe and nearest neighbours.

    Folds are over patients.

    Example: slidelake probe my-lake --labels tiles.csv --target tissue --features uni2_h --shots 10
    """
    spec = probe_spec(options)
    from downstream.probes.tile_probe import run_tile_probe

    probe_result = run_tile_probe(options.lake, spec)
    print_answer(probe_result, as_json=options.json, text=probe_text(probe_result))


def probe_spec(options: ProbeCommandOptions) -> ProbeSpec:
    """Return the settings that the command line describes."""
    base = PROBE_TEMPLATE if options.like is None else _spec_of_run(options.lake, options.like)
    assigned = dict(parse_assignment(base, text) for text in options.assignments)
    changes = {**options.settings, **assigned}
    if options.like is None and (msg := missing_option(PROBE_OPTIONS, changes)):
        raise typer.BadParameter(msg)
    return with_values(base, changes)


def _spec_of_run(lake_uri: str, run: str) -> ProbeSpec:
    from downstream import saved_settings
    from featurestore import open_lake

    return ProbeSpec.from_json(saved_settings(open_lake(lake_uri), run))
