"""Splits from a user's table: CLAM's, Patho-Bench's and STAMP's forms; splits as a table.

Tables may name slides, with file endings or without, or patients. Whoever is missing or surplus is
listed, and a table in which two slides of one patient are on different sides is refused.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from cluster import counted
from downstream.cohorts.slide_names import match_notes, match_slides
from downstream.splits.split import PARTS, LeakageError, Part, Split, SplitError

if TYPE_CHECKING:
    from featurestore.usertables import UserTable

_CLAM = {"train": "train", "val": "validation", "test": "test"}


@dataclass(frozen=True, kw_only=True)
class FoldTable:
    """Splits of a table, on the patients of a cohort.

    Attributes:
        splits: one split per fold.
        missing: ids of the table that name no patient or slide, sorted.
        surplus: patients that the table does not name in any fold, sorted.
        notes: sentences on what was recognised or matched.
    """

    splits: tuple[Split, ...]
    missing: tuple[str, ...]
    surplus: tuple[str, ...]
    notes: tuple[str, ...] = ()


def read_clam(
    files: Mapping[int, bytes], slides: Mapping[str, str], *, distinct: bool = False
) -> FoldTable:
    """Return CLAM's folds from `splits_<k>.csv`: columns train, val, test of ids, blank-padded.

    `splits_<k>_bool.csv` is read as well: an index of ids and three columns of True and False.

    Args:
        files: content of each file by its number k.
        slides: slide id -> patient id, of all slides of the cohort.
        distinct: whether an id is another where it differs from one that is there by case, blanks
            or Unicode form only; else it is refused.

    Raises:
        SplitError: Columns are missing, or a side is empty.
        LeakageError: A patient is on two sides of a fold.
    """
    from featurestore.usertables import parse_table

    folds: dict[int, dict[str, list[str]]] = {}
    notes: list[str] = []
    for fold, content in sorted(files.items()):
        table = parse_table(content, name=f"splits_{fold}.csv", any_ending=True)
        lacking = [name for name in _CLAM if not table.has(name)]
        if lacking:
            msg = f"splits_{fold}.csv has columns {[*table.columns]}; CLAM's are train, val, test"
            raise SplitError(msg)
        folds[fold] = _clam_sides(table)
        notes += table.notes
    return _fold_table(folds, slides, tuple(notes), distinct=distinct)


def read_patho_bench(
    content: bytes, slides: Mapping[str, str], *, distinct: bool = False
) -> FoldTable:
    """Return the folds of Patho-Bench's `k=all.tsv`: case_id, slide_id, and fold_0 ... of parts.

    A row is matched by its slide if the cohort has it, else by its case.

    Args:
        content: bytes of the file.
        slides: slide id -> patient id, of all slides of the cohort.
        distinct: see `read_clam`.

    Raises:
        SplitError: Columns are missing, a value is none of train, val and test, or a side is empty.
        LeakageError: A patient is on two sides of a fold.
    """
    from featurestore.usertables import parse_table

    table = parse_table(content, name="k=all.tsv", any_ending=True)
    columns = [name for name in table.columns if name.startswith("fold_")]
    keys = [name for name in ("slide_id", "case_id") if table.has(name)]
    if not columns or not keys:
        msg = f"columns {[*table.columns]}; give slide_id or case_id, and fold_0, fold_1, ..."
        raise SplitError(msg)
    ids = pl.DataFrame([table.texts(name).alias(name) for name in keys])
    named = _patients(set(ids[keys[0]].drop_nulls()), slides, distinct=distinct)[0]
    first = pl.when(pl.col(keys[0]).is_in(list(named))).then(keys[0])
    key = ids.select(pl.coalesce(first, keys[-1]).alias("id")).to_series()
    folds = {}
    for name in columns:
        side: dict[str, list[str]] = defaultdict(list)
        parts = pl.DataFrame([key, table.texts(name).alias("part")])
        for identity, part_name in parts.drop_nulls().iter_rows():
            part = _CLAM.get(part_name.strip())
            if part is None:
                msg = f"{name} of {identity} is {part_name!r}; allowed are {', '.join(_CLAM)}"
                raise SplitError(msg)
            side[part].append(identity)
        folds[_fold_number(name)] = side
    return _fold_table(folds, slides, table.notes, distinct=distinct)


def read_stamp(content: bytes, slides: Mapping[str, str], *, distinct: bool = False) -> FoldTable:
    """Return STAMP's folds: {"splits": [{"train_patients": [...], "test_patients": [...]}, ...]}.

    It has no validation part (STAMP draws one from train at random): split train again before
    anything is decided.

    Raises:
        SplitError: Another form, or a side is empty.
        LeakageError: A patient is on two sides of a fold.
    """
    try:
        folds = {
            fold: {"train": split["train_patients"], "test": split["test_patients"]}
            for fold, split in enumerate(json.loads(content)["splits"])
        }
    except (ValueError, KeyError, TypeError) as error:
        msg = f'no splits.json of STAMP ({error!r}); it is {{"splits": [{{"train_patients": [...], '
        msg += '"test_patients": [...]}]}'
        raise SplitError(msg) from error
    return _fold_table(folds, slides, distinct=distinct)


def to_table(splits: Iterable[Split]) -> pl.DataFrame:
    """Return splits as a table to store with a run: repeat, fold, inner, part, patient_id."""
    rows = [
        (split.repeat, split.fold, split.inner, part, patient)
        for split in splits
        for part in PARTS
        for patient in split.patients(part)
    ]
    schema = {
        "repeat": pl.Int64,
        "fold": pl.Int64,
        "inner": pl.Int64,
        "part": pl.String,
        "patient_id": pl.String,
    }
    return pl.DataFrame(rows, schema=schema, orient="row")


def from_table(table: pl.DataFrame) -> list[Split]:
    """Return the splits of a table from `to_table`, without sites.

    Raises:
        SplitError: Columns are missing, or a side is empty.
        LeakageError: A patient is on two sides of a fold.
    """
    keys = ["repeat", "fold", "inner"]
    absent = {*keys, "part", "patient_id"} - set(table.columns)
    if absent:
        msg = f"columns {sorted(absent)} are missing; write the table with to_table"
        raise SplitError(msg)
    splits = []
    for key, rows in table.sort(*keys, maintain_order=True).group_by(keys, maintain_order=True):
        repeat, fold, inner = (int(str(part)) for part in key)
        train, validation, test = (
            tuple(rows.filter(pl.col("part") == part)["patient_id"]) for part in PARTS
        )
        splits.append(
            Split(
                train=train,
                validation=validation,
                test=test,
                repeat=repeat,
                fold=fold,
                inner=inner,
            )
        )
    return splits


def _clam_sides(table: "UserTable") -> dict[str, list[str]]:
    """Return the ids of each side from either of CLAM's two forms."""
    sides = {part: table.texts(name) for name, part in _CLAM.items()}
    others = [table.texts(name) for name in table.columns if name.lower() not in _CLAM]
    ids = table.index if table.index is not None else next(iter(others), None)
    flags = {word.lower() for side in sides.values() for word in side.drop_nulls().unique()}
    if flags <= {"true", "false"} and ids is not None:
        is_true = {part: side.str.to_lowercase() == "true" for part, side in sides.items()}
        return {part: ids.filter(flag.fill_null(value=False)).drop_nulls().to_list()
                for part, flag in is_true.items()}  # fmt: skip
    return {part: _whole_number_ids(side.drop_nulls()).to_list() for part, side in sides.items()}


