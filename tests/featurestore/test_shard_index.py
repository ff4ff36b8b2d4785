"""The index of a shard: damage never leads to a wrong JPEG, and it is rebuilt from the tar."""

import errno
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from featurestore import AccessError, DamageError, ShardReader, ShardWriter, Store
from featurestore.shards.shard_index import (
    ShardIndex,
    index_path,
    is_header_of,
    parsed_header,
    rebuild_index,
    scan_shard,
    tar_header,
)

SHARD = "tiles/a.tar"
JPEGS = {key * 7 + 3: b"\xff\xd8" + bytes([key]) * (490 + 9 * key) for key in range(4)}


@pytest.fixture
def written(tmp_path: Path) -> ShardWriter:
    """Return a shard of four tiles in a folder of its own."""
    with ShardWriter(Store(tmp_path), SHARD) as writer:
        for key, jpeg in JPEGS.items():
            writer.add(key, jpeg, {"tile": key})
    return writer


def flips(content: bytes) -> Iterator[bytes]:
    """Yield the bytes with each of their bits flipped in turn."""
    for bit in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        yield bytes(damaged)


def what_is_read(store: Store, index_crc32: int | None) -> str:
    """Return `right` if all tiles are as written and `refused` for damage; else fail."""
    try:
        with ShardReader(store, SHARD, index_crc32=index_crc32, slide_id="s") as reader:
            stored = [bytes(jpeg) for jpeg in reader.jpegs(np.array(list(JPEGS)))]
            assert dict(zip(JPEGS, stored, strict=True)) == JPEGS
            if index_crc32 is not None:
                assert dict(reader) == JPEGS
    except DamageError as error:
        text = str(error)
        named = text.startswith(f"slide s: shard {SHARD} ")
        return "refused" if named and text.endswith("verify, then slidelake repair") else text
    return "right"


def test_no_flipped_bit_of_an_index_gives_a_wrong_jpeg(written: ShardWriter) -> None:
    """Also without a checksum, as in early lakes, since the tar's headers are compared."""
    store, shard = written.store, written.shard
    assert shard is not None
    path = Path(store.path(index_path(SHARD)))
    whole = path.read_bytes()
    outcomes = []
    for number, damaged in enumerate(flips(whole)):
        try:
            same = ShardIndex.from_bytes(damaged) == ShardIndex.from_bytes(whole)
        except DamageError:
            same = True  # what opens the file refuses it as well; some of them show it
        if not same or number % 16 == 0:
            path.write_bytes(damaged)
            outcomes.append(what_is_read(store, None))
            assert what_is_read(store, shard.index_crc32) == (
                "right" if same and outcomes[-1] == "right" else "refused"
            )
    assert set(outcomes) == {"right", "refused"}
    assert outcomes.count("refused") > 8 * 20 * len(JPEGS) / 2


@pytest.mark.parametrize("damage", ["cut", "empty", "zero", "gone", "other"])
def test_an_index_that_is_no_index_is_refused(written: ShardWriter, damage: str) -> None:
    path = Path(written.store.path(index_path(SHARD)))
    content = path.read_bytes()
    new = {"cut": content[:-100], "empty": b"", "zero": bytes(len(content)), "other": b"ARROW1"}
    path.unlink()
    if damage in new:
        path.write_bytes(new[damage])
    assert what_is_read(written.store, None) == "refused"


def test_no_flipped_bit_of_a_header_gives_a_wrong_jpeg(written: ShardWriter) -> None:
    path = Path(written.store.path(SHARD))
    content = path.read_bytes()
    outcomes = []
    for damaged in itertools.islice(flips(content[:512]), 0, None, 7):
        path.write_bytes(damaged + content[512:])
        outcomes.append(what_is_read(written.store, None))
    # Right where the header's own checksum is but written otherwise.
    assert set(outcomes) <= {"right", "refused"}
    assert outcomes.count("right") < 15


def test_headers_of_other_writers_are_read(written: ShardWriter) -> None:
    """Times, owners and another form of the numbers change nothing of what a header says."""
    block = bytearray(tar_header("1.jpg", 10))
    block[136:148] = b"14712345670\0"
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + sum(block[156:]) + 8 * 32)
    assert parsed_header(bytes(block)) == ("1.jpg", 10)
    assert is_header_of(bytes(block), "1.jpg", 10)
    assert not is_header_of(bytes(block), "1.jpg", 11)
    assert parsed_header(bytes(512)) is None


def test_missing_rights_and_descriptors_are_no_damage(
    written: ShardWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (errno.EMFILE, errno.EIO, errno.EACCES):

        def refuse(*_: object, number: int = number) -> bytes:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "pread", refuse)
        with (
            ShardReader(written.store, SHARD, slide_id="s") as reader,
            pytest.raises(AccessError, match=f"slide s: .*: {os.strerror(number)}"),
        ):
            reader.jpeg(0)


# ---------------------------------------------------------------------- made again


@pytest.mark.parametrize("part_bytes", [1, 100, 512, 5000, 1 << 24])
def test_a_tar_says_what_its_index_says(
    written: ShardWriter, part_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, shard = written.store, written.shard
    monkeypatch.setattr("featurestore.shards.shard_index.CHUNK_BYTES", part_bytes)
    scanned = scan_shard(store, SHARD)
    assert shard is not None
    assert (scanned.bytes, scanned.crc32) == (shard.bytes, shard.crc32)
    assert scanned.index == ShardIndex.from_bytes(store.read_bytes(index_path(SHARD)))
    assert scanned.index is not None
    assert scanned.index.crc32 == shard.index_crc32


def test_a_lost_index_is_made_again_from_a_whole_tar_alone(written: ShardWriter) -> None:
    store, shard = written.store, written.shard
    assert shard is not None
    names = {"shard_bytes": shard.bytes, "shard_crc32": shard.crc32}
    index, tar = (Path(store.path(path)) for path in (index_path(SHARD), SHARD))
    before, whole = index.read_bytes(), tar.read_bytes()
    index.unlink()
    assert rebuild_index(store, SHARD, **names) == shard.index_crc32
    assert index.read_bytes() == before
    index.unlink()
    for damaged in (whole[:-3000], whole[:700] + b"x" + whole[701:], whole[3:]):
        tar.write_bytes(damaged)
        with pytest.raises(DamageError, match=f"{SHARD} is damaged itself"):
            rebuild_index(store, SHARD, **names)
    tar.unlink()
    with pytest.raises(DamageError, match="is not there"):
        rebuild_index(store, SHARD)
    assert not index.exists()


def test_a_shard_without_tiles_has_an_index_too(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with ShardWriter(store, SHARD) as writer:
        pass
    assert writer.shard is not None
    assert scan_shard(store, SHARD).index == ShardIndex.of_rows([])
    with ShardReader(store, SHARD, index_crc32=writer.shard.index_crc32) as reader:
        assert len(reader) == 0
