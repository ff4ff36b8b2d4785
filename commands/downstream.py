"""Commands that ask what features are worth."""

from pathlib import Path
from typing import Annotated, Any

import typer

from commands.options import (
    COMPARISON,
    SPLITS,
    TRAINING,
    AddressOpt,
    AtOpt,
    BatchOpt,
    CpusOpt,
    DistinctIdsOpt,
    DownMppsOpt,
    EpochsOpt,
    FeaturesOpt,
    FoldsOpt,
    FusionOpt,
    GpusOpt,
    InnerOpt,
    JsonOpt,
    LabelsOpt,
    LakeArg,
    MarginOpt,
    MostTilesOpt,
    MppOpt,
    PatientColumnOpt,
    PrecisionOpt,
    RateOpt,
    ReferenceOpt,
    RepeatsOpt,
    RunsOutOpt,
    SearchOpt,
    SeedOpt,
    SeedsOpt,
    SiteOpt,
    SlideColumnOpt,
    SlideTableOpt,
    SplitsOpt,
    tell,
)

app = typer.Typer()


@app.command("mil")
def mil_command(
    lake: LakeArg,
    labels: LabelsOpt,
    target: Annotated[
        list[str],
        typer.Option(help="Column to predict; repeat for labels that do not exclude each other."),
    ],
    features: FeaturesOpt,
    mpp: DownMppsOpt = (0.5,),  # type: ignore[assignment]
    model: Annotated[
        list[str],
        typer.Option(
            help="abmil, clam_sb, clam_mb, dsmil, transmil, transformer, mean, max, hierarchical "
            "(give several --mpp), or on pooled features linear, knn; repeat to compare."
        ),
    ] = ("abmil",),  # type: ignore[assignment]
    task: Annotated[
        str, typer.Option(help="binary, multiclass, multilabel, regression; auto looks.")
    ] = "auto",
    fusion: FusionOpt = "none",
    folds: FoldsOpt = 5,
    inner: InnerOpt = 1,
    repeats: RepeatsOpt = 1,
    splits: SplitsOpt = None,
    site: SiteOpt = None,
    shots: Annotated[
        int | None,
        typer.Option(help="Few-shot: training patients of each class.", rich_help_panel=SPLITS),
    ] = None,
    experts: Annotated[
        bool,
        typer.Option(
            "--experts",
            help="Two heads, one trained class by class: long tails.",
            rich_help_panel=TRAINING,
        ),
    ] = False,
    soft_labels: Annotated[
        float | None,
        typer.Option(
            help="Share of an ensemble's opinion in a label; needs --inner 2 or more.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    pseudo_tiles: Annotated[
        int | None,
        typer.Option(
            help="Teach a tile classifier by so many surest tiles of each bag (MILTS).",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    seeds: SeedsOpt = 1,
    epochs: EpochsOpt = None,
    learning_rate: RateOpt = None,
    batch_patients: BatchOpt = None,
    max_tiles: MostTilesOpt = None,
    precision: PrecisionOpt = "float32",
    search: SearchOpt = 0,
    reference: ReferenceOpt = None,
    margin: MarginOpt = None,
    accuracy: Annotated[
        float,
        typer.Option(
            help="For how many patients can it answer with this accuracy?",
            rich_help_panel=COMPARISON,
        ),
    ] = 0.95,
    slide_table: SlideTableOpt = None,
    patient_column: PatientColumnOpt = None,
    slide_column: SlideColumnOpt = None,
    distinct_ids: DistinctIdsOpt = False,
    seed: SeedOpt = 0,
    address: AddressOpt = None,
    cpus: CpusOpt = 1.0,
    gpus: GpusOpt = 0.0,
    at: AtOpt = None,
    json_: JsonOpt = False,
) -> None:
    """Predict classes, labels or a number from a patient's tiles, cross-validated over patients.

    Validation patients within each fold decide when training stops and where the threshold lies;
    test patients are only scored. Every measure has an interval over patients. Killed, it goes on
    where it was; all predictions, the splits and a page are kept in the lake's runs/.
    """
    from downstream import Plan, run_mil

    given = {
        "epochs": epochs,
        "learning_rate": learning_rate,
        "batch_patients": batch_patients,
        "max_tiles": max_tiles,
        "experts": experts,
        "soft_labels": soft_labels,
        "pseudo_tiles": pseudo_tiles,
    }
    result = run_mil(
        lake,
        labels,
        target[0] if len(target) == 1 else target,
        features,
        mpps=mpp,
        models=model,
        task=task,
        ids=_ids(slide_table, patient_column, slide_column, distinct_ids),
        plan=Plan(folds=folds, inner=inner, repeats=repeats, sites=site, file=splits, shots=shots),
        seeds=seeds,
        seed=seed,
        reference=reference,
        margin=margin,
        accuracy=accuracy,
        settings=_mil_settings(fusion=fusion, precision=precision, **given),
        version=at,
        address=address,
        tune=search,
        cpus_per_worker=cpus,
        gpus_per_worker=gpus,
    )
    tell(result, as_json=json_, text=_metrics_text(result))


@app.command("survival")
def survival_command(
    lake: LakeArg,
    labels: LabelsOpt,
    time: Annotated[str, typer.Option(help="Column of the time to event or end of follow-up.")],
    event: Annotated[str, typer.Option(help="Column that is 1 where the event was seen.")],
    features: FeaturesOpt,
    mpp: DownMppsOpt = (0.5,),  # type: ignore[assignment]
    model: Annotated[
        list[str],
        typer.Option(
            help="On pooled features: cox, coxnet, forest, boosting; of bags: abmil, transmil and "
            "the other models of `mil` without a loss of their own; repeat to compare."
        ),
    ] = ("cox",),  # type: ignore[assignment]
    head: Annotated[
        str,
        typer.Option(
            help="Of a model of bags: hazards (of time bins) or cox.", rich_help_panel=TRAINING
        ),
    ] = "hazards",
    bins: Annotated[
        int | None, typer.Option(help="Time bins of hazards.", rich_help_panel=TRAINING)
    ] = None,
    fusion: FusionOpt = "none",
    folds: FoldsOpt = 5,
    inner: InnerOpt = 1,
    repeats: RepeatsOpt = 1,
    splits: SplitsOpt = None,
    site: SiteOpt = None,
    seeds: SeedsOpt = 1,
    epochs: EpochsOpt = None,
    learning_rate: RateOpt = None,
    batch_patients: BatchOpt = None,
    max_tiles: MostTilesOpt = None,
    precision: PrecisionOpt = "float32",
    search: SearchOpt = 0,
    reference: ReferenceOpt = None,
    margin: MarginOpt = None,
    slide_table: SlideTableOpt = None,
    patient_column: PatientColumnOpt = None,
    slide_column: SlideColumnOpt = None,
    distinct_ids: DistinctIdsOpt = False,
    seed: SeedOpt = 0,
    address: AddressOpt = None,
    cpus: CpusOpt = 1.0,
    gpus: GpusOpt = 0.0,
    at: AtOpt = None,
    json_: JsonOpt = False,
) -> None:
    """Predict survival, cross-validated over patients; a higher risk is a worse outlook.

    Bins, risk groups and censoring weights come from training patients. The C-index and all other
    measures have an interval over patients.
    """
    from downstream import Plan, run_survival

    given = {
        "epochs": epochs,
        "learning_rate": learning_rate,
        "batch_patients": batch_patients,
        "max_tiles": max_tiles,
        "bins": bins,
    }
    result = run_survival(
        lake,
        labels,
        time,
        event,
        features,
        mpps=mpp,
        models=model,
        head=head,
        ids=_ids(slide_table, patient_column, slide_column, distinct_ids),
        plan=Plan(folds=folds, inner=inner, repeats=repeats, sites=site, file=splits),
        seeds=seeds,
        seed=seed,
        reference=reference,
        margin=margin,
        settings=_mil_settings(fusion=fusion, precision=precision, **given),
        version=at,
        address=address,
        tune=search,
        cpus_per_worker=cpus,
        gpus_per_worker=gpus,
    )
    tell(result, as_json=json_, text=_metrics_text(result))


@app.command("probe")
def probe_command(
    lake: LakeArg,
    labels: Annotated[
        str, typer.Option(help="Table of tiles: slide_id, tile_id or x and y (level 0), target.")
    ],
    target: Annotated[str, typer.Option(help="Column of classes.")],
    features: FeaturesOpt,
    mpp: MppOpt = 0.5,
    shots: Annotated[
        int | None,
        typer.Option(min=1, help="Fit on so many tiles of each class; all if not given."),
    ] = None,
    draws: Annotated[int, typer.Option(min=1, help="How often so few are drawn.")] = 10,
    tiles: Annotated[int, typer.Option(min=1, help="Most labelled tiles, drawn by class.")] = 20000,
    folds: FoldsOpt = 5,
    reference: ReferenceOpt = None,
    margin: MarginOpt = None,
    patient_column: PatientColumnOpt = None,
    slide_column: SlideColumnOpt = None,
    distinct_ids: DistinctIdsOpt = False,
    seed: SeedOpt = 0,
    at: AtOpt = None,
    json_: JsonOpt = False,
) -> None:
    """Classes of labelled tiles by a linear probe and nearest neighbours, folds over patients.

    Example: slidelake probe my-lake --labels tiles.csv --target tissue --features uni2 --shots 10
    """
    from downstream.probes.probe_folds import Options
    from downstream.probes.tile_probe import run_probe

    options = Options(folds=folds, shots=shots, draws=draws, seed=seed, tiles=tiles)
    ids = _ids(None, patient_column, slide_column, distinct_ids)
    result = run_probe(
        lake,
        labels,
        target,
        features,
        mpp=mpp,
        options=options,
        reference=reference,
        margin=margin,
        ids=ids,
        version=at,
    )
    lines = [
        f"{arm}: {name} {m['estimate']:.3f} ({m['low']:.3f} to {m['high']:.3f})"
        for arm, found in result["metrics"].items()
        for name, m in found["measures"].items()
    ]
    lines += [_comparison_line(row) for row in result["comparisons"]]
    lines += [*result["notes"], f"{len(result['missing'])} labels are of no tile with features"]
    lines.append(f"{result['tiles']:,} tiles of {result['patients']} patients, {folds} folds")
    lines.append(f"runs/{result['run']}/report.html")
    tell(result, as_json=json_, text="\n".join(lines))


@app.command("attention")
def attention_command(
    lake: LakeArg,
    run: Annotated[str, typer.Argument(metavar="RUN", help="Name of a finished run.")],
    slide: Annotated[str, typer.Argument(metavar="SLIDE", help="Id of a slide it tested.")],
    arm: Annotated[
        str | None, typer.Option(help="Which arm; all that weigh tiles if not given.")
    ] = None,
    out: Annotated[str, typer.Option(metavar="DIR", help="Where the files go.")] = "attention",
    json_: JsonOpt = False,
) -> None:
    """A slide's attention in a run: a picture, tiles for QuPath (GeoJSON), and a table."""
    from downstream.report.attention_maps import write_attention
    from featurestore import open_lake

    files = [str(p) for p in write_attention(open_lake(lake), run, slide, arm=arm, folder=out)]
    tell({"run": run, "slide": slide, "files": files}, as_json=json_, text="\n".join(files))


@app.command("search")
def search_command(
    lake: LakeArg,
    like: Annotated[
        str,
        typer.Option(
            metavar="SLIDE[:x,y]",
            help="With a place in level-0 pixels: tiles like the one that covers it. Without: "
            "slides like this one, by the mean of their tiles' features.",
        ),
    ],
    features: Annotated[str, typer.Option(help="A teacher or student whose features are there.")],
    mpp: MppOpt = 0.5,
    k: Annotated[int, typer.Option("-k", help="How many are found.")] = 12,
    other_patients_only: Annotated[
        bool,
        typer.Option(
            "--other-patients-only",
            help="Leave out the query's own patient; else what is its own is marked.",
        ),
    ] = False,
    exact: Annotated[
        bool, typer.Option("--exact", help="Compare with all tiles, even if there is an index.")
    ] = False,
    build_index: Annotated[
        bool,
        typer.Option(
            "--build-index",
            help="First index the features, if no index covers all of them. Worth it for a million "
            "tiles or more; what is added later is found without it, too.",
        ),
    ] = False,
    recall_tiles: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Random tiles on which the index is held against the exact search, which is one "
            "pass over all features; 16 if they are 2 GB or less, else 0.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Picture of what was found: a .png or .html file.")
    ] = None,
    at: AtOpt = None,
    json_: JsonOpt = False,
) -> None:
    """Find the tiles nearest to a tile, or the slides nearest to a slide, by a teacher's features.

    Examples: slidelake search my-lake --like slide7:10240,8192 --features uni2_h --out found.html
    or: slidelake search my-lake --like slide7 --features uni2_h --other-patients-only

    Near is the cosine of features, 1 for the same direction. Tiles of one slide share its stain and
    scanner and are often each other's nearest: --other-patients-only looks beyond them.
    """
    from downstream.retrieval.search import found_text, run_search

    found = run_search(
        lake,
        like,
        features,
        mpp=mpp,
        k=k,
        exact=exact,
        build=build_index,
        other_patients_only=other_patients_only,
        recall_tiles=recall_tiles,
        out=out,
        version=at,
    )
    tell(found, as_json=json_, text=found_text(found))


@app.command("runs")
def runs_command(lake: LakeArg, out: RunsOutOpt = None, json_: JsonOpt = False) -> None:
    """Every measure of every finished run, one row each, with lake version and seeds."""
    from downstream.run.run_table import run_table
    from featurestore import open_lake

    table = run_table(open_lake(lake))
    if out is not None:
        (table.write_parquet if out.suffix == ".parquet" else table.write_csv)(out)
    main = table.filter(table["main"]).select(
        "run", "target", "arm", "measure", "estimate", "low", "high", "patients", "lake_version"
    )
    tell(table.to_dicts(), as_json=json_, text=str(main) if out is None else f"-> {out}")


@app.command("report")
def report_command(lake: LakeArg, at: AtOpt = None, json_: JsonOpt = False) -> None:
    """Write report.html and report.json of what a lake holds and what its runs found."""
    from downstream.report.lake_page import write_report

    report = write_report(lake, version=at)
    tell(report, as_json=json_, text=f"report: {lake}/report.html")


def _ids(
    slide_table: str | None,
    patient_column: str | None,
    slide_column: str | None,
    distinct_ids: bool,
) -> dict[str, Any]:
    """Return the options that say how ids of a label table are read."""
    options = {
        "slides": slide_table,
        "patient_column": patient_column,
        "slide_column": slide_column,
        "distinct_ids": distinct_ids or None,
    }
    return {name: value for name, value in options.items() if value is not None}


def _mil_settings(**given: Any) -> Any:  # noqa: ANN401
    """Settings with what was given; the rest as it is."""
    from downstream import MilSettings

    return MilSettings(**{name: value for name, value in given.items() if value is not None})


def _metrics_text(result: dict[str, Any]) -> str:
    """A line an arm, then comparisons, and what was left out."""
    lines = []
    for name, m in result["metrics"].items():
        value = "undefined on these patients"
        if m["estimate"] is not None:
            value = f"{m['estimate']:.3f} ({m['low']:.3f} to {m['high']:.3f})"
        lines.append(f"{name}: {m['metric']} {value}")
    lines += [_comparison_line(row) for row in result["comparisons"]]
    counts = f"{result['patients']} patients, {result['slides']} slides, {result['folds']} folds"
    for key, what in (("missing", "labelled but not used"), ("surplus", "slides without a label")):
        if result[key]:
            counts += f"; {len(result[key])} {what}"
    return "\n".join([*lines, counts, *result["notes"], f"runs/{result['run']}/report.html"])


def _comparison_line(row: dict[str, Any]) -> str:
    more = "" if row["margin"] is None else f", margin {row['margin']:g}: "
    if row["margin"] is not None:
        more += "not inferior" if row["not_inferior"] else "not shown to be as good"
    return (
        f"{row['one']} - {row['other']}: {row['estimate']:+.3f} ({row['low']:+.3f} to "
        f"{row['high']:+.3f}), p {row['p_holm']:.3f} (Holm){more}"
    )
