"""The check of the tables of annotations; `lance_verify` checks columns of tiles."""

from collections.abc import Iterator

from featurestore.keep.verify.checked_reads import UnreadableError, read
from featurestore.keep.verify.damage import ANNOTATION, Damage
from featurestore.keep.verify.lance_checked_rows import batches
from featurestore.lake import Lake
from featurestore.messages import listing
from featurestore.tables import lance_annotations as registry
from featurestore.tables.annotation import TILE, Annotation
from featurestore.tables.checksums import row_crc32
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
    rows, crc = 0, 0
    wrong: list[str] = []
    try:
        table = read(lake.store, lambda: open_table(lake.store, str(annotation.path)))
        stream = batches(table, BATCH_ROWS)
        while (batch := read(lake.store, lambda: next(stream, None))) is not None:
            some = [row for row in batch.to_pylist() if row_crc32(row) != row["row_crc32"]]
            wrong += [str(row[annotation.key]) for row in some]
            crc = registry.crc32_of(batch["row_crc32"].to_pylist(), crc)
            rows += batch.num_rows
    except UnreadableError as error:
        yield _damage(annotation, f"its table can't be read: {error}")
        return
    if wrong:
        yield _damage(annotation, f"not as written (checksum): {listing(wrong, SHOWN)}")
    elif rows != annotation.rows or crc != annotation.crc32:
        yield _damage(
            annotation, f"{annotation.rows} rows were written; {rows} are there, or other ones"
        )


def _damage(annotation: Annotation, fault: str) -> Damage:
    text = f"annotation '{annotation.name}' of {annotation.level}s ({annotation.path}): {fault}"
    return Damage(
        description=f"{text}; annotate it again (--replace)", part=ANNOTATION, path=annotation.path
    )
