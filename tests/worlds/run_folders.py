"""Finished runs on a painted lake, for tests of what people look at.

A run is written file by file as `downstream.run.run_result` writes it; nothing is trained. Odd
patients are of the last class, and tile (0, 0) of each slide has the most attention.
"""

import io
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from downstream.measures.class_measures import Measure, classification_measures, measure_of
from downstream.measures.comparisons import TEST
from downstream.measures.intervals import interval
from downstream.measures.number_measures import multilabel_measures, regression_measures
from downstream.survival.survival_weighted import concordance
from featurestore import Lake, tile_parts

Json = dict[str, Any]

FOLDS = 3
CURVE_TIMES = [2.0, 5.0, 9.0]
NAMES = {
    "binary": ("no", "yes"),
    "multiclass": ("A", "B", "C"),
    "multilabel": ("KRAS", "TP53", "rare"),
}


def write_run(
    lake: Lake,
    task: str = "binary",
    *,
    run: str = "",
    arms: tuple[str, ...] = ("good / abmil", "noise / mean"),
    attention: tuple[str, ...] = ("good / abmil",),
    patients: int = 24,
    repeats: int = 1,
    seeds: int = 1,
    changes: Json | None = None,
    rows: pl.DataFrame | None = None,
) -> str:
    """Write a finished run: every arm knows less than the one before. Returns its name."""
    kind = "survival" if task == "survival" else "mil"
    run = run or f"{kind}-{task}"
    table = predictions(task, arms, patients, repeats, seeds) if rows is None else rows
    folder = f"runs/{run}"
    lake.write_bytes(f"{folder}/predictions.parquet", parquet(table))
    for arm in attention:
        for fold in range(min(FOLDS, -(-patients // 2))):
            path = f"{folder}/attention/{arm.replace(' / ', '_')}-0-{fold}-0.parquet"
            lake.write_bytes(path, parquet(tile_attention(lake, arm, fold, patients)))
    result = {**_result(lake, task, kind, run, table, arms), **(changes or {})}
    lake.write_json(f"{folder}/result.json", result)
    return run


def parquet(table: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    table.write_parquet(buffer)
    return buffer.getvalue()


def predictions(
    task: str, arms: tuple[str, ...], patients: int, repeats: int, seeds: int
) -> pl.DataFrame:
    """Test rows of all patients, and a validation row each that must not be read."""
    rows = []
    for spread, arm in enumerate(arms, 1):
        for repeat in range(repeats):
            for seed in range(seeds):
                rng = np.random.default_rng([spread, repeat, seed])
                for number in range(patients):
                    prediction = _prediction(task, number, rng, spread)
                    features, _, model = arm.partition(" / ")
                    key = {
                        "patient_id": f"p{number:02d}",
                        "repeat": repeat,
                        "fold": (number // 2 + repeat) % FOLDS,
                        "seed": seed,
                        "arm": arm,
                        "features": features,
                        "model": model or "abmil",
                    }
                    rows += [
                        {**key, "part": "test", **prediction},
                        {**key, "part": "validation", **prediction},
                    ]
    table = pl.DataFrame(rows, infer_schema_length=None)
    table = table.with_columns(pl.col("repeat", "fold", "seed").cast(pl.Int32))
    if task != "survival":
        return table
    count, rank = pl.len(), pl.col("risk").rank("average")
    cell = ["arm", "part", "repeat", "fold", "seed"]
    return table.with_columns(rank=((rank - 0.5) / count).over(cell))


def _prediction(task: str, number: int, rng: np.random.Generator, spread: int) -> Json:
    noise = float(rng.normal(0, 0.7 * spread))
    if task == "binary":
        score = _logistic(2.0 * (number % 2) - 1.0 + noise)
        label = NAMES[task][number % 2]
        both = [1 - score, score]
        return {"label": label, "probabilities": both, "score": score, "threshold": 0.5}
    if task == "multiclass":
        logits = rng.normal(0, spread, 3) + 2.0 * (np.arange(3) == number % 3)
        shares = np.exp(logits) / np.exp(logits).sum()
        nothing = {"score": None, "threshold": None}
        return {"label": NAMES[task][number % 3], "probabilities": shares.tolist(), **nothing}
    if task == "multilabel":
        labels = [number % 2, number // 2 % 2, 0]
        probabilities = [_logistic(2.0 * one - 1.0 + noise) for one in labels]
        return {"labels": labels, "probabilities": probabilities}
    if task == "regression":
        return {"value": float(number), "found": number + 4 * noise}
    risk = (number % 2) + noise
    curve = [float(np.exp(-at / 8 * np.exp(risk - 0.5))) for at in CURVE_TIMES]
    outcome = {"time": float(number % 7 + 12 - 8 * (number % 2)), "event": number % 3 > 0}
    return {**outcome, "risk": risk, "high": risk > 0.5, "curve": curve}


def _logistic(logit: float) -> float:
    return float(1 / (1 + np.exp(-logit)))


def tile_attention(lake: Lake, arm: str, fold: int, patients: int) -> pl.DataFrame:
    """Tile (y, x) of a slide weighs 1 / (1 + y + x); a patient's tiles sum to 1."""
    parts = []
    slides = lake.slides().select("slide_id", "slide", "patient_id").collect()
    for number in range(patients):
        if (number // 2) % FOLDS != fold:
            continue
        patient_slides = slides.filter(pl.col("patient_id") == f"p{number:02d}").sort("slide_id")
        tiles = [
            _slide_attention(lake, *row)
            for row in patient_slides.select("slide", "slide_id").rows()
        ]
        bag = pl.concat(tiles)
        share = pl.col("attention") / pl.col("attention").sum()
        parts.append(bag.with_columns(share, patient_id=pl.lit(f"p{number:02d}")))
    keyed = pl.concat(parts).with_columns(
        pl.lit(arm).alias("arm"), pl.lit(fold, pl.Int32).alias("fold")
    )
    columns = ["patient_id", "slide_id", "tile_id", "x", "y", "arm", "fold", "attention"]
    return keyed.select(columns).with_columns(pl.col("attention").cast(pl.Float32))


def _slide_attention(lake: Lake, slide: int, slide_id: str) -> pl.DataFrame:
    levels = []
    for mpp in lake.config.mpps:
        rows = lake.tiles(mpp=mpp).filter(pl.col("slide") == slide)
        levels.append(rows.select("slide_id", "tile_id", "x", "y").collect())
    tiles = pl.concat(levels)
    y, x = tile_parts(tiles["tile_id"].to_numpy())[2:]
    assert (tiles["slide_id"] == slide_id).all()
    return tiles.with_columns(pl.Series("attention", 1.0 / (1 + y + x)))


def _result(
    lake: Lake, task: str, kind: str, run: str, table: pl.DataFrame, arms: tuple[str, ...]
) -> Json:
    tested = table.filter(pl.col("part") == "test")
    metrics = {arm: _metric(task, tested.filter(pl.col("arm") == arm)) for arm in arms}
    comparisons = [
        {
            "one": arm,
            "other": arms[0],
            "measure": metrics[arm]["metric"],
            "estimate": -0.1,
            "low": -0.2,
            "high": 0.015,
            "p_value": 0.0312,
            "p_holm": 0.0624,
            "margin": 0.05,
            "p_worse": 0.81,
            "not_inferior": False,
            "test": TEST,
            "parts": FOLDS,
            "left_out": 0,
            "why": "",
            "fitted_models": {"estimate": -0.1, "low": -0.15, "high": 0.01, "p_value": 0.02},
        }
        for arm in arms[1:]
    ]
    columns = ["months", "dead"] if task == "survival" else ["tumour"]
    return {
        "kind": kind,
        "task": task,
        "target": columns[-1],
        "arms": {
            arm: {"features": arm.split(" / ")[0], "model": arm.split(" / ")[-1]} for arm in arms
        },
        "metrics": metrics,
        "comparisons": comparisons,
        "folds": FOLDS,
        "repeats": 1 + int(table["repeat"].to_numpy().max()),
        "inner": 1,
        "seeds": 1 + int(table["seed"].to_numpy().max()),
        "patients": table["patient_id"].n_unique(),
        "slides": lake.slides().collect().height,
        "lake_version": lake.version,
        "run": run,
        "seconds": 12.5,
        "missing": ["p98", "p99"],
        "surplus": [],
        "curve_times": CURVE_TIMES if task == "survival" else [],
        "config": {
            "task": task,
            "features": [arm.split(" / ")[0] for arm in arms],
            "mpps": list(lake.config.mpps),
            "seed": 0,
            "columns": columns,
            "classes": list(NAMES.get(task, ())),
            "settings": {"hidden": 256, "dropout": 0.25},
        },
    }


def _metric(task: str, part: pl.DataFrame) -> Json:
    """Return all measures, by the functions that a run uses, with percentile intervals."""
    metrics = {}
    for measure, truth, predictions in _measured(task, part):
        estimate = interval(
            measure, truth, predictions, seed=0, patients=part["patient_id"].to_list(),
            resamples=1000, method="percentile",
        )  # fmt: skip
        metrics[measure.name] = {"higher_is_better": measure.higher_is_better, **asdict(estimate)}
    if not metrics:
        undefined = {"higher_is_better": True, "undefined": "all patients are of one class"}
        none = dict.fromkeys(("estimate", "low", "high"))
        return {"metric": "auroc", **none, "measures": {"auroc": undefined}}
    main = next(iter(metrics))
    return {"metric": main, **metrics[main], "measures": metrics}


def _measured(
    task: str, part: pl.DataFrame
) -> list[tuple[Measure, tuple[npt.NDArray[Any], ...], npt.NDArray[Any]]]:
    if task == "regression":
        value, predictions = part["value"].to_numpy(), part["found"].to_numpy()
        return [(m, (value,), predictions) for m in regression_measures()]
    if task == "survival":
        event, one_group = part["event"].to_numpy(), np.zeros(len(part), dtype=np.int64)
        truth = (event, part["time"].to_numpy(), one_group, event.astype(np.float64))
        return [(measure_of("harrell_c", concordance), truth, part["rank"].to_numpy())]
    probabilities = np.array(part["probabilities"].to_list())
    if task == "multilabel":
        # nobody has the third label
        labels = np.array(part["labels"].to_list())[:, :2]
        return [(m, (labels,), probabilities[:, :2]) for m in multilabel_measures()]
    label = np.array([NAMES[task].index(name) for name in part["label"]])
    if task == "multiclass":
        return [(m, (label,), probabilities) for m in classification_measures("multiclass")]
    if len(np.unique(label)) < 2:
        return []
    return [(m, (label,), probabilities[:, 1]) for m in classification_measures("binary")]
