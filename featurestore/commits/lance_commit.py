"""The one committer: publishes finished files, each slide and each teacher exactly once.

Order of a commit: features tables, then `slides`, then the catalog, whose newest version names the
versions of all others. A kill between two of them is never seen by a reader, and the next committer
finishes what was begun, or takes it back (`lance_groups`), before it does anything else.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

import lance
import pyarrow as pa

from featurestore.commits import lance_features as features
from featurestore.commits.cuts import Row, SlideCut, fragment_groups
from featurestore.commits.lance_edit import Edit, Work, make
from featurestore.commits.lance_groups import Group, is_half_done, tails, undo
from featurestore.commits.lance_ledger import Change, Ledger, among_names
from featurestore.config import LakeConfig
from featurestore.errors import IdentityError
from featurestore.licences import Licence
from featurestore.storage.lock import commit_lock
from featurestore.storage.store import Store
from featurestore.tables.checksums import with_row_crc32
from featurestore.tables.lance_columns import ColumnFile
from featurestore.tables.lance_held import held_tables
from featurestore.tables.lance_tables import add_missing_columns, commit_transaction, open_table
from featurestore.tables.schema import (
    FAILED,
    PENDING,
    READY,
    SLIDES,
    SLIDES_SCHEMA,
    features_table,
    identity_of,
    is_teacher,
    kind_of,
    teacher_field,
)

# Beyond this a table is read whole: a look-up takes about 1 ms and a few us a slide.
FEW_SLIDES = 2000
FACTS = ["fingerprint", "listing_mark", "uri", "patient_id", "extra", "mpp", "cut_with"]
KNOWN = ["slide", "slide_id", "state", "reason", *FACTS]
ROWS_AT_ONCE = 1024  # whole rows of slides, about 30 kB each


class Committer:
    """Committer of one lake's tables. Every public method acquires the lake's lock by itself.

    Args:
        store: the lake's files.
        config: the lake's settings.
        session: cache of Lance that outlives one commit; see `held_tables`.
    """

    def __init__(
        self, store: Store, config: LakeConfig, session: lance.Session | None = None
    ) -> None:
        self.store, self.config, self._session = store, config, session
        self.ledger = Ledger(store, config)
        self._check: Callable[[], None] = lambda: None

    @contextlib.contextmanager
    def exclusive(self, *, recover: bool = True) -> Iterator[Self]:
        """Hold the lake's lock, with nothing left unfinished by an earlier holder.

        Args:
            recover: false leaves that to the caller, who writes nothing before (`finish`).

        Raises:
            DiskFullError: there is no room to write.
        """
        with commit_lock(self.store) as lease, held_tables(self.store, self._session):
            self._check = lease.check
            self.ledger.forget()
            if recover:
                self.finish()
            yield self

    def recover(self) -> None:
        """Finish or undo the half-done commits of a killed committer."""
        with self.exclusive():
            pass

    def finish(self) -> None:
        """Finish or undo the half-done commits of an earlier holder; the caller holds the lock."""
        self.ledger.check_newest()
        ahead = tails(self.store)
        if is_half_done(ahead):
            for tail in ahead:
                if not tail.undone:
                    self._check()
                    undo(self.store, tail)
            ahead = tails(self.store)
        changes = []
        for rel, change in [(tail.rel, each) for tail in ahead for each in tail.changes()]:
            if self.ledger.strays(change):
                # Its committer lost the lock while it was paused, and another did the same work.
                features.drop_fragment(self.store, rel, change.add[0]["fragment"])
            else:
                changes.append(change)
        # A new column or a slide's row carries no change, but is in no version of the lake yet.
        if ahead:
            self._check()
            self.ledger.apply(changes)

    def apply(self, changes: Sequence[Change]) -> None:
        """Apply changes to the catalog; the caller holds the lock (`exclusive`)."""
        self._check()
        self.ledger.apply(changes)

    def make(self, edit: Edit) -> None:
        """Commit an edit of several tables; the caller holds the lock."""
        work = Work(ledger=self.ledger, check=self._check)
        self.apply(make(work, edit))

    # ------------------------------------------------------------------ slides

    def register(self, rows: Sequence[Row]) -> list[Row]:
        """Assign every slide a number and a row, and return the rows; known slides keep theirs.

        Args:
            rows: one row per slide, with slide_id, uri, fingerprint and further columns.

        Returns:
            The rows in their order, with `slide`, the `state` and `reason` that the lake has, and
            the source and settings of its last ingest as `known_fingerprint`, `known_uri`,
            `known_listing_mark`, `known_patient_id`, `known_extra`, `known_mpp` and
            `known_cut_with`.
        """
        with self.exclusive():
            lake_rows = self._lake_rows([row["slide_id"] for row in rows])
            free = open_table(self.store, SLIDES).count_rows()  # numbers are given without gaps
            new: list[Row] = []
            for row in rows:
                if row["slide_id"] not in lake_rows:
                    lake_rows[row["slide_id"]] = {**row, "slide": free + len(new), "state": PENDING}
                    new.append(lake_rows[row["slide_id"]])
            if new:
                self._upsert_slides(new)
                self.apply([])
        return [_as_known(row, lake_rows[row["slide_id"]]) for row in rows]

    def known(self, rows: Sequence[Row]) -> list[Row]:
        """Return the rows as `register` would, without a change; new slides have no `slide`."""
        lake_rows = self._lake_rows([row["slide_id"] for row in rows])
        return [_as_known(row, lake_rows.get(row["slide_id"], {"state": PENDING})) for row in rows]

    def _lake_rows(self, slide_ids: Sequence[str]) -> dict[str, Row]:
        names = set(slide_ids)
        if not names:
            return {}
        where = among_names(names) if len(names) <= FEW_SLIDES else None
        slides = open_table(self.store, SLIDES)
        columns = [name for name in KNOWN if name in slides.schema.names]
        table = slides.to_table(columns=columns, filter=where)
        return {row["slide_id"]: row for row in table.to_pylist() if row["slide_id"] in names}

    def fail(self, rows: Sequence[Row]) -> None:
        """Record slides that could not be cut, with their `reason`."""
        with self.exclusive():
            self._upsert_slides([{**row, "state": FAILED} for row in rows])
            self.apply([])

    def update_slides(self, facts: Mapping[str, Row]) -> None:
        """Change columns of slides that do not describe their tiles, in one commit.

        Args:
            facts: slide_id -> its new values by column.
        """
        names = list(facts)
        with self.exclusive():
            for start in range(0, len(names), ROWS_AT_ONCE):
                where = among_names(names[start : start + ROWS_AT_ONCE])
                table = open_table(self.store, SLIDES).to_table(filter=where)
                self._upsert_slides(
                    [{**row, **facts[row["slide_id"]]} for row in table.to_pylist()]
                )
            self.apply([])

    def commit_slides(self, cuts: Sequence[SlideCut], failed: Sequence[Row] = ()) -> None:
        """Add cut slides to the lake in one commit.

        What is there already from the same file is left as it is; rows of an earlier scan (their
        shard has another name) are replaced, and stay readable at the versions before.

        Args:
            cuts: the slides.
            failed: slides that could not be cut, with their `reason`, recorded as `fail` does.

        Raises:
            DamageError: a shard is not where its row names it, or rows are not as they must be.
        """
        with self.exclusive():
            group = Group()
            self.ledger.read_ahead(cut.row["slide"] for cut in cuts)
            for mpp in self.config.mpps:
                todo, old = self._cuts_to_append(mpp, [cut for cut in cuts if mpp in cut.grids])
                for some in fragment_groups(todo, mpp):
                    again = [cut.row["slide"] for cut in some if cut.row["slide"] in old]
                    self._check()
                    features.append_tiles(self.ledger, mpp, some, again, group)
            rows = [{**cut.row, "state": READY, "reason": None} for cut in cuts]
            rows += [{**row, "state": FAILED} for row in failed]
            self._upsert_slides(rows, group)
            self.apply(group.changes)

    def _cuts_to_append(
        self, mpp: float, cuts: Sequence[SlideCut]
    ) -> tuple[list[SlideCut], set[int]]:
        """Return the cuts that are not in the lake yet, and the slides with rows to replace."""
        rows = self.ledger.tiles_rows(mpp, [cut.row["slide"] for cut in cuts])
        shards = {row["slide"]: (row["shard"], row["shard_crc32"]) for row in rows}
        todo = [
            cut
            for cut in {cut.row["slide"]: cut for cut in cuts}.values()
            if shards.get(cut.row["slide"]) != _shard_and_crc32(cut, mpp)
        ]
        return todo, set(shards)

    def _upsert_slides(self, rows: Sequence[Row], group: Group | None = None) -> None:
        """Insert or update rows of `slides` by `slide_id`; with a group, this commit closes it."""
        if not rows:
            return
        names = SLIDES_SCHEMA.names
        table = pa.Table.from_pylist(
            [{name: row.get(name) for name in names} for row in rows], schema=SLIDES_SCHEMA
        )
        self._check()
        add_missing_columns(self.store, SLIDES, SLIDES_SCHEMA)
        merge = open_table(self.store, SLIDES).merge_insert("slide_id")
        merge.when_matched_update_all().when_not_matched_insert_all()
        transaction, _ = merge.execute_uncommitted(with_row_crc32(table))
        transaction.transaction_properties = group.last() if group else {}
        commit_transaction(self.store, SLIDES, transaction)

    def drop_slides(self, slides: Sequence[Row], mpps: Sequence[float] | None = None) -> None:
        """Remove tiles and features of slides, so that the next ingest makes them again.

        Args:
            slides: whole rows of `slides`; their state becomes pending.
            mpps: mpps of the tiles to remove; None for all mpps.
        """
        with self.exclusive():
            numbers = [row["slide"] for row in slides]
            group = Group()
            for mpp in self.config.mpps if mpps is None else mpps:
                self._check()
                features.drop_tiles(self.ledger, mpp, numbers, group)
            self._upsert_slides([{**row, "state": PENDING} for row in slides], group)
            self.apply(group.changes)

    def reopen(self, slides: Sequence[Row]) -> None:
        """Set slides to pending and keep their rows: the next ingest makes their shards again."""
        with self.exclusive():
            self._upsert_slides([{**row, "state": PENDING} for row in slides])
            self.apply([])

    def drop_rows(self, mpp: float, fragment: int, slides: Sequence[int]) -> None:
        """Delete rows of slides in a fragment that the catalog does not name."""
        with self.exclusive():
            self.apply([features.drop_rows(self.store, mpp, fragment, slides)])

    # ------------------------------------------------------------------ teachers

    def add_teacher(
        self,
        mpp: float,
        name: str,
        dim: int,
        identity: Mapping[str, Any],
        licence: Licence | None = None,
    ) -> pa.Field:
        """Add a teacher's empty column, or check that the column is of the same teacher.

        Raises:
            IdentityError: the name is taken by a teacher with another identity.
        """
        return self.add_teachers(mpp, [teacher_field(name, dim, identity, licence)])[0]

    def add_teachers(self, mpp: float, fields: Sequence[pa.Field]) -> list[pa.Field]:
        """Add teachers' empty columns (`teacher_field`) in one commit, as `add_teacher` does.

        Returns:
            The columns as the lake has them.

        Raises:
            IdentityError: a name is taken by a teacher with another identity; nothing is added.
        """
        with self.exclusive():
            table = open_table(self.store, features_table(mpp))
            columns = {field.name: field for field in table.schema}
            missing: list[pa.Field] = []
            for field in fields:
                if field.name in columns:
                    _check_identity(mpp, columns[field.name], field)
                else:
                    missing.append(columns.setdefault(field.name, field))
            if missing:
                self._check()
                table.add_columns(missing)
                self.apply([])
        return [columns[field.name] for field in fields]

    def commit_columns(self, mpp: float, files: Sequence[ColumnFile]) -> None:
        """Publish finished columns of fragments; complete columns are left as they are.

        Raises:
            DamageError: a file is gone or its rows are not its fragment's rows.
        """
        self.commit_columns_of({mpp: files})

    def commit_columns_of(self, files: Mapping[float, Sequence[ColumnFile]]) -> None:
        """Publish finished columns of fragments at several mpps, all of them or none.

        Args:
            files: column files by mpp.

        Raises:
            DamageError: a file is gone or its rows are not its fragment's rows.
        """
        with self.exclusive():
            # Lance takes one field in a DataReplacement, so each teacher is a commit of its own.
            prepared = [
                features.prepare_columns(self.ledger, mpp, [f for f in some if f.teacher == name])
                for mpp, some in files.items()
                for name in dict.fromkeys(file.teacher for file in some)
            ]
            todo = [columns for columns in prepared if columns.groups]
            group = Group()
            for columns in todo:
                self._check()
                features.put_columns(self.store, columns, group, last=columns is todo[-1])
            if todo:
                self.apply(group.changes)

    def drop_column(self, mpp: float, teacher: str, fragments: Sequence[int]) -> None:
        """Remove a teacher's features from fragments, so that the next extract makes them again."""
        with self.exclusive():
            self.apply([features.drop_column(self.store, mpp, teacher, fragments)])


