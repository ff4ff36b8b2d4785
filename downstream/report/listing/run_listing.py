"""A row per patient of a run, with the prediction of every arm, and all predictions as a CSV.

A patient with several predictions (repetitions, seeds) has their mean; the CSV holds each of them.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import polars as pl

from downstream.report.listing.listing import (
    Entry,
    Listing,
    listing_parts,
    number_entry,
    text_entry,
)

if TYPE_CHECKING:
    from downstream.report.finished_run import Run

MOST_CELLS = 12_000
"""Most cells of predictions on a page, about 1.5 MB; further rows are in the CSV alone."""
_DASH = Entry(text="\N{EN DASH}")

Cells = Mapping[str, Entry]


def patient_listings(run: "Run") -> list[Listing]:
    """Return the listing of a run as tables of at most five arms.

    The first columns are the patient and what is known: fold, and label, number, or outcome; then
    one column per arm: probability of the last of two classes, else of the predicted class; share
    of labels or of tiles that are right; number; or rank of the risk within the fold, 0 to 1.
    """
    facts = {name: list(cells) for name, cells in _facts(run).items()}
    arms = {arm: _of_arm(run, arm) for arm in run.arms}
    patients = _patients(run)
    most = max(1, MOST_CELLS // max(len(arms), 1))
    rows = [
        (
            text_entry(patient),
            *(column[at] for column in facts.values()),
            *(arms[arm].get(patient, _DASH) for arm in run.arms),
        )
        for at, patient in enumerate(patients[:most])
    ]
    whole = Listing(
        heads=("patient", *facts, *run.arms),
        numeric=(
            False,
            *(_is_numeric(column) for column in facts.values()),
            *(True for _ in run.arms),
        ),
        rows=tuple(rows),
        left_out=max(0, len(patients) - most),
    )
    return listing_parts(whole, range(1 + len(facts)), most=5)


def listing_text(run: "Run") -> str:
    """Return a sentence on what stands in the columns of the arms."""
    of_task = {
        "binary": f"the probability of {run.classes[-1]}" if run.classes else "",
        "multiclass": "the probability of the predicted class, which stands below",
        "multilabel": "the share of labels that are right at a probability of one half",
        "regression": "the predicted number, with its error below",
        "survival": "the rank of the risk within the fold, 0 to 1: higher is worse",
    }
    text = of_task[run.task]
    if run.unit == "tile":
        text = "the share of the patient's tiles that are right"
    wrong = "" if run.task in {"regression", "survival"} else " Wrong predictions are marked."
    return f"Under each arm stands {text}; the mean of a patient's test predictions.{wrong}"


def _patients(run: "Run") -> list[str]:
    """Return the tested patients, sorted."""
    return sorted(run.scored["patient_id"].unique().to_list())


def _is_numeric(cells: list[Entry]) -> bool:
    """Whether a column is sorted as numbers."""
    return all(not isinstance(cell.key, str) for cell in cells)


def _facts(run: "Run") -> dict[str, list[Entry]]:
    """Return the columns of what is known of each patient, by head."""
    first = run.rows(run.arms[0]).sort("patient_id", "repeat", "seed", "fold", maintain_order=True)
    if run.unit == "tile":
        grouped = first.group_by("patient_id").agg(
            pl.len().alias("tiles"), pl.col("label").unique().sort(), pl.col("fold").first()
        )
        rows = grouped.sort("patient_id").to_dicts()
        classes = [text_entry(", ".join(row["label"])) for row in rows]
        tiles = [number_entry(row["tiles"], digits=0) for row in rows]
        return {"fold": _fold_cells(rows), "tiles": tiles, "classes": classes}
    rows = first.unique("patient_id", keep="first", maintain_order=True).to_dicts()
    return {"fold": _fold_cells(rows), **{h: [c(row) for row in rows] for h, c in _known(run)}}


def _fold_cells(rows: list[dict[str, Any]]) -> list[Entry]:
    """Return the cells of the fold that tests each patient first."""
    return [number_entry(row["fold"], digits=0) for row in rows]


def _known(run: "Run") -> list[tuple[str, Callable[[dict[str, Any]], Entry]]]:
    """Return the heads and cells of a patient's true outcome."""
    if run.task == "survival":
        time = str(run.result["config"]["columns"][0])
        return [
            (time, lambda row: number_entry(row["time"], digits=1)),
            ("event", lambda row: text_entry("yes" if row["event"] else "censored")),
        ]
    if run.task == "regression":
        return [("true", lambda row: number_entry(row["value"]))]
    if run.task == "multilabel":
        names = run.classes
        return [
            (
                "labels",
                lambda row: text_entry(
                    ", ".join(n for n, has in zip(names, row["labels"], strict=True) if has)
                    or "none"
                ),
            )
        ]
    return [("label", lambda row: text_entry(row["label"]))]


