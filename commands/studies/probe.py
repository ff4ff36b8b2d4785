"""`slidelake probe`: classes of tiles from features."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from commands.options.dataclass_options import command
from commands.options.field_options import Changes, FieldOption, FieldOptions
from commands.options.printing import print_answer
from commands.options.saved_settings import saved_config
from commands.options.set_fields import parse_assignment, with_values
from commands.options.shared_options import JsonOpt, LakeArg, LikeOpt, SetOpt
from commands.studies.probe_settings import ProbeSettings, TileFeatures, TileLabels
from commands.studies.study_lines import probe_text
from commands.studies.study_options import COMPARISON_OPTIONS, SPLITS, TABLES, missing_option

if TYPE_CHECKING:
    from featurestore import Lake

app = typer.Typer()

PROBE_TEMPLATE = ProbeSettings(
    labels=TileLabels(table="", target=""), features=TileFeatures(names=())
)
PROBE_OPTIONS = (
    FieldOption(flag="--labels", path="labels.table", required=True),
    FieldOption(flag="--target", path="labels.target", required=True),
    FieldOption(flag="--features", path="features.names", required=True),
    FieldOption(flag="--mpp", path="features.mpp"),
    FieldOption(flag="--shots", path="fit.shots", least=1),
    FieldOption(flag="--draws", path="fit.draws", least=1),
    FieldOption(flag="--tiles", path="fit.tiles", least=1),
    FieldOption(flag="--folds", path="fit.folds", panel=SPLITS),
    *COMPARISON_OPTIONS,
    FieldOption(flag="--patient-column", path="labels.patient_column", panel=TABLES),
    FieldOption(flag="--slide-column", path="labels.slide_column", panel=TABLES),
    FieldOption(flag="--distinct-ids", path="labels.distinct_ids", panel=TABLES, single=True),
    FieldOption(flag="--seed", path="fit.seed"),
    FieldOption(flag="--at", path="features.version"),
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
    settings = probe_settings(options)
    from downstream.probes.probe_folds import Options
    from downstream.probes.tile_probe import run_probe

    result = run_probe(
        options.lake,
        settings.labels.table,
        settings.labels.target,
        settings.features.names,
        mpp=settings.features.mpp,
        options=Options(**asdict(settings.fit)),
        reference=settings.comparison.reference,
        margin=settings.comparison.margin,
        ids=settings.labels.id_options(),
        version=settings.features.version,
    )
    _save_settings(options.lake, result, settings)
    print_answer(result, as_json=options.json, text=probe_text(result))


def probe_settings(options: ProbeCommandOptions) -> ProbeSettings:
    """Return the settings that the command line describes."""
    base = PROBE_TEMPLATE if options.like is None else _settings_of_run(options.lake, options.like)
    assigned = dict(parse_assignment(base, text) for text in options.assignments)
    changes = {**options.settings, **assigned}
    if options.like is None and (msg := missing_option(PROBE_OPTIONS, changes)):
        raise typer.BadParameter(msg)
    return with_values(base, changes)


def _settings_of_run(lake_uri: str, run: str) -> ProbeSettings:
    from downstream.run.spec_json import from_json
    from featurestore import open_lake

    return from_json(ProbeSettings, saved_config(open_lake(lake_uri), run, "spec"))


def _save_settings(lake_uri: str, result: dict[str, Any], settings: ProbeSettings) -> None:
    """Write the settings into the run's folder, unless they are there."""
    from downstream.run.spec_json import to_json
    from featurestore import open_lake

    lake: Lake = open_lake(lake_uri)
    path = f"runs/{result['run']}/config.json"
    if not lake.exists(path):
        content = {"lake_version": result["lake_version"], "spec": to_json(settings)}
        lake.write_json(path, content)
