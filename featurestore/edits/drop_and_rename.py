"""Slides, teachers and annotations dropped or renamed; each edit is one commit.

Earlier versions of the lake stay as they are. Products of dropped or renamed parts (runs,
statistics, students) are named and left as they are.
"""

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from featurestore.commits.lance_commit import Committer
from featurestore.commits.lance_edit import Edit, was_made
from featurestore.commits.lance_ledger import among_names
from featurestore.edits import lance_edits as edits
from featurestore.edits.lance_edits import dropped_id
from featurestore.errors import LakeError
from featurestore.lake import Lake
from featurestore.messages import did_you_mean
from featurestore.notebook.shown import Shown
from featurestore.storage.lock import no_writers
from featurestore.storage.store import FileInfo
from featurestore.tables.annotation import TILE, check_name
from featurestore.tables.schema import (
    DROPPED,
    SLIDES,
    check_column_name,
    features_table,
    is_quantised,
)

What = Literal["slide", "teacher", "annotation", "encoding"]
FOLDERS = ("runs", "stats", "students")
PIECE_BYTES = 1 << 24  # of a JSON file, read at once


@dataclass(frozen=True, kw_only=True, repr=False)
class Edited(Shown):
    """Result of dropping or renaming.

    Attributes:
        what: `slide`, `teacher`, `annotation` or `encoding`.
        names: names of the dropped parts, or the old and the new name.
        version: version of the lake that has it.
        before: the version before it, which `--at` still reads.
        done: false if it had been done already.
        named_in: folders of runs, statistics and students that name them.
    """

    what: What
    names: tuple[str, ...]
    version: int
    before: int
    done: bool
    named_in: tuple[str, ...] = ()


def drop(lake: Lake, what: What, names: Sequence[str]) -> Edited:
    """Remove slides, teachers, annotations or slide encodings from a lake, in one commit.

    Args:
        lake: the lake; its newest version is edited.
        what: `slide`, `teacher`, `annotation` or `encoding` (slides' vectors of a name).
        names: names of what is dropped.

    Raises:
        LakeError: the lake has nothing of a name and never had, or a job is writing to the lake.

    Examples:
        >>> edit = sl.drop(sl.open_lake("my-lake"), "slide", ["s03a"])
        >>> sl.open_lake("my-lake").info()["slides"]["ready"]
        12
    """
    unique, committer = list(dict.fromkeys(names)), lake.committer
    with no_writers(lake.store), committer.exclusive():
        lake = lake.refreshed()
        edit = _DROPS[what](lake, unique)
        if edit is not None:
            committer.make(edit)
    return _edit_result(lake, what, unique, unique, done=edit is not None)


def _edit_result(
    lake: Lake, kind: What, names: Sequence[str], looked_for: Sequence[str], *, done: bool
) -> Edited:
    return Edited(
        what=kind,
        names=tuple(names),
        version=lake.refreshed().version,
        before=lake.version,
        done=done,
        named_in=tuple(named_in(lake, looked_for)),
    )


def _slides_to_drop(lake: Lake, names: Sequence[str]) -> Edit | None:
    numbers = _numbers(lake, names)
    gone = [name for name in names if name not in numbers]
    for name in gone:
        _check_dropped(lake, name)
    if not numbers:
        return None
    return edits.drop_slides({number: name for name, number in numbers.items()})


def _numbers(lake: Lake, names: Sequence[str]) -> dict[str, int]:
    columns, where = ["slide", "slide_id"], among_names(names)
    table = lake.table(SLIDES).to_table(columns=columns, filter=where)
    return dict(zip(table["slide_id"].to_pylist(), table["slide"].to_pylist(), strict=True))


def _check_dropped(lake: Lake, name: str) -> None:
    """Raise LakeError unless a slide of this name was dropped before."""
    table = lake.table(SLIDES).to_table(
        columns=["slide", "slide_id"], filter=f"state = '{DROPPED}'"
    )
    rows = zip(table["slide"].to_pylist(), table["slide_id"].to_pylist(), strict=True)
    if any(slide_id == dropped_id(number, name) for number, slide_id in rows):
        return
    slide_ids = lake.slides().select("slide_id").collect()["slide_id"].to_list()
    msg = f"slide '{name}' is not in {lake.uri}{did_you_mean(name, slide_ids)}"
    raise LakeError(msg)


