"""Licences of columns: what an encoder's licence forbids, and the acts that are refused for it.

A column keeps its encoder's licence in its field metadata, apart from its identity: a corrected
licence changes no number. Licences are read by people; this is no legal advice.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from featurestore.errors import LicenceError

#: What a licence can forbid, in the words of messages.
Forbidden = Literal[
    "commercial use",
    "sharing derivatives",
    "sharing students",
    "training on outputs",
    "sharing outputs",
]
LICENCE_KEY = b"slidelake:licence"
NOT_STATED = "not stated"


@dataclass(frozen=True, kw_only=True)
class Licence:
    """The licence of a column's encoder.

    Attributes:
        text: name of the licence, as far as it is known.
        forbids: what it forbids. `commercial use` and `sharing derivatives` (changed copies of the
            encoder) are told; `training on outputs` stops `distill`, `sharing students` (it counts
            models trained on its outputs as derivatives) stops `export-student`, and `sharing
            outputs` stops `export`.

    Examples:
        >>> from featurestore.licences import Licence
        >>> str(Licence(text="MIT")), str(Licence(text="X", forbids=("commercial use",)))
        ('MIT', 'X (forbids commercial use)')
    """

    text: str = NOT_STATED
    forbids: tuple[Forbidden, ...] = ()

    def __str__(self) -> str:
        """Return the licence and what it forbids, for a message."""
        return f"{self.text} (forbids {', '.join(self.forbids)})" if self.forbids else self.text

    def to_json(self) -> dict[str, Any]:
        """Return the licence as JSON."""
        return {"text": self.text, "forbids": list(self.forbids)}


def licence_from_json(record: Mapping[str, Any]) -> Licence:
    """Return a licence from its JSON."""
    return Licence(text=record["text"], forbids=tuple(record["forbids"]))


def field_licence(field: pa.Field) -> Licence | None:
    """Return the licence that is kept with a column; None for a column of an earlier version."""
    kept = (field.metadata or {}).get(LICENCE_KEY)
    return None if kept is None else licence_from_json(json.loads(kept))


def licence_metadata(licence: Licence | None) -> dict[bytes, str]:
    """Return the field metadata that keep a licence with a column."""
    return {} if licence is None else {LICENCE_KEY: json.dumps(licence.to_json(), sort_keys=True)}


def forbidden_by_any(licences: Sequence[Licence]) -> tuple[Forbidden, ...]:
    """Return all that any of some licences forbids: a student's restrictions.

    >>> forbidden_by_any([Licence(forbids=("commercial use",)), Licence()])
    ('commercial use',)
    """
    return tuple(dict.fromkeys(act for licence in licences for act in licence.forbids))


def licences_text(licences: Mapping[str, Licence]) -> str:
    """Return one line with the licence of each column.

    >>> licences_text({"a": Licence(text="MIT"), "b": Licence()})
    'licences: a: MIT; b: not stated'
    """
    return f"licences: {'; '.join(f'{name}: {licence}' for name, licence in licences.items())}"


def check_licences(
    licences: Mapping[str, Licence], act: Forbidden, *, permission: str | None = None
) -> None:
    """Refuse an act that the licence of a column forbids, unless the user states a permission.

    Args:
        licences: licence of each column, or student.
        act: what is to be done.
        permission: the user's words on who permitted it; callers record them.

    Raises:
        LicenceError: a licence forbids the act and no permission is stated, or it is blank.

    >>> check_licences({"a": Licence(text="MIT")}, "sharing outputs")
    """
    if permission is not None and not permission.strip():
        msg = "--i-have-permission needs a text: who permitted what, and when; it is recorded"
        raise LicenceError(msg)
    refusing = {name: licence for name, licence in licences.items() if act in licence.forbids}
    if not refusing or permission is not None:
        return
    names = "; ".join(f"{name}: {licence}" for name, licence in refusing.items())
    msg = (
        f"{act} is forbidden by the licence of {', '.join(refusing)} ({names}); ask its "
        "authors, and state their permission by --i-have-permission TEXT, which is recorded"
    )
    raise LicenceError(msg)
