"""JSON files that name the size and CRC-32 of the files beside them, and their own checksum.

So are the moments of features (`card.json`), students (`report.json`) and studies (`result.json`)
checked: Lance's tables have the catalog, these files have none. Files of early lakes name nothing
and are taken as they are; `slidelake repair --checksums` seals them.
"""

import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from featurestore.errors import DamageError
from featurestore.keep.verify.damage import FILE, Damage
from featurestore.read_errors import meaning_of
from featurestore.storage.store import Store

CHECKSUMS, OWN = "checksums", "card_crc32"

Json = dict[str, Any]


def checksum_of(data: bytes) -> list[int]:
    """Return size and CRC-32 of a file's bytes."""
    return [len(data), zlib.crc32(data)]


def own_checksum(value: Mapping[str, Any]) -> int:
    """Return the CRC-32 of a JSON object without its own checksum: keys sorted, no spaces.

    >>> own_checksum({"a": 1, "card_crc32": 5}) == own_checksum({"a": 1})
    True
    """
    rest = {key: value[key] for key in value if key != OWN}
    return zlib.crc32(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode())


def sealed(value: Mapping[str, Any], files: Mapping[str, bytes]) -> Json:
    """Return a JSON object with the checksums of the files beside it, by name, and its own."""
    named = {name: checksum_of(data) for name, data in sorted(files.items())}
    return resealed({**value, CHECKSUMS: named})


def resealed(value: Mapping[str, Any]) -> Json:
    """Return a changed JSON object with a new checksum of its own.

    An object of an early lake, without checksums of files, stays without its own.
    """
    early = CHECKSUMS not in value
    return dict(value) if early else {**value, OWN: own_checksum(json.loads(json.dumps(value)))}


def json_bytes(value: Mapping[str, Any]) -> bytes:
    """Return the bytes of a JSON file."""
    return (json.dumps(value, indent=2) + "\n").encode()


def read_sealed(store: Store, path: str) -> Json:
    """Read a sealed JSON object; an early one, without checksums, is taken as it is.

    Raises:
        DamageError: it is gone, or not what was written.
        AccessError: it can't be read now.
    """
    try:
        value = json.loads(store.read_bytes(path))
    except (OSError, ValueError) as error:
        raise meaning_of(error, store, f"{path} can't be read") from error
    if not isinstance(value, dict) or not _is_whole(value):
        raise differs(path)
    return value


def _is_whole(value: Json) -> bool:
    early = OWN not in value and CHECKSUMS not in value
    return early or value.get(OWN) == own_checksum(value)


def differs(path: str) -> DamageError:
    """Return the error for a file that is not what was written."""
    advice = "`slidelake verify` lists all damage; make the file again, or take it from a copy"
    return DamageError(f"{path} is not what was written (checksum); {advice}")


def read_named(store: Store, path: str, seal: Mapping[str, Any]) -> bytes:
    """Read a file and compare it with its checksum in the sealed JSON object beside it.

    Args:
        store: the lake's files.
        path: of the file, in the lake.
        seal: the JSON object; an early one names no checksum, and nothing is compared.

    Raises:
        DamageError: the file is gone, or not what was written.
        AccessError: it can't be read now.
    """
    try:
        data = store.read_bytes(path)
    except OSError as error:
        raise meaning_of(error, store, f"{path} can't be read") from error
    if not is_named(path, data, seal):
        raise differs(path)
    return data


def is_named(path: str, data: bytes, seal: Mapping[str, Any]) -> bool:
    """Whether a file is what its seal names, or is not named by it."""
    for name, checksum in seal.get(CHECKSUMS, {}).items():
        if path.endswith(f"/{name}"):
            return bool(checksum_of(data) == checksum)
    return True


# ---------------------------------------------------------------------- verify and repair


@dataclass(frozen=True, kw_only=True)
class Sealing:
    """A sealed JSON file of a lake and the files that it has to name.

    Attributes:
        path: of the JSON file.
        files: paths of those beside it.
    """

    path: str
    files: tuple[str, ...]

    def _name(self, file: str) -> str:
        """Return the name of a file as the JSON file has it: relative to its own folder."""
        return file.removeprefix(self.path.rpartition("/")[0] + "/")

    def damage(self, store: Store) -> Iterator[Damage]:
        """Yield the damage of the JSON file and of the files that it names, lost ones included."""
        try:
            seal = read_sealed(store, self.path)
        except DamageError as error:
            yield Damage(what=str(error), part=FILE, path=self.path)
            return
        folder = self.path.rpartition("/")[0]
        for name in seal.get(CHECKSUMS, {}):
            try:
                read_named(store, f"{folder}/{name}", seal)
            except DamageError as error:
                yield Damage(what=str(error), part=FILE, path=f"{folder}/{name}")

    def missing(self, store: Store) -> int:
        """Count the files without a checksum; 0 if the JSON file is damaged."""
        try:
            seal = read_sealed(store, self.path)
        except DamageError:
            return 0
        named = seal.get(CHECKSUMS, {})
        return (OWN not in seal) + sum(self._name(file) not in named for file in self.files)

    def add(self, store: Store) -> int:
        """Record missing checksums, of the files as they are now; return how many there were.

        Those that are there stay: a damaged file is not vouched for.
        """
        count = self.missing(store)
        if count:
            seal = read_sealed(store, self.path)
            files = {self._name(path): store.read_bytes(path) for path in self.files}
            fresh = sealed(seal, files)
            named = {**fresh[CHECKSUMS], **seal.get(CHECKSUMS, {})}
            store.write_bytes(self.path, json_bytes(resealed({**fresh, CHECKSUMS: named})))
        return count


def sealings_of_stats(store: Store) -> Iterator[Sealing]:
    """Yield the cards of statistics, with the moments and rotations that they describe."""
    for column in store.names("stats"):
        folder = f"stats/{column}"
        names = store.names(folder)
        if "card.json" in names:  # an early lake: one set of slides for each column
            files = tuple(f"{folder}/{name}" for name in names if name.endswith(".safetensors"))
            yield Sealing(path=f"{folder}/card.json", files=files)
        for key in names:
            if store.exists(f"{folder}/{key}/card.json"):
                yield _of_folder(store, f"{folder}/{key}", "card.json")


def sealings_of_students(store: Store) -> Iterator[Sealing]:
    """Yield the reports of finished students, with their weights and cards."""
    for student in store.names("students"):
        if store.exists(f"students/{student}/report.json"):
            yield _of_folder(store, f"students/{student}", "report.json")


def sealings_of_runs(store: Store) -> Iterator[Sealing]:
    """Yield the cells of studies, and the results of finished ones with their tables."""
    for run in store.names("runs"):
        for cell in store.names(f"runs/{run}/cells"):
            if cell.endswith(".json") and not cell.startswith("."):
                yield Sealing(path=f"runs/{run}/cells/{cell}", files=())
        if store.exists(f"runs/{run}/result.json"):
            tables = [
                f"runs/{run}/{folder}{name}"
                for folder in ("", "attention/")
                for name in store.names(f"runs/{run}/{folder}".rstrip("/"))
                if name.endswith(".parquet") and not name.startswith(".")
            ]
            yield Sealing(path=f"runs/{run}/result.json", files=tuple(tables))


def _of_folder(store: Store, folder: str, seal: str) -> Sealing:
    names = [name for name in store.names(folder) if not name.startswith(".") and name != seal]
    files = tuple(f"{folder}/{name}" for name in names if name.endswith((".safetensors", ".json")))
    return Sealing(path=f"{folder}/{seal}", files=files)
