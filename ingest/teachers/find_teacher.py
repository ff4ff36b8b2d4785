"""Teachers by name, as running encoders: a card of ours, a student in the lake, a user's file.

Names are those of `outputs.py`; a path that ends in `.py` is a user's own encoder, after which the
same may be named as after a card's name: `encoder.py:patches25@L6`.
"""

import contextlib
import difflib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ingest.errors import TeacherError
from ingest.teachers.cards.card import Card, Engine, Precision, card_from_json
from ingest.teachers.cards.card_table import CARDS
from ingest.teachers.outputs import SAMPLED, Output, card_name, outputs_of
from ingest.teachers.own_encoder import card_from_user_file, own_network, split_own
from ingest.teachers.student_files import WEIGHTS, student_file, student_folder
from ingest.teachers.weights.file_hash import sha256_of
from ingest.teachers.weights.weights_files import fetch_weights, find_weights, has_weights

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    from featurestore import Lake, Licence, Store
    from ingest.teachers.encoder import Encoder
    from ingest.teachers.views.field_of_view import FieldOfView

# A student of features has this file in place of a card.
FEATURE_CARD = "features.json"


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """An encoder and its columns; it travels to the workers.

    Attributes:
        card: card of the encoder, which states how it is run.
        outputs: columns of the encoder.
        sha256: SHA-256 of its weights; of its file and weights for a user's own encoder.
        source: text of the file of a user's own encoder.
        where: path of the user's file.
        folder: folder, or URL in a bucket, in which weights are looked for first.
    """

    card: Card
    outputs: tuple[Output, ...]
    sha256: str
    source: str | None = None
    where: str = ""
    folder: str | None = None

    def identity(
        self,
        output: Output,
        precision: Precision,
        engine: Engine = "torch",
        view: "FieldOfView | None" = None,
    ) -> dict[str, Any]:
        """Return all that decides a column's numbers, which is kept with the column.

        Args:
            output: the column.
            precision: precision of the network's arithmetic.
            engine: engine that runs the network.
            view: field of view; None for the rows' own tiles.
        """
        run = {"card": self.card.name, "weights_sha256": self.sha256, "precision": precision}
        by = {} if engine == "torch" else {"engine": engine}
        # A reader of patch tokens needs their grid, and the card of a user's encoder is in no lake.
        own_tokens = self.source is not None and output.pooling in SAMPLED and self.card.grid
        grid = {"grid": list(self.card.grid or ())} if own_tokens else {}
        field = {} if view is None else view.identity()
        return {**self.card.identity(), **output.identity(), **run, **by, **grid, **field}


def sees_features(store: "Store", name: str) -> bool:
    """Whether a name is that of a student whose inputs are columns of the lake, not pixels."""
    return store.exists(f"{student_folder(name)}/{FEATURE_CARD}")


def find_card(store: "Store", name: str) -> Card:
    """Return the card of a teacher or of a student of this lake.

    Raises:
        TeacherError: there is no such card; near names are suggested.
    """
    name = card_name(name)
    if name in CARDS:
        return CARDS[name]
    path = f"{student_folder(name)}/card.json"
    if store.exists(path):
        return card_from_json(json.loads(student_file(store, name, "card.json")))
    if sees_features(store, name):
        msg = (
            f"'{name}' is a student of features: it reads columns of the lake, not pixels; "
            "`slidelake extract`, or `slidelake.extract` in Python, makes its column"
        )
        raise TeacherError(msg)
    students = store.names("students")
    close = difflib.get_close_matches(name, [*CARDS, *students])
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    available = [name for name in CARDS if has_weights(CARDS[name])]
    msg = (
        f"no teacher '{name}': {hint}usable now are "
        f"{', '.join([*available, *students]) or 'none'}; "
        "`slidelake teachers` lists all"
    )
    raise TeacherError(msg)


