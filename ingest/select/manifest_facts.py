"""Facts of a slide in a manifest that decide no pixel: patient, site and other columns, place.

A later manifest changes facts it holds and keeps the rest: an empty cell, a column that it lacks
and a plain path remove nothing.
"""

import json
from collections.abc import Mapping
from typing import Any

Row = dict[str, Any]


def extra_text(extra: Mapping[str, Any]) -> str | None:
    """Return a manifest's other columns as the text that the lake keeps; None if there are none."""
    return json.dumps(dict(extra), default=str, sort_keys=True) if extra else None


def merged_facts(row: Row) -> Row:
    """Return a slide's patient and other columns: the lake's values, replaced by given values."""
    known_patient = row.get("known_patient_id")
    lake_columns, now = _columns(row.get("known_extra")), _columns(row["extra"])
    filled = {name: fact for name, fact in now.items() if fact is not None}
    return {
        "patient_id": row["patient_id"] if row["patient_id"] is not None else known_patient,
        "extra": extra_text({**now, **lake_columns, **filled}),
    }


def changed_facts(row: Row) -> Row:
    """Return the columns of a slide's row that differ from the given values, with new values.

    The file's URI counts where the same file was read from it.
    """
    if _says_nothing_new(row):  # as for most of 300,000 slides
        return {}
    facts = {
        name: fact
        for name, fact in merged_facts(row).items()
        if _value(name, fact) != _value(name, row.get(f"known_{name}"))
    }
    moved = row["state"] == "ready" and row["uri"] != row["known_uri"]
    if moved and row["fingerprint"] == row["known_fingerprint"]:
        facts["uri"] = row["uri"]
    return facts


def _says_nothing_new(row: Row) -> bool:
    return (
        row["patient_id"] in (None, row.get("known_patient_id"))
        and row["extra"] in (None, row.get("known_extra"))
        and row["uri"] == row.get("known_uri")
    )


def fact_names(row: Row) -> set[str]:
    """Return the names of the changed columns, a manifest's other columns one by one."""
    facts = changed_facts(row)
    names = set(facts) - {"extra"}
    old, new = _columns(row.get("known_extra")), _columns(facts.get("extra"))
    return names | {name for name, fact in new.items() if fact != old.get(name)}


def _value(name: str, cell: Any) -> Any:  # noqa: ANN401 - a cell is what it is
    return _columns(cell) if name == "extra" else cell


def _columns(text: str | None) -> Row:
    columns: Row = json.loads(text) if text else {}
    return columns
