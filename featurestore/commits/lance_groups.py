"""Commits to several tables that belong together: all of them become part of the lake, or none.

Lance commits one table at a time. Each commit of a group carries its mark, and the last one is
marked as the last. An unfinished group is undone by the next committer: every table goes
back to the version that the catalog names, as a new version (Lance's `Restore`), so that rows which
an `Update` deleted are there again.
"""

import json
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import lance
from lance import LanceOperation

from featurestore.commits.lance_ledger import Change, root_versions
from featurestore.errors import DamageError
from featurestore.storage.store import Store
from featurestore.tables.lance_tables import commit, open_table, properties_of
from featurestore.tables.schema import CATALOG

GROUP_KEY = "slidelake:group"
UNDO_KEY = "slidelake:undo"


@dataclass(kw_only=True)
class Group:
    """The commits of one piece of work: their marks, in order, and their changes.

    Attributes:
        name: unique to this piece of work.
        parts: number of commits marked so far.
        changes: changes to apply to the catalog after the last commit.
    """

    name: str = field(default_factory=lambda: uuid.uuid4().hex)
    parts: int = 0
    changes: list[Change] = field(default_factory=list)
    _loose: list[Change] = field(default_factory=list)

    def part(self, change: Change, *, last: bool = False) -> dict[str, str]:
        """Return the properties of the next commit, which carries a change."""
        self.parts += 1
        mark = {"name": self.name, "part": self.parts, "last": last}
        return {**change.properties(), GROUP_KEY: json.dumps(mark)}

    def without_commit(self, change: Change) -> None:
        """Keep a change that no table but the catalog has to be committed for."""
        self._loose.append(change)
        self.changes.append(change)

    def last(self) -> dict[str, str]:
        """Return the properties of the last commit, with changes without a commit of their own."""
        drops = [f"({change.drop})" for change in self._loose if change.drop]
        rows = [row for change in self._loose for row in change.add]
        return self.part(Change(add=rows, drop=" OR ".join(drops) or None), last=True)


@dataclass(frozen=True, kw_only=True)
class Tail:
    """The versions of a table after the one that the catalog names.

    Attributes:
        rel: path of the table.
        named: the version that the catalog names.
        table: the table at its newest version.
        properties: transaction properties of the versions after `named`, in order.
    """

    rel: str
    named: int
    table: lance.LanceDataset
    properties: Sequence[dict[str, str]]

    @property
    def undone(self) -> bool:
        """Whether the newest version is the one that the catalog names, restored."""
        return bool(self.properties) and UNDO_KEY in self.properties[-1]

    def changes(self) -> Iterator[Change]:
        """Yield the catalog changes of these versions, except changes that were undone."""
        undone = [at for at, properties in enumerate(self.properties) if UNDO_KEY in properties]
        first = undone[-1] + 1 if undone else 0
        for version in range(self.named + 1 + first, self.table.version + 1):
            if change := Change.of(self.table, version):
                yield change


def tails(store: Store) -> list[Tail]:
    """Return the tables that have newer versions than the catalog names.

    Raises:
        DamageError: a table has lost the version that the catalog names.
    """
    ahead = []
    for rel, named in root_versions(open_table(store, CATALOG)).items():
        table = open_table(store, rel)
        if table.version < named:
            msg = (
                f"the newest version of {store.shown(rel)} is {table.version}, but the catalog "
                f"names {named}: its manifest is gone; nothing is written to a lake that has less "
                "than its catalog names (`slidelake verify` shows what is whole)"
            )
            raise DamageError(msg)
        versions = range(named + 1, table.version + 1)
        properties = [properties_of(table, version) for version in versions]
        if properties:
            ahead.append(Tail(rel=rel, named=named, table=table, properties=properties))
    return ahead


def is_half_done(ahead: Sequence[Tail]) -> bool:
    """Whether a group of commits was cut short, or its undoing was."""
    if any(tail.undone for tail in ahead):
        return not all(tail.undone for tail in ahead)
    parts: dict[str, int] = {}
    whole: dict[str, int] = {}
    for properties in (each for tail in ahead for each in tail.properties):
        if text := properties.get(GROUP_KEY):
            mark = json.loads(text)
            parts[mark["name"]] = parts.get(mark["name"], 0) + 1
            if mark["last"]:
                whole[mark["name"]] = mark["part"]
    # Counted, since a committer that lost the lock may make its last commit after another one has
    # undone the first.
    return any(whole.get(name) != count for name, count in parts.items())


def undo(store: Store, tail: Tail) -> None:
    """Restore the version of a table that the catalog names as its newest version."""
    commit(
        store,
        tail.rel,
        LanceOperation.Restore(tail.named),
        read_version=tail.table.version,
        properties={UNDO_KEY: str(tail.named)},
    )