def _check_identity(mpp: float, lake_field: pa.Field, new_field: pa.Field) -> None:
    """Raise IdentityError if a column of the lake is not of the teacher of a new column."""
    name, identity = new_field.name, identity_of(new_field)
    if not is_teacher(lake_field):
        msg = (
            f"'{name}' is a column of {kind_of(lake_field)} kind at mpp {mpp} in the lake, so "
            "no teacher can have this name; give one of them another name (slidelake rename)"
        )
        raise IdentityError(msg)
    if lake_field.type != new_field.type or identity_of(lake_field) != identity:
        changed = sorted(
            key
            for key in {*identity_of(lake_field), *identity}
            if identity_of(lake_field).get(key) != identity.get(key)
        )
        msg = (
            f"teacher '{name}' is in the lake at mpp {mpp} with another identity (differs in: "
            f"{', '.join(changed) or 'dimension'}); give the new one another name"
        )
        raise IdentityError(msg)


def _as_known(row: Row, lake_row: Row) -> Row:
    return {
        **row,
        **{key: lake_row.get(key) for key in ("slide", "state", "reason")},
        **{f"known_{key}": lake_row.get(key) for key in FACTS},
    }


def _shard_and_crc32(cut: SlideCut, mpp: float) -> tuple[str | None, int | None]:
    shard = cut.grids[mpp].shard
    return (shard.path, shard.crc32) if shard else (None, None)
