"""What quantised columns cost and save: fidelity, search, MIL and a linear probe; bytes and rates.

    python -m benchmarks.quantise [--lake LAKE]

Quality is of a real encoder (efficientnet_lite0 and its patch tokens) on generated slides; the
encoder was trained on photographs, and the slides are drawn. Rates are of random
features of 1,536 dims in the lake of `store.py`: all bags, one by one, page cache warm, arms
in turns. Left out of the clock: making the lakes, quantising, the first round with its checksums.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import polars as pl
import typer

import slidelake
from benchmarks.recipes import LITE0, TOKENS
from benchmarks.report import Line, write_report
from benchmarks.store import race
from benchmarks.store_lake import (
    MPP,
    TILE_PX,
    add_teacher,
    make_lake,
    random_features,
    slide_sizes,
)
from downstream import MilSettings, Plan
from downstream.retrieval.recall import recall_at_k, sample_tiles
from examples.cohort import make_cohort
from featurestore import Lake, open_lake
from featurestore.codecs.codec_files import column_name
from featurestore.codecs.lance_quantising import quantise

CODECS = ("int8", "pq8", "pq16", "pq32")
TOKEN_CODECS = ("int8", "pq16", "pq32")
K = 12
QUERIES = 200
TEACHER, DIM = "middle", 1536


def real_lake(folder: Path, *, patients: int) -> Path:
    """Write a lake of generated slides with features of a real encoder; return its labels."""
    labels = make_cohort(
        folder.parent / f"{folder.name}-cohort",
        patients=patients,
        slides=patients,
        width_px=2560,
        height_px=2304,
    )
    if not (folder / "lake.json").exists():
        config = slidelake.LakeConfig(tile_px=TILE_PX, mpps=(MPP,))
        slidelake.ingest(str(folder), [str(labels)], config)
        slidelake.extract(str(folder), [LITE0, TOKENS])
    return labels


def fidelity(lake: Lake, source: str, codecs: Sequence[str]) -> list[dict[str, Any]]:
    """Quantise a column by each codec, and return its losses."""
    rows = []
    for codec in codecs:
        [made] = quantise(lake, source, codec=codec, mpps=[MPP])
        rows.append(
            {
                "column": made.column,
                "bytes": made.bytes_per_tile,
                "share of float16": made.bytes_per_tile / made.source_bytes_per_tile,
                "cosine": made.cosine,
                "least cosine": made.cosine_least,
                "relative error": made.error,
            }
        )
    return rows


def recall(lake: Lake, source: str, name: str) -> float:
    """Return the mean recall of the nearest tiles by a column, against those by its source."""
    tile_id_Q, query_QD = sample_tiles(lake, source, mpp=MPP, n=QUERIES, seed=0)
    _, coded_QD = sample_tiles(lake, name, mpp=MPP, n=QUERIES, seed=0)
    exact = lake.nearest(query_QD, source, mpp=MPP, k=K + 1, exact=True)
    found = lake.nearest(coded_QD, name, mpp=MPP, k=K + 1)
    # Distances of what was found are by codes; recall compares the true ones.
    true = exact_distances(lake, source, query_QD, found)
    return float(recall_at_k(true, exact, tile_id_Q, K).mean())


def exact_distances(lake: Lake, source: str, query_QD: Any, found: pl.DataFrame) -> pl.DataFrame:  # noqa: ANN401
    """Return found tiles with their distances by the source's features."""
    tiles = int(lake.features_of(source, mpp=MPP)["tiles"].sum())
    everything = lake.nearest(query_QD, source, mpp=MPP, k=tiles, exact=True)
    kept = found.select("query", "tile_id").join(everything, on=["query", "tile_id"])
    return kept.sort("query", "distance")


def studies(lake: str, labels: Path, names: Sequence[str], epochs: int) -> dict[str, Any]:
    """Return the AUROC of each column with ABMIL and with a linear probe on means."""
    result = slidelake.run_mil(
        lake,
        labels,
        "label",
        list(names),
        mpps=[MPP],
        models=["abmil", "linear"],
        plan=Plan(folds=4),
        settings=MilSettings(epochs=epochs),
        seeds=3,
    )
    return {arm: one["value"] for arm, one in result["metrics"].items()}


def rates(rounds: int, *, slides: int, tiles: int) -> list[Line]:
    """Compare reading all bags of a quantised column with those of its source."""
    with tempfile.TemporaryDirectory(prefix="slidelake-bench-") as folder:
        sizes = slide_sizes(slides, tiles, 0)
        lake = make_lake(Path(folder) / "lake", sizes, with_pixels=0, seed=0)
        add_teacher(lake, TEACHER, random_features(sizes, DIM, 0))
        for codec in ("int8", "pq16"):
            quantise(lake.refreshed(), TEACHER, codec=codec)
        lake = lake.refreshed()

        def read(name: str) -> None:
            bags = lake.bags(name, mpp=MPP)
            for index in range(len(bags)):
                bags[index]

        names = [TEACHER, *(column_name(TEACHER, codec) for codec in ("int8", "pq16"))]
        seconds = race({name: lambda name=name: read(name) for name in names}, rounds)  # type: ignore[misc]
    total = sum(sizes)
    return [
        Line.of(f"all bags of {name}", "of float16", seconds, (name, TEACHER)).at(total, "tiles")
        for name in names
    ]


def main(
    lake: Annotated[Path | None, typer.Option(help="made if not there")] = None,
    patients: Annotated[int, typer.Option(help="of that lake, a slide each")] = 32,
    rounds: Annotated[int, typer.Option(help="of reading")] = 5,
    slides: Annotated[int, typer.Option(help="of the lake that is read")] = 6,
    tiles: Annotated[int, typer.Option(help="of a slide of that lake, about")] = 4000,
    epochs: Annotated[int, typer.Option(help="of ABMIL")] = 20,
    out: Annotated[Path, typer.Option(help="folder of the results")] = Path(__file__).parent
    / "results",
) -> None:
    """Print the tables and write them as JSON."""
    lines: list[Any] = rates(rounds, slides=slides, tiles=tiles)
    for line in lines:
        typer.echo(line.text())
    with tempfile.TemporaryDirectory(prefix="slidelake-bench-") as folder:
        where = lake or Path(folder) / "lake"
        labels = real_lake(where, patients=patients)
        rows = fidelity(open_lake(where), LITE0, CODECS)
        tokens = fidelity(open_lake(where), TOKENS, TOKEN_CODECS)
        names = [row["column"] for row in rows]
        for row in rows:
            row["recall@12"] = recall(open_lake(where), LITE0, row["column"])
        scores = studies(str(where), labels, [LITE0, *names], epochs)
    for row in [*rows, *tokens, scores]:
        typer.echo(str(row))
    settings = {"rounds": rounds, "slides": slides, "tiles": tiles, "dim": DIM, "epochs": epochs}
    report = [*lines, *rows, *tokens, {"auroc": scores}]
    typer.echo(f"-> {write_report(out, report, settings, name='quantise')}")


if __name__ == "__main__":
    typer.run(main)
