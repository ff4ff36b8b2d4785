"""Files that are zip archives (checkpoints of PyTorch): compared with their own checksums."""

import zipfile
import zlib

from featurestore.errors import DamageError
from featurestore.storage.read_errors import reading
from featurestore.storage.store import Store


def check_zip(store: Store, path: str) -> None:
    """Read a zip archive and compare each of its parts with the CRC-32 that the archive names.

    Raises:
        DamageError: the file is gone, cut, or not what was written.
        AccessError: the file can't be read now.
    """
    with reading(store, f"{path} can't be read"), store.fs.open(store.path(path), "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                part = archive.testzip()
        except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as err:
            part = str(err)
    if part is not None:
        msg = (
            f"{path} is not what was written (checksum of {part}); delete it: an unfinished "
            "training starts again from its first step, a finished one needs it no more"
        )
        raise DamageError(msg)