def find_teachers(
    store: "Store", names: Sequence[str], *, folder: str | None = None
) -> list[Teacher]:
    """Return the encoders of these names, each once, with all their columns.

    Missing weights are fetched; the networks are not built.

    Raises:
        TeacherError: a name is not known, has no such column, or its weights can't be fetched.
    """
    teachers: dict[str, Teacher] = {}
    # Workers may work in another folder than this process.
    if folder is not None and "://" not in folder:
        folder = str(Path(folder).expanduser().absolute())
    for name in names:
        own = split_own(name)
        teacher = _own(*own) if own else _with_card(store, name, folder, teachers)
        earlier = teachers.get(teacher.card.name, replace(teacher, outputs=()))
        if earlier.sha256 != teacher.sha256:
            msg = f"two encoders are called '{teacher.card.name}': {name} and another"
            raise TeacherError(msg)
        outputs = dict.fromkeys([*earlier.outputs, *teacher.outputs])
        teachers[teacher.card.name] = replace(earlier, outputs=tuple(outputs))
    return list(teachers.values())


def _with_card(
    store: "Store", name: str, folder: str | None, teachers: dict[str, Teacher]
) -> Teacher:
    card = find_card(store, name)
    outputs = tuple(outputs_of(name, card))
    if card.name in teachers:
        return replace(teachers[card.name], outputs=outputs)
    with weights_of(store, card, folder) as path:
        return Teacher(card=card, outputs=outputs, sha256=sha256_of(path), folder=folder)


def _own(path: str, taken: str) -> Teacher:
    """Return a user's encoder with all embeddings of its card, or what is taken of its tokens."""
    try:
        source = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{path} can't be read: {error}"
        raise TeacherError(msg) from error
    card, weights = card_from_user_file(source, path)
    if card.name in CARDS:
        msg = f"{path} calls itself '{card.name}', which is a teacher of slidelake's own"
        raise TeacherError(msg)
    every_pooling = [f"{card.name}:{pooling}" for pooling in card.poolings]
    names = [f"{card.name}{taken}"] if taken else every_pooling
    outputs = [output for name in names for output in outputs_of(name, card)]
    digest = hashlib.sha256(source.encode())
    if weights is not None:
        digest.update(sha256_of(weights).encode())
    return Teacher(
        card=card, outputs=tuple(outputs), sha256=digest.hexdigest(), source=source, where=path
    )


def load_encoder(
    store: "Store",
    teacher: Teacher,
    *,
    threads: int = 1,
    pool: "ThreadPoolExecutor | None" = None,
    device: str = "cpu",
    precision: Precision = "float32",
    engine: Engine = "torch",
) -> "Encoder":
    """Return a teacher's encoder, ready to run.

    Raises:
        TeacherError: the teacher's weights are missing, have changed, or do not fit the card.
    """
    from ingest.teachers.encoder import Encoder
    from ingest.teachers.networks import build
    from ingest.teachers.weights.weight_keys import load_weights

    card = teacher.card
    if teacher.source is not None:
        model = own_network(teacher.source, teacher.where)
    else:
        with weights_of(store, card, teacher.folder) as path:
            if sha256_of(path) != teacher.sha256:
                msg = f"{path}: other weights of '{card.name}' than where the run was started"
                raise TeacherError(msg)
            model = build(card.architecture, card.input_px, card.arguments)
            load_weights(model, path, card)
    onnx = None
    if engine == "onnxruntime":
        from ingest.teachers.onnx_engine import onnx_network

        onnx, device = onnx_network(model, card, teacher.sha256), "cpu"
    return Encoder(
        card, model, threads=threads, pool=pool, device=device, precision=precision, onnx=onnx
    )


def licence_of(store: "Store", teacher: str) -> "Licence":
    """Return the licence of a teacher or student by its name; of an unknown one it is not stated.

    A student has the licences of its teachers, and forbids what any of them forbids. Codes of a
    column (`NAME~CODEC`) have that of the column.
    """
    from featurestore import Licence

    teacher = teacher.partition("~")[0]
    if sees_features(store, teacher):
        record = json.loads(student_file(store, teacher, FEATURE_CARD))
        text = "; ".join(f"{name}: {text}" for name, text in record["licences"].items())
        return Licence(text=text, forbids=tuple(record.get("forbids", ())))
    try:
        return find_card(store, teacher).terms
    except TeacherError:
        return Licence()


