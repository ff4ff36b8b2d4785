"""The index of a shard: the place of each tile's JPEG in the tar, and its checks.

An Arrow IPC file of (tile_id, offset, size), 20 bytes a tile. Its checksum is of these numbers, not
of the file's bytes, since another Arrow may write the same numbers otherwise; the catalog names it.
The tar's own headers hold the same facts: the index is compared with them where a JPEG is
read, and rebuilt from them where it is lost.
"""

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.errors import DamageError
from featurestore.storage.store import Store

BLOCK = 512
CHUNK_BYTES = 1 << 24
# Of a ustar header: mode, user and group; time; then type, link and magic.
OWNER, TIME = b"0000644\0" + b"0000000\0" * 2, b"00000000000\0"
REST = (b"0" + b"\0" * 100 + b"ustar\x0000").ljust(BLOCK - 156, b"\0")
FIXED_SUM = sum(OWNER) + sum(TIME) + sum(b" " * 8) + sum(REST)
REGULAR_FILE = (ord("0"), 0)
INDEX_SCHEMA = pa.schema([("tile_id", pa.int64()), ("offset", pa.int64()), ("size", pa.int32())])
INDEX_KINDS = {"tile_id": "<i8", "offset": "<i8", "size": "<i4"}
PICTURE_NAME = re.compile(r"(\d{19})\.jpg")

Int64Array = npt.NDArray[np.int64]


def tar_header(name: str, size: int) -> bytes:
    """Return the ustar header of a regular file with time, user and group zero.

    >>> len(tar_header("1.jpg", 10))
    512
    """
    name_field, size_field = name.encode().ljust(100, b"\0"), b"%011o\0" % size
    # The sum of all bytes; those that are the same in every header are summed once.
    checksum = b"%06o\0 " % (sum(name_field) + sum(size_field) + FIXED_SUM)
    return name_field + OWNER + size_field + TIME + checksum + REST


def parsed_header(block: bytes) -> tuple[str, int] | None:
    """Return name and size of the file that a tar header describes; None if it is not whole.

    >>> parsed_header(tar_header("1.jpg", 10)), parsed_header(b"x" * 512)
    (('1.jpg', 10), None)
    """
    try:
        size, checksum = (
            int(block[at : at + n].strip(b" \0"), 8) for at, n in ((124, 12), (148, 8))
        )
        name = block[:100].rstrip(b"\0").decode("ascii")
    except (ValueError, UnicodeDecodeError):
        return None
    total = sum(block) - sum(block[148:156]) + 8 * ord(" ")
    whole = len(block) == BLOCK and total == checksum and size >= 0 and block[156] in REGULAR_FILE
    return (name, size) if whole else None


def is_header_of(block: bytes, name: str, size: int) -> bool:
    """Whether a tar header is whole and describes a file of this name and size."""
    return block == tar_header(name, size) or parsed_header(block) == (name, size)


def member_name(tile_id: int) -> str:
    """Return the name of a tile's JPEG in its shard.

    >>> member_name(7)
    '0000000000000000007.jpg'
    """
    return f"{tile_id:019d}.jpg"


def index_path(shard: str) -> str:
    """Return the path of a shard's index."""
    return shard.removesuffix(".tar") + ".idx"


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """The places of the JPEGs of a shard in its tar, in the order of their keys.

    Attributes:
        tile_id: keys [N].
        offset: first byte of each JPEG in the tar [N].
        size: bytes of each JPEG [N].
    """

    tile_id: Int64Array
    offset: Int64Array
    size: npt.NDArray[np.int32]

    @classmethod
    def of_rows(cls, rows: Sequence[tuple[int, int, int]]) -> Self:
        """Return the index of JPEGs from rows of (tile_id, offset, size)."""
        columns = [list(column) for column in zip(*rows, strict=True)] or [[], [], []]
        return cls(
            tile_id=np.array(columns[0], np.int64),
            offset=np.array(columns[1], np.int64),
            size=np.array(columns[2], np.int32),
        )

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """Return the index that an Arrow IPC file holds.

        Raises:
            DamageError: the content is no index file, or its numbers can't belong to a shard.
        """
        try:
            table = pa.ipc.open_file(pa.py_buffer(content)).read_all()
            table.validate(full=True)
            columns = {field.name: _numbers(table, field) for field in INDEX_SCHEMA}
        except Exception as error:
            # Damaged bytes make Arrow raise KeyError, TypeError, NotImplementedError and others.
            msg = "its index is no Arrow file of tile_id, offset and size"
            raise DamageError(msg) from error
        index = cls(**columns)
        index.check_order()
        return index

    def to_bytes(self) -> bytes:
        """Return the index as an Arrow IPC file."""
        arrays = [pa.array(getattr(self, field.name), field.type) for field in INDEX_SCHEMA]
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, INDEX_SCHEMA) as writer:
            writer.write_table(pa.table(arrays, schema=INDEX_SCHEMA))
        return bytes(sink.getvalue().to_pybytes())

    @property
    def crc32(self) -> int:
        """Return the checksum over the columns, one after the other, each little-endian."""
        crc = 0
        for name, kind in INDEX_KINDS.items():
            crc = zlib.crc32(np.ascontiguousarray(getattr(self, name), dtype=kind).data, crc)
        return crc

    def check_order(self) -> None:
        """Raise DamageError if keys or places are not in the order of a tar's members."""
        positive = (self.tile_id >= 0).all() and (self.offset >= BLOCK).all()
        in_order = (
            positive
            and (self.size > 0).all()
            and (self.offset % BLOCK == 0).all()
            and (np.diff(self.tile_id) > 0).all()
            and (np.diff(self.offset) >= self.size[:-1]).all()
        )
        if not in_order:
            msg = "its index is not in the order of the file"
            raise DamageError(msg)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ShardIndex) and all(
            np.array_equal(getattr(self, name), getattr(other, name)) for name in INDEX_KINDS
        )

    __hash__ = None  # type: ignore[assignment] # arrays can't be hashed


