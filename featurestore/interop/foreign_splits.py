"""Splits of other tools, as they are: CLAM, STAMP and Patho-Bench.

All become one row per fold and slide or patient. A sample in two parts of a fold is refused: it
would be tested on what it was trained on.
"""

import json
import os
import re
from pathlib import Path

import polars as pl

from featurestore.interop.foreign_labels import FOLD
from featurestore.interop.foreign_slide import InteropError
from featurestore.messages import listing
from featurestore.usertables import UserTable, tables_raise
from featurestore.usertables.read_table import read_table

PARTS = ("train", "val", "test")
CLAM_NAME = re.compile(r"splits_(\d+)(_bool)?\.csv")
SAMPLE_COL = re.compile(r"""^sample_col:\s*["']?(\w+)""", re.MULTILINE)
KNOWN = (
    "CLAM's splits_<k>.csv and splits_<k>_bool.csv (or the folder of them), STAMP's splits.json, "
    "Patho-Bench's k=all.tsv (case_id, slide_id, fold_0, ...)"
)


def read_splits(path: str | os.PathLike[str]) -> pl.DataFrame:
    """Return the folds of a split.

    Args:
        path: a file, or CLAM's folder of them.

    Returns:
        `fold` (int), `slide_id` and/or `patient_id`, and `part`: train, val or test. What a fold
        leaves out has no row.

    Raises:
        InteropError: a file that can't be read or of no known form, an id in two parts of a fold,
            or rows of one sample that disagree.
    """
    file = Path(path)
    with tables_raise(InteropError):
        splits = _read(file)
    _refuse_leaks(splits, file)
    return splits


def _read(file: Path) -> pl.DataFrame:
    if file.is_dir():
        return _clam_folder(file)
    if file.suffix == ".json":
        return _stamp(file)
    table = read_table(file)
    return _patho_bench(table, file) if _folds(table) else _clam(table, file)


def _clam_folder(folder: Path) -> pl.DataFrame:
    files: dict[int, Path] = {}
    for file in sorted(folder.iterdir()):
        # The plain file sorts after the `_bool` one of the same fold, and holds the same.
        if match := CLAM_NAME.fullmatch(file.name):
            files[int(match[1])] = file
    if not files:
        msg = f"{folder} has no splits_<k>.csv; known forms are: {KNOWN}"
        raise InteropError(msg)
    return pl.concat([_clam(read_table(files[k]), files[k]) for k in sorted(files)])


def _clam(table: UserTable, file: Path) -> pl.DataFrame:
    match = CLAM_NAME.fullmatch(file.name)
    fold = int(match[1]) if match else 0
    if set(table.columns) != set(PARTS) or file.name.endswith("_descriptor.csv"):
        msg = f"{file} has columns {[*table.columns]}; known forms are: {KNOWN}"
        raise InteropError(msg)
    if all(table.values(part).dtype == pl.Boolean for part in PARTS):
        rows = _clam_bool(table)
    else:
        rows = [(name, part) for part in PARTS for name in _ids(table.texts(part))]
    return pl.DataFrame(
        {
            "fold": [fold] * len(rows),
            "slide_id": [name for name, _ in rows],
            "part": [part for _, part in rows],
        },
        schema={"fold": pl.Int64, "slide_id": pl.String, "part": pl.String},
    )


def _clam_bool(table: UserTable) -> list[tuple[str, str]]:
    # The slides are the index, a column without a name.
    names = pl.Series([], dtype=pl.String) if table.index is None else table.index
    return [
        (name, part)
        for part in PARTS
        for name in names.filter(table.values(part).fill_null(value=False)).to_list()
    ]


def _ids(column: pl.Series) -> list[str]:
    """Return the ids of a column that is padded with empty cells to the length of the longest."""
    names = column.drop_nulls()
    # pandas makes floats of whole numbers as soon as a cell is empty: 101 becomes 101.0.
    if names.str.contains(r"^\d+\.0$").all():
        names = names.str.strip_suffix(".0")
    return names.to_list()


def _stamp(file: Path) -> pl.DataFrame:
    try:
        splits = json.loads(file.read_text())["splits"]
        rows = [
            (fold, str(patient), part)
            for fold, split in enumerate(splits)
            for part in ("train", "test")
            for patient in split[f"{part}_patients"]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        msg = f"{file} is not STAMP's splits.json ({error}); known forms are: {KNOWN}"
        raise InteropError(msg) from error
    schema = {"fold": pl.Int64, "patient_id": pl.String, "part": pl.String}
    return pl.DataFrame(rows, schema=schema, orient="row")


def _folds(table: UserTable) -> list[str]:
    names = [name for name in table.columns if FOLD.fullmatch(name)]
    return sorted(names, key=lambda name: int(name.removeprefix("fold_")))


def _patho_bench(source: UserTable, file: Path) -> pl.DataFrame:
    names = {"case_id": "patient_id", "slide_id": "slide_id"}
    ids = [name for name in names if source.has(name)]
    sample = _sample_column(file) or next(iter(ids), None)
    if sample is None or not source.has(sample):
        msg = f"{file} has folds but no column '{sample}'; known forms are: {KNOWN}"
        raise InteropError(msg)
    columns = dict.fromkeys([*ids, sample, *_folds(source)])
    table = pl.DataFrame([source.texts(name).alias(name) for name in columns])
    folds = _folds(source)
    for fold in folds:
        torn = table.group_by(sample).agg(pl.col(fold).n_unique()).filter(pl.col(fold) > 1)
        if not torn.is_empty():
            samples = listing(torn[sample].sort().to_list())
            msg = f"{file}: rows of one {sample} disagree about {fold}: {samples}"
            raise InteropError(msg)
    rows = table.unpivot(folds, index=ids, variable_name="fold", value_name="part")
    other = set(rows["part"].drop_nulls()) - set(PARTS)
    if other:
        msg = f"{file} has the parts {sorted(other)}; allowed are {', '.join(PARTS)}"
        raise InteropError(msg)
    number = pl.col("fold").str.strip_prefix("fold_").cast(pl.Int64)
    rows = rows.drop_nulls("part").with_columns(number).rename({i: names[i] for i in ids})
    return rows.select("fold", *(names[i] for i in reversed(ids)), "part")


def _sample_column(file: Path) -> str | None:
    """Return the column that `config.yaml` beside the file calls a sample."""
    config = file.with_name("config.yaml")
    if not config.is_file():
        return None
    match = SAMPLE_COL.search(config.read_text())
    return match[1] if match else None


def _refuse_leaks(splits: pl.DataFrame, file: Path) -> None:
    key = "slide_id" if "slide_id" in splits.columns else "patient_id"
    parts = splits.group_by("fold", key).agg(pl.col("part").n_unique()).filter(pl.col("part") > 1)
    if not parts.is_empty():
        first = parts.sort("fold", key)["fold"].first()
        names = listing(parts.filter(pl.col("fold") == first)[key].sort().to_list())
        msg = f"{file}: in two parts of fold {first!s}: {names}; each must be in one part only"
        raise InteropError(msg)
