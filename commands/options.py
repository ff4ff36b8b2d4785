"""Options that several commands share, and how an answer is printed."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

#: Headings that options stand under in --help.
SPLITS, TRAINING, TABLES = "Splits", "Training", "Tables"
COMPARISON, WHERE = "Comparison", "Cores and GPUs"

LakeArg = Annotated[str, typer.Argument(metavar="LAKE", help="Folder or URL of the lake.")]
JsonOpt = Annotated[bool, typer.Option("--json", help="Print one JSON object last on stdout.")]
TeachersOpt = Annotated[
    list[str], typer.Option("--teacher", help="Name of a teacher; repeat for several.")
]
WeightsOpt = Annotated[
    str | None,
    typer.Option(
        metavar="DIR",
        help="Where weights are looked for first, as NAME.safetensors, NAME.pth or folders NAME as "
        "the hub has them; SLIDELAKE_WEIGHTS if not given.",
    ),
]
MppsOpt = Annotated[
    list[float] | None, typer.Option("--mpp", help="Microns per pixel; repeat for several.")
]
AtOpt = Annotated[
    str | None, typer.Option(help="Version number or snapshot to read; the newest if not given.")
]
AddressOpt = Annotated[
    str | None, typer.Option(help="Ray cluster to use; without one a local Ray is started.")
]
AutoVacuumOpt = Annotated[
    bool,
    typer.Option(
        help="Free old versions in the end; the newest 100, those younger than 7 days, and what "
        "runs, snapshots or the last verify stand on stay."
    ),
]
FeaturesOpt = Annotated[
    list[str],
    typer.Option("--features", help="A teacher, or several joined by +; repeat to compare."),
]
LabelsOpt = Annotated[
    str,
    typer.Option(
        help="CSV, TSV, XLSX or Parquet with slide_id and/or patient_id and the label columns; the "
        "tables of CLAM, STAMP and Patho-Bench as they are. Ids are text: 0012 is not 12."
    ),
]
SeedOpt = Annotated[int, typer.Option(help="Same seed, same result.")]
FoldsOpt = Annotated[int, typer.Option(help="Folds over patients.", rich_help_panel=SPLITS)]
DownMppsOpt = Annotated[
    list[float], typer.Option("--mpp", help="Microns per pixel of the tiles; repeat for several.")
]
FusionOpt = Annotated[
    str,
    typer.Option(
        help="How teachers joined by + are fused: none, concat, shazam.", rich_help_panel=TRAINING
    ),
]
InnerOpt = Annotated[
    int,
    typer.Option(
        help="Inner splits of each fold: 1 validation part, or more for an ensemble of one model "
        "a split.",
        rich_help_panel=SPLITS,
    ),
]
RepeatsOpt = Annotated[
    int, typer.Option(help="Repetitions with other folds.", rich_help_panel=SPLITS)
]
SplitsOpt = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Splits to use: CLAM's folder, Patho-Bench's k=all.tsv, STAMP's splits.json, or a "
        "run's splits.parquet.",
        rich_help_panel=SPLITS,
    ),
]
SiteOpt = Annotated[
    str | None,
    typer.Option(
        metavar="COLUMN",
        help="Leave one site out at a time: its column, or tcga to read it off the barcodes.",
        rich_help_panel=SPLITS,
    ),
]
SeedsOpt = Annotated[
    int,
    typer.Option(
        help="Trainings of each model with other random numbers.", rich_help_panel=TRAINING
    ),
]
EpochsOpt = Annotated[
    int | None,
    typer.Option(
        help="Most epochs; validation patients stop it earlier.", rich_help_panel=TRAINING
    ),
]
RateOpt = Annotated[
    float | None, typer.Option(help="Learning rate of AdamW.", rich_help_panel=TRAINING)
]
BatchOpt = Annotated[int | None, typer.Option(help="Patients a step.", rich_help_panel=TRAINING)]
MostTilesOpt = Annotated[
    int | None,
    typer.Option(
        help="Most tiles of a patient a step; a random subset of more.", rich_help_panel=TRAINING
    ),
]
PrecisionOpt = Annotated[str, typer.Option(help="float32 or bfloat16.", rich_help_panel=TRAINING)]
ReferenceOpt = Annotated[
    str | None,
    typer.Option(
        help="Arm that the others are compared with; the first if not given.",
        rich_help_panel=COMPARISON,
    ),
]
MarginOpt = Annotated[
    float | None,
    typer.Option(
        help="How much worse than the reference still counts as not inferior.",
        rich_help_panel=COMPARISON,
    ),
]
SlideTableOpt = Annotated[
    str | None,
    typer.Option(
        metavar="FILE", help="Table of patients' slides, such as STAMP's.", rich_help_panel=TABLES
    ),
]
PatientColumnOpt = Annotated[
    str | None, typer.Option(help="Column of the patient.", rich_help_panel=TABLES)
]
SlideColumnOpt = Annotated[
    str | None, typer.Option(help="Column of the slide.", rich_help_panel=TABLES)
]
DistinctIdsOpt = Annotated[
    bool,
    typer.Option(
        "--distinct-ids",
        help="Ids, sites and classes that differ from another by case, blanks or Unicode form only "
        "are different ones; else they are refused.",
        rich_help_panel=TABLES,
    ),
]
CpusOpt = Annotated[float, typer.Option(help="Cores of each training.", rich_help_panel=WHERE)]
GpusOpt = Annotated[
    float,
    typer.Option(help="GPUs of each training; 0.25 lets four share one.", rich_help_panel=WHERE),
]
SearchOpt = Annotated[
    int,
    typer.Option(
        help="Draws of settings to try in each fold, judged by its validation patients.",
        rich_help_panel=TRAINING,
    ),
]
RunsOutOpt = Annotated[
    Path | None, typer.Option("--out", help="Write the whole table: .csv or .parquet.")
]
MppOpt = Annotated[float, typer.Option(help="Microns per pixel of the tiles.")]


def tell(value: Any, *, as_json: bool, text: str) -> None:  # noqa: ANN401
    """Print what a command found: as text, or as one JSON object."""
    typer.echo(json.dumps(value, default=str) if as_json else text)
