"""The check of the tables of annotations and slide encodings; `lance_verify` checks columns."""

from collections.abc import Iterator

from featurestore.keep.verify.checked_reads import UnreadableError, read
from featurestore.keep.verify.damage import ANNOTATION, ENCODING, Damage
from featurestore.keep.verify.lance_checked_rows import batches
from featurestore.lake import Lake
from featurestore.messages import listing
from featurestore.tables.annotation import TILE, Annotation
from featurestore.tables.checksums import row_crc32
from featurestore.tables.lance_annotations import crc32_of
from featurestore.tables.lance_tables import open_table

SHOWN = 3
BATCH_ROWS = 8192


def verify_annotations(lake: Lake) -> Iterator[Damage]:
    """Compare each annotation of slides or patients with its checksums, a batch of rows at a time.

    Raises:
        BucketError: the bucket could not be read. That is no damage.
    """
    for annotation in lake.annotations().values():
        if annotation.level != TILE:
            yield from _check(lake, annotation)


def _check(lake: Lake, annotation: Annotation) -> Iterator[Damage]:
    path = str(annotation.path)
    text = f"annotation '{annotation.name}' of {annotation.level}s ({path})"
    for fault in _faults(lake, path, annotation.key, annotation.rows, annotation.crc32):
        description = f"{text}: {fault}; annotate it again (--replace)"
        yield Damage(description=description, part=ANNOTATION, path=path)


def verify_encodings(lake: Lake) -> Iterator[Damage]:
    """Compare the vectors of slides and patients with their checksums.

    Raises:
        BucketError: the bucket could not be read. That is no damage.
    """
    for one in lake.slide_encodings():
        for fault in _faults(lake, one.path, one.keys[0], one.rows, one.crc32):
            description = (
                f"slide features '{one.name}' at mpp {one.mpp} ({one.path}): {fault}; "
                f"slidelake drop --encoding {one.name}, and encode again"
            )
            yield Damage(mpp=one.mpp, description=description, part=ENCODING, path=one.path)


def _faults(
    lake: Lake, path: str, key: str, written: int, written_crc32: int | None
) -> Iterator[str]:
    """Yield what is wrong with a table whose rows carry checksums; nothing if it is whole."""
    rows, crc = 0, 0
    wrong: list[str] = []
    try:
        table = read(lake.store, lambda: open_table(lake.store, path))
        stream = batches(table, BATCH_ROWS)
        while (batch := read(lake.store, lambda: next(stream, None))) is not None:
            some = [row for row in batch.to_pylist() if row_crc32(row) != row["row_crc32"]]
            wrong += [str(row[key]) for row in some]
            crc = crc32_of(batch["row_crc32"].to_pylist(), crc)
            rows += batch.num_rows
    except UnreadableError as error:
        yield f"its table can't be read: {error}"
        return
    if wrong:
        yield f"not as written (checksum): {listing(wrong, SHOWN)}"
    elif rows != written or crc != written_crc32:
        yield f"{written} rows were written; {rows} are there, or other ones"
