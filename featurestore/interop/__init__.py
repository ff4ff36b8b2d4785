"""Coming and going: other tools' files into a lake, a lake into their files, their tables read."""

from featurestore.interop.exporting import ExportResult, export_folder
from featurestore.interop.foreign_labels import read_labels
from featurestore.interop.foreign_slide import (
    Given,
    InteropError,
    Problem,
    SlideFeatures,
    SlideTiles,
    Source,
)
from featurestore.interop.foreign_splits import read_splits
from featurestore.interop.formats import FORMATS, READABLE, WRITABLE, read_folder
from featurestore.interop.importing import ImportResult, import_folder

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
