"""Comparing a lake with what was committed."""

from featurestore.keep.verify.file_checks import FILE_CHECKS
from featurestore.keep.verify.lance_checking import check_lake, lake_to_mend

__all__ = [
    "FILE_CHECKS",
    "check_lake",
    "lake_to_mend",
]
