"""Users' own columns: of tiles in the features tables, of slides and patients in tables.

`annotate` writes them, `model` says what they are, `registry` where they stand.
"""

from featurestore.annotations.annotating import (
    Annotated,
    Patients,
    annotate,
    set_patients,
    tcga_patients,
)
from featurestore.annotations.annotation_tables import (
    AnnotationFile,
    labels_of,
    query_frame,
    read_annotation,
)
from featurestore.annotations.tile_places import tiles_at
from featurestore.annotations.tile_predicates import Where, slides_of

__all__ = [
    "Annotated",
    "AnnotationFile",
    "Patients",
    "Where",
    "annotate",
    "labels_of",
    "query_frame",
    "read_annotation",
    "set_patients",
    "slides_of",
    "tcga_patients",
    "tiles_at",
]