def _teachers_to_drop(lake: Lake, names: Sequence[str]) -> Edit | None:
    teachers = _teachers(lake)
    edit = edits.drop_columns(names)
    missing = [name for name in names if name not in teachers]
    if len(missing) == len(names) and was_made(lake.committer.ledger, edit):
        return None
    _refuse(lake, "teacher", missing, teachers)
    return edit


def _teachers(lake: Lake) -> list[str]:
    return sorted({name for mpp in lake.config.mpps for name in lake.teachers(mpp=mpp)})


def _refuse(lake: Lake, kind: str, missing: Sequence[str], names: Sequence[str]) -> None:
    if missing:
        msg = (
            f"{lake.uri} has no {kind} '{missing[0]}'; there are: {', '.join(names) or 'none'}"
            f"{did_you_mean(missing[0], names)}"
        )
        raise LakeError(msg)


def _annotations_to_drop(lake: Lake, names: Sequence[str]) -> Edit | None:
    annotations = lake.annotations()
    missing = [name for name in names if name not in annotations]
    edit = edits.drop_annotations(
        names,
        [
            column
            for name in names
            if name in annotations and annotations[name].level == TILE
            for column in annotations[name].columns.values()
        ],
    )
    if len(missing) == len(names) and was_made(lake.committer.ledger, edit):
        return None
    _refuse(lake, "annotation", missing, list(annotations))
    return edit


def _encodings_to_drop(lake: Lake, names: Sequence[str]) -> Edit | None:
    present = sorted({one.name for one in lake.slide_encodings()})
    edit = edits.drop_encodings(names)
    missing = [name for name in names if name not in present]
    if len(missing) == len(names) and was_made(lake.committer.ledger, edit):
        return None
    _refuse(lake, "slide encoding", missing, present)
    return edit


_DROPS = {
    "slide": _slides_to_drop,
    "teacher": _teachers_to_drop,
    "annotation": _annotations_to_drop,
    "encoding": _encodings_to_drop,
}


# ---------------------------------------------------------------------- other names


def rename(lake: Lake, old: str, new: str, *, what: What | None = None) -> Edited:
    """Rename a slide, a teacher or an annotation, in one commit.

    A teacher keeps its identity and the checksums of its features, a slide its number.

    Args:
        lake: the lake; its newest version is edited.
        old: present name.
        new: the name that it is to have.
        what: kind to rename (slide, teacher, annotation), where several have this name.

    Raises:
        LakeError: nothing has the old name, or several things have it; the new name is taken or
            not allowed; or a job is writing to the lake.

    Examples:
        >>> edit = sl.rename(sl.open_lake("my-lake"), "student", "pupil")
        >>> list(sl.open_lake("my-lake").teachers(mpp=0.5))
        ['uni2_h', 'virchow2', 'pupil']
    """
    committer = lake.committer
    with no_writers(lake.store), committer.exclusive():
        lake = lake.refreshed()
        kinds = [kind for kind in _kinds_of(lake, old) if what in (None, kind)]
        taken = _kinds_of(lake, new)
        if not kinds:
            return _renamed_before(lake, old, new, taken, what)
        if len(kinds) > 1:
            msg = f"'{old}' names a {' and a '.join(kinds)} of {lake.uri}: choose one by --what"
            raise LakeError(msg)
        chosen = kinds[0]
        # Teachers and annotations are both columns; slides have names of their own.
        if same := set(taken) & ({chosen} if chosen == "slide" else {"teacher", "annotation"}):
            msg = f"'{new}' names a {same.pop()} of {lake.uri} already; give another name"
            raise LakeError(msg)
        _RENAMES[chosen](lake, committer, old, new)
    return _edit_result(lake, chosen, (old, new), [old], done=True)


def _kinds_of(lake: Lake, name: str) -> list[What]:
    kinds: list[What] = []
    if _numbers(lake, [name]):
        kinds.append("slide")
    if name in _teachers(lake):
        kinds.append("teacher")
    if name in lake.annotations():
        kinds.append("annotation")
    return kinds


