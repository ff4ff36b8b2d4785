"""Coming and going: other tools' files into a lake, a lake into their files, their tables read."""

from featurestore.interop.exporting import ExportResult, export_folder
from featurestore.interop.formats import FORMATS, READABLE, WRITABLE, read_folder
from featurestore.interop.importing import ImportResult, import_folder
from featurestore.interop.model import (
    Given,
    InteropError,
    Problem,
    SlideFeatures,
    SlideTiles,
    Source,
)
from featurestore.interop.splits import read_splits
from featurestore.interop.tables import read_labels

__all__ = [
    "FORMATS",
    "READABLE",
    "WRITABLE",
    "ExportResult",
    "Given",
    "ImportResult",
    "InteropError",
    "Problem",
    "SlideFeatures",
    "SlideTiles",
    "Source",
    "export_folder",
    "import_folder",
    "read_folder",
    "read_labels",
    "read_splits",
]
