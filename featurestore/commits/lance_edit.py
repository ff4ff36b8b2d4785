"""The mechanism of an edit that touches several tables and appears at once.

Lance changes a schema, rows and a file each in a commit of its own. The first commit of an edit is
an empty one that opens a group (`lance_groups`) which nothing closes but the catalog's commit, so a
reader sees the lake before or after, and an edit that was killed in between is undone as a whole.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lance import LanceOperation

from featurestore.commits.lance_groups import Group
from featurestore.commits.lance_ledger import Change, Ledger
from featurestore.tables.lance_tables import commit, open_table, properties_of, table_versions
from featurestore.tables.schema import features_table

EDIT_KEY = "slidelake:edit"
LOOKED_BACK = 500  # versions in which an edit is looked for that was made before


@dataclass(frozen=True, kw_only=True)
class Work:
    """The ledger, the lock's check and the group of commits that the steps of an edit use.

    Attributes:
        ledger: ledger of the lake; the caller holds the lake's lock.
        check: raises LakeError if it is held no more; called before each commit.
        group: the commits that belong together.
    """

    ledger: Ledger
    check: Callable[[], None]
    group: Group = field(default_factory=Group)


@dataclass(frozen=True, kw_only=True)
class Edit:
    """An edit of a whole lake.

    Attributes:
        description: the edit as JSON can hold it; kept in the transaction that begins it.
        steps: changes all tables but the catalog, and yields the changes of the catalog.
    """

    description: Mapping[str, Any]
    steps: Callable[[Work], Iterator[Change]]

    @property
    def text(self) -> str:
        """Return the description of the edit as one line of JSON."""
        return json.dumps(dict(self.description), sort_keys=True)


def make(work: Work, edit: Edit) -> list[Change]:
    """Change all tables but the catalog, and return the changes of the catalog that follow."""
    rel = features_table(work.ledger.config.mpps[0])
    version = open_table(work.ledger.store, rel).version
    properties = {**work.group.part(Change()), EDIT_KEY: edit.text}
    work.check()
    commit(
        work.ledger.store,
        rel,
        LanceOperation.Append([]),
        read_version=version,
        properties=properties,
    )
    return [*edit.steps(work), *work.group.changes]


def was_made(ledger: Ledger, edit: Edit) -> bool:
    """Whether the same edit was begun before, in the versions that are kept."""
    table = open_table(ledger.store, features_table(ledger.config.mpps[0]))
    kept = table_versions(table)[: -LOOKED_BACK - 1 : -1]
    return any(properties_of(table, v).get(EDIT_KEY) == edit.text for v in kept)
