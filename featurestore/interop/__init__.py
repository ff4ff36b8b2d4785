"""Import of other tools' files, export of a lake to their files, and their tables of labels."""

from featurestore.interop.exporting import ExportResult, export_folder
from featurestore.interop.foreign_labels import read_labels
from featurestore.interop.foreign_slide import (
    ImportFacts,
    InteropError,
    Problem,
    SlideFeatures,
    SlideFiles,
    SlideTiles,
)
from featurestore.interop.foreign_splits import read_splits
from featurestore.interop.formats import FORMATS, READABLE, WRITABLE, read_folder
from featurestore.interop.importing import ImportResult, import_folder
from featurestore.interop.sharing import Sharing

__all__ = [
    "FORMATS",
    "READABLE",
    "WRITABLE",
    "ExportResult",
    "ImportFacts",
    "ImportResult",
    "InteropError",
    "Problem",
    "Sharing",
    "SlideFeatures",
    "SlideFiles",
    "SlideTiles",
    "export_folder",
    "import_folder",
    "read_folder",
    "read_labels",
    "read_splits",
]