def _of_arm(run: "Run", arm: str) -> Cells:
    """Return the cell of each patient in the column of an arm."""
    rows = run.rows(arm)
    if run.unit == "tile":
        return _tile_cells(run, rows)
    of_task: dict[str, Callable[[Run, pl.DataFrame], Cells]] = {
        "binary": _binary_cells,
        "multiclass": _class_cells,
        "multilabel": _label_cells,
        "regression": _number_cells,
        "survival": _risk_cells,
    }
    return of_task[run.task](run, rows)


def _binary_cells(run: "Run", rows: pl.DataFrame) -> Cells:
    """Return the mean score, and the class at the folds' thresholds where it is wrong."""
    # folds have thresholds of their own: scores are moved so that each fold's is at one half
    moved = pl.col("score") - pl.col("threshold").fill_null(0.5) + 0.5
    means = rows.group_by("patient_id").agg(
        pl.col("score").mean(), moved.mean().alias("moved"), pl.col("label").first()
    )
    cells = {}
    for row in means.to_dicts():
        called = run.classes[int(row["moved"] >= 0.5)]
        wrong = called != row["label"]
        entry = number_entry(row["score"], sub=f"called {called}" if wrong else "")
        cells[row["patient_id"]] = _marked(entry, is_wrong=wrong)
    return cells


def _class_cells(run: "Run", rows: pl.DataFrame) -> Cells:
    """Return the mean probability of the likeliest class, and its name."""
    shares = [pl.col("probabilities").list.get(c).mean().alias(str(c)) for c in _indices(run)]
    means = rows.group_by("patient_id").agg(*shares, pl.col("label").first())
    cells = {}
    for row in means.to_dicts():
        shares_C = [row[str(c)] for c in _indices(run)]
        likeliest = max(_indices(run), key=shares_C.__getitem__)
        entry = number_entry(shares_C[likeliest], sub=run.classes[likeliest])
        wrong = run.classes[likeliest] != row["label"]
        cells[row["patient_id"]] = _marked(entry, is_wrong=wrong)
    return cells


def _label_cells(run: "Run", rows: pl.DataFrame) -> Cells:
    """Return the share of labels that the mean probability has right."""
    shares = [pl.col("probabilities").list.get(c).mean().alias(str(c)) for c in _indices(run)]
    means = rows.group_by("patient_id").agg(*shares, pl.col("labels").first())
    cells = {}
    for row in means.to_dicts():
        right = [(row[str(c)] >= 0.5) == bool(row["labels"][c]) for c in _indices(run)]
        entry = number_entry(sum(right) / len(right), sub=f"{sum(right)} of {len(right)}")
        cells[row["patient_id"]] = _marked(entry, is_wrong=not all(right))
    return cells


def _number_cells(_: "Run", rows: pl.DataFrame) -> Cells:
    """Return the mean predicted number, and its error."""
    means = rows.group_by("patient_id").agg(pl.col("found").mean(), pl.col("value").first())
    return {
        row["patient_id"]: number_entry(row["found"], sub=f"{row['found'] - row['value']:+.3f}")
        for row in means.to_dicts()
    }


def _risk_cells(_: "Run", rows: pl.DataFrame) -> Cells:
    """Return the mean rank of the risk within the fold."""
    means = rows.group_by("patient_id").agg(pl.col("rank").mean())
    return {patient: number_entry(rank) for patient, rank in means.iter_rows()}


def _tile_cells(run: "Run", rows: pl.DataFrame) -> Cells:
    """Return the share of a patient's tiles whose likeliest class is right."""
    names = pl.Series(run.classes, dtype=pl.String)
    called = names.gather(rows["probabilities"].list.arg_max())
    right = rows.with_columns((called == rows["label"]).alias("right"))
    means = right.group_by("patient_id").agg(pl.col("right").sum(), pl.len().alias("tiles"))
    return {
        row["patient_id"]: _marked(
            number_entry(row["right"] / row["tiles"], sub=f"{row['right']} of {row['tiles']}"),
            is_wrong=row["right"] < row["tiles"],
        )
        for row in means.to_dicts()
    }


def _marked(entry: Entry, *, is_wrong: bool) -> Entry:
    """Return a cell, marked where the prediction is wrong."""
    return Entry(text=entry.text, key=entry.key, sub=entry.sub, is_wrong=is_wrong)


def _indices(run: "Run") -> range:
    """Return the indices of the classes or labels."""
    return range(len(run.classes))


def predictions_csv(run: "Run") -> bytes:
    """Return all test predictions as a CSV: a column per class or label, no survival curves."""
    table = run.scored
    for name, prefix in (("probabilities", "p"), ("labels", "label")):
        if name in table.columns:
            parts = [
                pl.col(name).list.get(at).alias(f"{prefix}_{one}")
                for at, one in enumerate(run.classes)
            ]
            table = table.with_columns(parts).drop(name)
    lists = [name for name, kind in table.schema.items() if isinstance(kind, pl.List)]
    empty = [name for name in table.columns if table[name].null_count() == table.height]
    return table.drop({*lists, *empty}).write_csv().encode()