def column_licences(lake: "Lake", teachers: Sequence[str]) -> dict[str, "Licence"]:
    """Return the licence of each column: the one kept with it, or else that of its name's card.

    Columns that were imported, or extracted by an earlier version, keep none. Codes that keep none
    have the licence of the column that they are of.
    """
    licences = {}
    for teacher in teachers:
        names = dict.fromkeys((teacher, teacher.partition("~")[0]))
        kept = [
            lake.licence(name, mpp=mpp)
            for name in names
            for mpp in lake.config.mpps
            if name in lake.teachers(mpp=mpp)
        ]
        recorded = next((licence for licence in kept if licence is not None), None)
        licences[teacher] = recorded or licence_of(lake.store, teacher)
    return licences


@contextlib.contextmanager
def weights_of(store: "Store", card: Card, folder: str | None = None) -> Iterator[Path]:
    """Yield the path of a teacher's or student's weights as a local file.

    Raises:
        TeacherError: the weights are missing, and can't be fetched.
    """
    stored = f"{student_folder(card.name)}/{WEIGHTS}"
    if card.name in CARDS or not store.exists(stored):
        yield find_weights(card, folder) or fetch_weights(card)
        return
    with tempfile.TemporaryDirectory(prefix="slidelake-") as scratch:
        local = Path(scratch) / WEIGHTS
        local.write_bytes(student_file(store, card.name, WEIGHTS))
        yield local


def list_teachers(
    lake: "Lake | Store | str | os.PathLike[str] | None" = None, *, folder: str | None = None
) -> list[dict[str, Any]]:
    """Return a row for each teacher, and for each finished student of a given lake.

    A student of features reads columns of the lake, so its row has no pooling, pixels or precision.

    Args:
        lake: a lake, its files, or its folder or URL; None for teachers alone.
        folder: folder in which weights are looked for first.

    Examples:
        >>> teachers = {row["teacher"]: row for row in sl.list_teachers(sl.open_lake("my-lake"))}
        >>> teachers["uni2_h"]["dim"], teachers["uni2_h"]["gated"]
        (1536, True)
    """
    lake_or_store: Any = lake  # no import of either, so that the command starts at once
    if isinstance(lake_or_store, str | os.PathLike):
        from featurestore import Store as LakeStore

        lake_or_store = LakeStore(lake_or_store)
    store: Store | None = getattr(lake_or_store, "store", lake_or_store)
    rows = [_card_row(card, here=has_weights(card, folder)) for card in CARDS.values()]
    for name in store.names("students") if store else []:
        if store and sees_features(store, name):
            rows.append(_feature_student_row(store, name))
        elif store and store.exists(f"{student_folder(name)}/card.json"):
            rows.append(_card_row(find_card(store, name), here=True))
    return rows


def _card_row(card: Card, *, here: bool) -> dict[str, Any]:
    """Return the row of `slidelake teachers` for a teacher or a student of pixels."""
    return {
        "teacher": card.name,
        "dim": card.pooled_dim(card.poolings[0]),
        "poolings": list(card.poolings),
        "patches": card.grid[0] * card.grid[1] if card.grid else 0,
        "input_px": card.input_px,
        "field_px": list(card.field_px),
        "mpp": card.mpps[0] if card.mpps else None,
        "mpps": list(card.mpps),
        "precision": card.precision,
        "licence": card.licence,
        "forbids": list(card.forbids),
        "gated": card.gated,
        "source": card.hub or card.source,
        "available": here,
        "downloads": card.hub is not None and not card.gated,
    }


def _feature_student_row(store: "Store", name: str) -> dict[str, Any]:
    """Return the row of `slidelake teachers` for a student of features."""
    record = json.loads(student_file(store, name, FEATURE_CARD))
    return {
        "teacher": name,
        "dim": record["dim"],
        "poolings": [],
        "patches": 0,
        "input_px": None,
        "field_px": [],
        "mpp": min(record["mpps"]),
        "mpps": list(record["mpps"]),
        "precision": None,
        "licence": licence_of(store, name).text,
        "forbids": list(licence_of(store, name).forbids),
        "gated": False,
        "source": f"features of {', '.join(record['teachers'])}",
        "available": True,
        "downloads": False,
    }
