"""The SHA-256 of a file of weights, which is read once by a process."""

import hashlib
from functools import lru_cache
from pathlib import Path

HASH_BYTES = 1 << 24


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file; a file that did not change is read once by a process."""
    facts = path.stat()
    return _sha256(path, facts.st_size, facts.st_mtime_ns, facts.st_ino)


@lru_cache(maxsize=64)
def _sha256(path: Path, size: int, mtime_ns: int, inode: int) -> str:
    """Return the SHA-256 of a file, read in pieces; size, time and inode tell states apart."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(HASH_BYTES):
            digest.update(piece)
    return digest.hexdigest()