def _whole_number_ids(ids: pl.Series) -> pl.Series:
    """Return the ids of a padded column, in which pandas writes 101 as 101.0."""
    return ids.str.strip_suffix(".0") if ids.str.contains(r"^\d+\.0$").all() else ids


def _patients(
    names: set[str], slides: Mapping[str, str], *, distinct: bool
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the patient of each name of a slide or a patient, and notes on how it was matched."""
    from featurestore.usertables import refuse_near_others

    lake_patients = set(slides.values())
    patient_of = {
        name: slides.get(name, name) for name in names if name in slides or name in lake_patients
    }
    match = match_slides(names - set(patient_of), slides)
    patient_of |= {name: slides[slide] for name, slide in match.slide_of.items()}
    if not distinct:
        refuse_near_others(
            names - set(patient_of), {*slides, *lake_patients}, "splits", "the cohort"
        )
    return patient_of, tuple(match_notes(match))


def _fold_table(
    folds: Mapping[int, Mapping[str, Iterable[str]]],
    slides: Mapping[str, str],
    notes: tuple[str, ...] = (),
    *,
    distinct: bool,
) -> FoldTable:
    """Return the splits of patients from folds whose sides hold slide or patient ids."""
    names = {name for sides in folds.values() for side in sides.values() for name in side}
    patients, matched = _patients(names, slides, distinct=distinct)
    splits = []
    for fold, sides in folds.items():
        parts: dict[Part, set[str]] = {
            part: {patients[name] for name in sides.get(part, ()) if name in patients}
            for part in PARTS
        }
        _refuse_shared(fold, parts)
        train, validation, test = (tuple(parts[part]) for part in PARTS)
        splits.append(Split(train=train, validation=validation, test=test, fold=fold))
    if not splits:
        msg = "the table has no folds; give at least one"
        raise SplitError(msg)
    return FoldTable(
        splits=tuple(splits),
        missing=tuple(sorted(names - set(patients))),
        surplus=tuple(sorted(set(slides.values()) - set(patients.values()))),
        notes=(*matched, *notes),
    )


def _refuse_shared(fold: int, parts: Mapping[Part, set[str]]) -> None:
    """Raise LeakageError for a patient on two sides, naming the fold of the user's table."""
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        shared = sorted(parts[one] & parts[other])  # type: ignore[index]
        if shared:
            msg = (
                f"fold {fold} of the table has {counted(len(shared), 'patient')} both in {one} "
                f"and in {other} "
                f"(by different slides, if it names slides), for example {', '.join(shared[:5])}; "
                "put all slides of a patient on one side"
            )
            raise LeakageError(msg)


def _fold_number(column: str) -> int:
    """Return the number of a fold from its column, `fold_<number>`."""
    try:
        return int(column.removeprefix("fold_"))
    except ValueError as error:
        msg = f"column {column!r}; folds are named fold_0, fold_1, ..."
        raise SplitError(msg) from error