def _renamed_before(
    lake: Lake, old: str, new: str, taken: Sequence[What], kind: What | None
) -> Edited:
    """Return the result of a rename that an earlier call made.

    Raises:
        LakeError: no earlier call made the rename, and nothing has the old name.
    """
    for one_kind in taken:
        edit = _rename_edit(lake, one_kind, old, new)
        if kind in (None, one_kind) and was_made(lake.committer.ledger, edit):
            return _edit_result(lake, one_kind, (old, new), [old], done=False)
    names = [*_teachers(lake), *lake.annotations()]
    names += lake.slides().select("slide_id").collect()["slide_id"].to_list()
    kind_of_name = kind or "slide, teacher or annotation"
    msg = f"{lake.uri} has no {kind_of_name} '{old}'{did_you_mean(old, names)}"
    raise LakeError(msg)


def _rename_edit(lake: Lake, kind: What, old: str, new: str) -> Edit:
    """Return the edit by which a slide, teacher or annotation got its present name."""
    if kind == "slide":
        return edits.rename_slide(_numbers(lake, [new])[new], old, new)
    if kind == "teacher":
        return edits.rename_columns({old: new})
    annotation = lake.annotations()[new]
    if annotation.level != TILE:
        return edits.rename_table(old, new)
    columns = annotation.columns.values()
    return edits.rename_columns({f"{old}{name.removeprefix(new)}": name for name in columns})


def _rename_slide(lake: Lake, committer: Committer, old: str, new: str) -> None:
    if not new.strip() or new.startswith(f"{DROPPED}:"):
        msg = f"a slide can't be called '{new}'"
        raise LakeError(msg)
    committer.make(edits.rename_slide(_numbers(lake, [old])[old], old, new))


def _rename_teacher(lake: Lake, committer: Committer, old: str, new: str) -> None:
    schemas = [lake.table(features_table(mpp)).schema for mpp in lake.config.mpps]
    fields = [schema.field(old) for schema in schemas if old in schema.names]
    check_column_name(new, quantised=any(is_quantised(field) for field in fields))
    _refuse_column(lake, new)
    committer.make(edits.rename_columns({old: new}))


def _refuse_column(lake: Lake, name: str) -> None:
    for mpp in lake.config.mpps:
        if name in lake.table(features_table(mpp)).schema.names:
            msg = f"'{name}' is a column of the tiles at mpp {mpp} already; give another name"
            raise LakeError(msg)


def _rename_annotation(lake: Lake, committer: Committer, old: str, new: str) -> None:
    check_name(new)
    annotation = lake.annotations()[old]
    if annotation.level == TILE:
        names = {
            column: f"{new}{column.removeprefix(old)}" for column in annotation.columns.values()
        }
        for name in names.values():
            _refuse_column(lake, name)
        committer.make(edits.rename_columns(names, annotation=new))
    else:
        committer.make(edits.rename_table(old, new))


_RENAMES = {
    "slide": _rename_slide,
    "teacher": _rename_teacher,
    "annotation": _rename_annotation,
}


# ---------------------------------------------------------------------- runs that name them


def named_in(lake: Lake, names: Sequence[str]) -> Iterator[str]:
    """Yield the folders of runs, statistics and students with one of the names in their JSON."""
    words = [json.dumps(name)[1:-1].encode() for name in names]
    folders: set[str] = set()
    for folder in FOLDERS:
        for file in lake.store.walk(folder):
            top = "/".join(file.path.split("/")[:2])
            if top not in folders and file.path.endswith(".json"):
                pieces = itertools.chain([f"/{top}/".encode()], _file_pieces(lake, file))
                if _has_word(pieces, words):
                    folders.add(top)
    yield from sorted(folders)


def _file_pieces(lake: Lake, file: FileInfo) -> Iterator[bytes]:
    """Yield the bytes of a file in pieces, as a predictions file may exceed the memory."""
    for start in range(0, file.bytes, PIECE_BYTES):
        yield lake.store.read_range(file.path, start, PIECE_BYTES)


def _has_word(pieces: Iterable[bytes], words: Sequence[bytes]) -> bool:
    """Whether a text has a name alone, joined by + with others, or before an @."""
    either = b"|".join(re.escape(word) for word in words)
    word = re.compile(rb'["+/](' + either + rb')["+@]')
    overlap = max(len(one) for one in words) + 1
    text = b""
    for piece in pieces:
        text = text[-overlap:] + piece
        if word.search(text):
            return True
    return False
