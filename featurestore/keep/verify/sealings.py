"""The sealed JSON files of statistics, students and runs: damage, and missing checksums."""

from collections.abc import Iterator
from dataclasses import dataclass

from featurestore.errors import DamageError
from featurestore.keep.verify.damage import FILE, Damage
from featurestore.storage.sealed_json import (
    CHECKSUMS,
    OWN,
    checksum_of,
    json_bytes,
    read_named,
    read_sealed,
    resealed,
)
from featurestore.storage.store import Store
from featurestore.storage.zip_files import check_zip


@dataclass(frozen=True, kw_only=True)
class Sealing:
    """A sealed JSON file of a lake and the files that it has to name.

    Attributes:
        path: path of the JSON file.
        files: paths of the sealed files beside the JSON file.
    """

    path: str
    files: tuple[str, ...]

    def _name(self, file: str) -> str:
        """Return the name of a file as the JSON file has it: relative to its own folder."""
        return file.removeprefix(self.path.rpartition("/")[0] + "/")

    def damage(self, store: Store) -> Iterator[Damage]:
        """Yield the damage of the JSON file and of the files that it names, also missing files."""
        try:
            seal = read_sealed(store, self.path)
        except DamageError as error:
            yield Damage(description=str(error), part=FILE, path=self.path)
            return
        folder = self.path.rpartition("/")[0]
        for name in seal.get(CHECKSUMS, {}):
            try:
                read_named(store, f"{folder}/{name}", seal)
            except DamageError as error:
                yield Damage(description=str(error), part=FILE, path=f"{folder}/{name}")

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

        Existing checksums stay, so that a damaged file gets no new checksum.
        """
        count = self.missing(store)
        if count:
            seal = read_sealed(store, self.path)
            named = {
                self._name(path): checksum_of(store.read_bytes(path)) for path in sorted(self.files)
            }
            named |= seal.get(CHECKSUMS, {})
            store.write_bytes(self.path, json_bytes(resealed({**seal, CHECKSUMS: named})))
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
    """Yield the settings of runs, the cells of studies, and the results of what is finished.

    A training's settings name its norms and, once it has ended, its record; a checkpoint has its
    own checksums, and may be deleted.
    """
    for run in store.names("runs"):
        names = set(store.names(f"runs/{run}"))
        if "config.json" in names:
            files = tuple(f"runs/{run}/{name}" for name in names & {"norms.safetensors"})
            yield Sealing(path=f"runs/{run}/config.json", files=files)
        if "report.json" in names:
            yield Sealing(path=f"runs/{run}/report.json", files=())
        for cell in store.names(f"runs/{run}/cells"):
            if cell.endswith(".json") and not cell.startswith("."):
                yield Sealing(path=f"runs/{run}/cells/{cell}", files=())
        if "result.json" in names:
            tables = [
                f"runs/{run}/{folder}{name}"
                for folder in ("", "attention/")
                for name in store.names(f"runs/{run}/{folder}".rstrip("/"))
                if name.endswith(".parquet") and not name.startswith(".")
            ]
            yield Sealing(path=f"runs/{run}/result.json", files=tuple(tables))


def checkpoint_damage(store: Store) -> Iterator[Damage]:
    """Yield the checkpoints of trainings, finished or not, that are not what was written."""
    for run in store.names("runs"):
        path = f"runs/{run}/checkpoint.pt"
        if store.exists(path):
            try:
                check_zip(store, path)
            except DamageError as error:
                yield Damage(description=str(error), part=FILE, path=path)


def _of_folder(store: Store, folder: str, seal: str) -> Sealing:
    names = [name for name in store.names(folder) if not name.startswith(".") and name != seal]
    files = tuple(f"{folder}/{name}" for name in names if name.endswith((".safetensors", ".json")))
    return Sealing(path=f"{folder}/{seal}", files=files)
