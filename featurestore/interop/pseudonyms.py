"""De-identified exports: ids become random names, and texts that may name somebody are left out.

The key, a table of ids and their names, is kept apart from the export, and is extended where the
lake has grown: a slide has the same name in each export that is made with the same key.
"""

import os
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from featurestore.annotations.annotation_export import SlideAnnotations
from featurestore.interop.foreign_slide import InteropError
from featurestore.interop.writers.outgoing_slide import SlideOut, TeacherOut

SLIDE, PATIENT = "slide", "patient"
KEY_COLUMNS = ("kind", "id", "name")
# Facts of an encoder that are no user's own words; a query over tiles, say, may name a patient.
FACTS = (
    "architecture", "card", "engine", "fov", "grid", "input_px", "interpolation", "layer", "mean",
    "normalisation", "pooling", "precision", "resize_px", "share", "stain", "std", "tokens",
    "version", "weights_sha256",
)  # fmt: skip
# Numbers of a slide by which nobody finds its file.
NUMBERS = ("width_px", "height_px", "mpp", "mpp_x", "mpp_y", "objective", "levels", "tissue", "pen")


class Pseudonyms:
    """The random names of slides and patients, kept in a CSV that only its owner may read.

    Args:
        key: path of the CSV; it is made if it is missing.
        out: folder of the export, in which the key may not lie.

    Raises:
        InteropError: the key lies in the export, or is no table of this kind.
    """

    def __init__(self, key: str | os.PathLike[str], out: str | os.PathLike[str]) -> None:
        self.path = Path(key).expanduser().absolute()
        if self.path.resolve().is_relative_to(Path(out).expanduser().resolve()):
            msg = f"{key} lies in the export {os.fspath(out)}; keep the key apart from it"
            raise InteropError(msg)
        self._names: dict[tuple[str, str], str] = {}
        if self.path.exists():
            self._names = _read_key(self.path)

    def add(self, slides: Iterable[str], patients: Iterable[str]) -> None:
        """Name the ids that have no name yet, and write the key before a name is used."""
        new = [(SLIDE, name) for name in slides] + [(PATIENT, name) for name in patients]
        missing = [key for key in dict.fromkeys(new) if key not in self._names]
        if not missing:
            return
        # In random order: neither a name nor its line in the key follows from the id.
        secrets.SystemRandom().shuffle(missing)
        for kind, name in missing:
            self._names[kind, name] = f"{kind}-{secrets.token_hex(6)}"
        rows = [(kind, name, alias) for (kind, name), alias in self._names.items()]
        table = pl.DataFrame(rows, schema=list(KEY_COLUMNS), orient="row")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        scratch = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}")
        with os.fdopen(os.open(scratch, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
            file.write(table.write_csv())
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(self.path)

    def slide(self, slide_id: str) -> str:
        """Return the random name of a slide."""
        return self._names[SLIDE, slide_id]

    def teacher_out(self, teacher: TeacherOut) -> TeacherOut:
        """Return a column to be exported without a user's own words in its encoder's identity."""
        return _without_words(teacher)

    def patients_table(self, ids: pl.DataFrame) -> str:
        """Return CSV with the random names of slides and their patients, in the order of the names.

        Args:
            ids: columns `slide_id` and `patient_id`; a slide without a patient has an empty cell.
        """
        rows = [
            (self._names[SLIDE, slide], self._names[PATIENT, patient] if patient else None)
            for slide, patient in ids.iter_rows()
        ]
        table = pl.DataFrame(sorted(rows), schema=["slide_id", "patient_id"], orient="row")
        return table.write_csv()

    def slide_out(self, slide: SlideOut) -> SlideOut:
        """Return a slide to be exported without ids, paths, free text and users' own columns."""
        attrs = {name: entry for name, entry in slide.tiles.attrs.items() if _is_number(entry)}
        name = self.slide(slide.tiles.slide_id)
        facts = {name: slide.facts[name] for name in NUMBERS if name in slide.facts}
        if (patient := slide.facts.get("patient_id")) is not None:
            facts["patient_id"] = self._names[PATIENT, patient]
        return replace(
            slide,
            tiles=replace(slide.tiles, slide_id=name, source="", attrs=attrs),
            teachers={name: _without_words(teacher) for name, teacher in slide.teachers.items()},
            tissue=lambda: _geometry_alone(slide.tissue()),
            annotations=SlideAnnotations(),
            facts=facts,
        )


def _read_key(path: Path) -> dict[tuple[str, str], str]:
    """Return the names of a key by kind and id.

    Raises:
        InteropError: the file is no key.
    """
    try:
        table = pl.read_csv(path, infer_schema=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        msg = f"{path} can't be read as a key of pseudonyms: {error}"
        raise InteropError(msg) from error
    if tuple(table.columns) != KEY_COLUMNS:
        msg = f"{path} is no key of pseudonyms: its columns are {', '.join(table.columns)}"
        raise InteropError(msg)
    return {(kind, name): alias for kind, name, alias in table.iter_rows()}


def _is_number(entry: object) -> bool:
    return isinstance(entry, int | float)


def _without_words(teacher: TeacherOut) -> TeacherOut:
    identity = {name: entry for name, entry in teacher.identity.items() if name in FACTS}
    return replace(teacher, identity=identity)


def _geometry_alone(tissue: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return outlines without properties, which a user's file may have brought along."""
    if tissue is None:
        return None
    features = [
        {"type": "Feature", "properties": {}, "geometry": feature["geometry"]}
        for feature in tissue["features"]
    ]
    return {"type": "FeatureCollection", "features": features}
