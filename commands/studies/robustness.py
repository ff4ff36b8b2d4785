"""`slidelake robustness`: how far columns of features know biology from sites."""

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from cluster.progress_text import counted
from commands.options.dataclass_options import command
from commands.options.field_options import Changes, FieldOption, FieldOptions
from commands.options.path_kind import PathKind
from commands.options.printing import print_answer
from commands.options.set_fields import parse_assignment, with_values
from commands.options.shared_options import JsonOpt, LakeArg, LikeOpt, QuietOpt, SetOpt
from commands.studies.study_options import (
    ANY_FEATURES,
    FEATURE_OPTIONS,
    TABLE_OPTIONS,
    missing_option,
)
from downstream.robustness.robustness_spec import RobustnessSpec
from downstream.run.study_spec import LabelOptions

app = typer.Typer()

ROBUSTNESS_TEMPLATE = RobustnessSpec(labels=LabelOptions(table=""), features=ANY_FEATURES, sites="")
ROBUSTNESS_OPTIONS = (
    *FEATURE_OPTIONS,
    FieldOption(flag="--site", path="sites", required=True, metavar="COLUMN"),
    FieldOption(
        flag="--labels",
        path="labels.table",
        text="Table of slides or patients, or of tiles (slide_id, tile_id or x and y), with the "
        "classes and the sites; lake:NAME for one of the lake. Without it only --site tcga.",
        path_kind=PathKind.FILES,
    ),
    FieldOption(
        flag="--target",
        path="labels.target",
        text="Column of classes; without it the site probe alone is made.",
    ),
    FieldOption(flag="--unit", path="measures.unit"),
    FieldOption(flag="--samples", path="measures.samples", least=8),
    FieldOption(flag="--folds", path="measures.folds", least=2),
    FieldOption(flag="--replicates", path="measures.replicates", least=2),
    FieldOption(flag="--trials", path="measures.trials", least=1),
    *TABLE_OPTIONS,
    FieldOption(flag="--seed", path="measures.seed"),
    FieldOption(flag="--at", path="features.version", value_type=str | None),
)


@dataclass(frozen=True, kw_only=True)
class RobustnessCommandOptions:
    """Options of `slidelake robustness`: fields of its settings, and the lake."""

    lake: LakeArg
    settings: Annotated[Changes, FieldOptions(ROBUSTNESS_TEMPLATE, ROBUSTNESS_OPTIONS)]
    assignments: SetOpt = ()
    like: LikeOpt = None
    quiet: QuietOpt = False
    json: JsonOpt = False


@command(app, "robustness")
def robustness_command(options: RobustnessCommandOptions) -> None:
    """Measure how far features know biology from sites: a robustness passport for each column.

    Features carry the site (stain, scanner, preparation) beside the biology, and a model may learn
    the one for the other. All columns are measured on the same slides, or on the same tiles where
    the labels name tiles: CRoMa with its worst tenth, the robustness index RI and MaRI, the loss of
    probes whose training is confounded (APD, nIPD), a clustering score, and how well the site can
    be told out of fold by patient; each with an interval over patients. It needs a class at two
    sites or more, and a site with two classes.

    Example: slidelake robustness my-lake --features uni2_h --features virchow2 --labels labels.csv
    --target grade --site hospital

    Example: slidelake robustness my-lake --features uni2_h --site tcga
    """
    spec = robustness_spec(options)
    from downstream.robustness.robustness_run import run_passport

    passport = run_passport(options.lake, spec)
    print_answer(passport, as_json=options.json, text=passport_text(passport))


def robustness_spec(options: RobustnessCommandOptions) -> RobustnessSpec:
    """Return the settings that the command line describes."""
    base = ROBUSTNESS_TEMPLATE
    if options.like is not None:
        base = _spec_of_run(options.lake, options.like)
    assigned = dict(parse_assignment(base, text) for text in options.assignments)
    changes = {**options.settings, **assigned}
    if options.like is None and (msg := missing_option(ROBUSTNESS_OPTIONS, changes)):
        raise typer.BadParameter(msg)
    return with_values(base, changes)


def passport_text(passport: dict[str, Any]) -> str:
    """Return the measures of each column, what is undefined, and what was left out."""
    from downstream.robustness.robustness_measures import MEASURES

    lines: list[str] = []
    reasons: dict[str, None] = {}
    for column, metrics in passport["metrics"].items():
        lines.append(f"{column}:")
        for name, measure in metrics["measures"].items():
            shown = MEASURES[name].shown
            if measure["estimate"] is None:
                lines.append(f"  {shown:<19} undefined")
                reasons[f"{shown}: {measure['undefined']}"] = None
                continue
            better = "" if measure["higher_is_better"] else ", lower is better"
            estimate = f"{measure['estimate']:.3f}"
            interval = f"({measure['low']:.3f} to {measure['high']:.3f})"
            lines.append(f"  {shown:<19} {estimate} {interval}{better}")
    counts = (
        f"{counted(passport['samples'], passport['unit'])} of "
        f"{counted(passport['patients'], 'patient')} at "
        f"{counted(len(passport['site']['patients']), 'site')}"
    )
    page = f"runs/{passport['run']}/report.html"
    return "\n".join([*lines, *reasons, counts, *passport["notes"], page])


def _spec_of_run(lake_uri: str, run: str) -> RobustnessSpec:
    from downstream import saved_settings
    from featurestore import open_lake

    return RobustnessSpec.from_json(saved_settings(open_lake(lake_uri), run))