def _numbers(table: pa.Table, field: pa.Field) -> npt.NDArray[Any]:
    column = table.column(field.name)
    if column.type != field.type or column.null_count:
        msg = f"column {field.name} is of type {column.type}"
        raise TypeError(msg)
    numbers: npt.NDArray[Any] = column.to_numpy()
    return numbers


@dataclass(frozen=True, kw_only=True)
class ScannedShard:
    """Result of one pass over a tar.

    Attributes:
        bytes: size of the tar.
        crc32: CRC-32 of all bytes of the tar.
        index: index from the tar's headers; None if the tar is not whole, or was read without
            index.
    """

    bytes: int
    crc32: int
    index: ShardIndex | None


def scan_shard(store: Store, shard: str, *, with_index: bool = True) -> ScannedShard:
    """Read a shard once, from its beginning to its end, without its index.

    Args:
        store: the lake's files.
        shard: path of the tar in the lake.
        with_index: whether to build an index from the headers, slower than the checksum alone.

    Raises:
        FileNotFoundError: there is no such tar.
    """
    size, crc, headers = store.size(shard), 0, _TarHeaders()
    for start in range(0, size, CHUNK_BYTES):
        chunk = store.read_range(shard, start, CHUNK_BYTES)
        crc = zlib.crc32(chunk, crc)
        if with_index:
            headers.feed(chunk)
    return ScannedShard(bytes=size, crc32=crc, index=headers.index() if with_index else None)


class _TarHeaders:
    """Collects the places of JPEGs while a tar passes by in parts of any size."""

    def __init__(self) -> None:
        self._rows: list[tuple[int, int, int]] = []
        self._part, self._start = b"", 0
        self._next_header = 0
        self._ended, self._damaged = False, False

    def feed(self, chunk: bytes) -> None:
        """Parse the next bytes of the tar."""
        self._part += chunk
        while not self._ended and self._next_header + BLOCK <= self._start + len(self._part):
            at = self._next_header - self._start
            self._take(self._part[at : at + BLOCK])
        passed = min(self._next_header - self._start, len(self._part))
        passed = len(self._part) if self._ended else passed
        self._part, self._start = self._part[passed:], self._start + passed

    def _take(self, block: bytes) -> None:
        header = parsed_header(block)
        if header is None:
            self._ended, self._damaged = True, any(block)  # a tar ends with blocks of zeros
            return
        name, size = header
        if picture := PICTURE_NAME.fullmatch(name):
            self._rows.append((int(picture[1]), self._next_header + BLOCK, size))
        self._next_header += BLOCK + size + -size % BLOCK

    def index(self) -> ShardIndex | None:
        """Return the index of the JPEGs, if the tar was whole."""
        if self._damaged or not self._ended:
            return None
        try:
            index = ShardIndex.of_rows(self._rows)
            index.check_order()
        except (DamageError, OverflowError):
            return None
        return index


def rebuild_index(
    store: Store, shard: str, *, shard_bytes: int | None = None, shard_crc32: int | None = None
) -> int:
    """Write the index of a shard again from the headers in its tar.

    Args:
        store: the lake's files.
        shard: path of the tar in the lake.
        shard_bytes: size of the tar in the catalog; None if the catalog has none.
        shard_crc32: CRC-32 of the tar in the catalog; None if the catalog has none.

    Returns:
        The checksum of the index, as the catalog keeps it in `index_crc32`.

    Raises:
        DamageError: the tar is missing, or differs from the catalog's: nothing is
            written then.
    """
    try:
        scanned = scan_shard(store, shard)
    except FileNotFoundError as error:
        msg = f"shard {shard} is not there: its index can't be made again; run slidelake repair"
        raise DamageError(msg) from error
    names_it = (shard_bytes in {None, scanned.bytes}) and (shard_crc32 in {None, scanned.crc32})
    if scanned.index is None or not names_it:
        msg = f"shard {shard} is damaged itself: its index can't be made again from it"
        raise DamageError(msg)
    store.write_bytes(index_path(shard), scanned.index.to_bytes())
    return scanned.index.crc32
