"""Ingest of slides as they arrive: look, cut what is new, wait, until it is stopped.

A look lists the files and compares them with the marks that the lake keeps. While there is nothing
new, no Ray runs, no lease is held and nothing is written.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import polars as pl

from featurestore import AccessError, LakeConfig, open_lake
from featurestore.storage import DiskFullError
from ingest.errors import NoSlidesError
from ingest.ray_ingest import SLIDE_TIMEOUT_S, IngestResult, ingest_named_slides
from ingest.select.known_files import known_files_at
from ingest.select.listed_files import manifest_marks
from ingest.select.manifests import is_manifest
from ingest.select.named_slides import IngestOptions, NamedSlides, Row, find_named_slides
from ingest.select.settled_files import SettledFiles

EVERY_S = 60.0


@dataclass(kw_only=True)
class Watch:
    """A watch over the places of slides, which an ingest follows.

    Attributes:
        lake_uri: folder or URL of the lake.
        inputs: files, folders, globs, manifests, URLs.
        config: settings of the lake.
        options: which slides to take, and how to find their tissue.
        every_s: seconds from one look to the next, and those that a file must have been the same.
        slide_timeout_s: seconds, plus one for each MB, after which a slide is given up.
        address: a Ray cluster; a local Ray is started for each ingest if None.
        auto_vacuum: whether old versions are freed after each ingest.
        note: function that is called with a sentence for each look that failed.
        sleep: function that waits for seconds.
        clock: function that returns the time in seconds since 1970.
    """

    lake_uri: str
    inputs: Sequence[str]
    config: LakeConfig
    options: IngestOptions
    every_s: float = EVERY_S
    slide_timeout_s: float = SLIDE_TIMEOUT_S
    address: str | None = None
    auto_vacuum: bool = False
    note: Callable[[str], None] = lambda _: None
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.time

    def __post_init__(self) -> None:
        self._settled = SettledFiles(self.every_s, self.clock)
        self._manifests: tuple[str | None, ...] | None = None
        self._handled: dict[str, tuple[object, ...]] = {}

    def outcomes(self) -> Iterator[IngestResult]:
        """Yield the outcome of each ingest, without end.

        A bucket or disk that can't be reached is noted and looked at again; all other errors of
        `ingest` are raised.
        """
        while True:
            begun_s = self.clock()
            try:
                if named := self.look():
                    yield self._ingest(named)
            except DiskFullError:
                raise
            except AccessError as error:
                self.note(f"{error}; the next look is in {self.every_s:g} s")
            self.sleep(max(0.0, begun_s + self.every_s - self.clock()))

    def look(self) -> NamedSlides | None:
        """Return the slides that are new, changed or left to be cut; None if there are none.

        The first look, and one after a manifest was written anew, returns all slides: other facts
        and settings than those of the lake are applied then.
        """
        manifests = manifest_marks([text for text in self.inputs if is_manifest(text)])
        known_files = known_files_at(self.lake_uri)
        try:
            named = find_named_slides(
                self.inputs, self.options, known_files=known_files, settled=self._settled
            )
        except NoSlidesError:  # nothing has arrived yet
            return None
        is_whole = manifests != self._manifests
        self._manifests = manifests
        if not is_whole:
            named.rows = [row for row in named.rows if self._is_new(row)]
            named.stopped = []
        return named if named.rows or (is_whole and named.stopped) else None

    def _is_new(self, row: Row) -> bool:
        return not row["is_known"] and self._handled.get(row["slide_id"]) != _file_of(row)

    def _ingest(self, named: NamedSlides) -> IngestResult:
        outcome = ingest_named_slides(
            self.lake_uri,
            named,
            self.config,
            self.options,
            slide_timeout_s=self.slide_timeout_s,
            address=self.address,
            auto_vacuum=self.auto_vacuum,
        )
        # What was refused, or can't be read, is not tried again before it changes.
        waiting = open_lake(self.lake_uri).slides().filter(pl.col("state") == "pending")
        pending = set(waiting.select("slide_id").collect()["slide_id"])
        for row in named.rows:
            if row["slide_id"] not in pending:
                self._handled[row["slide_id"]] = _file_of(row)
        return outcome


def _file_of(row: Row) -> tuple[object, ...]:
    """Return all that tells a slide's file from another, or from itself before it changed."""
    return tuple(row[name] for name in ("uri", "listing_mark", "fingerprint", "unreadable"))
