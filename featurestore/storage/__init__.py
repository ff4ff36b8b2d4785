"""Files of a lake on disks and in buckets, and the locks that guard them."""

from featurestore.storage import bucket_clients
from featurestore.storage.bucket_errors import DENIED, causes, codes, explain, missing_keys_error
from featurestore.storage.full_disk import DiskFullError, disk_full_error
from featurestore.storage.lock import writer_lease
from featurestore.storage.read_errors import LakeUri, is_of_lance, meaning_of, reading
from featurestore.storage.sealed_json import (
    CHECKSUMS,
    checksum_of,
    json_bytes,
    read_named,
    read_sealed,
    resealed,
    sealed,
)
from featurestore.storage.shown_uris import WEB, protocol_of, shown, shown_text
from featurestore.storage.user_files import bucket_errors_explained, files_at
from featurestore.storage.zip_files import check_zip

__all__ = [
    "CHECKSUMS",
    "DENIED",
    "WEB",
    "DiskFullError",
    "LakeUri",
    "bucket_clients",
    "bucket_errors_explained",
    "causes",
    "check_zip",
    "checksum_of",
    "codes",
    "disk_full_error",
    "explain",
    "files_at",
    "is_of_lance",
    "json_bytes",
    "meaning_of",
    "missing_keys_error",
    "protocol_of",
    "read_named",
    "read_sealed",
    "reading",
    "resealed",
    "sealed",
    "shown",
    "shown_text",
    "writer_lease",
]
