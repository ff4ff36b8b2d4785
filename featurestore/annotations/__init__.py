"""Users' own columns: of tiles in the features tables, of slides and patients in tables.

`annotating` writes them, `annotation_export` reads them for exports, `tile_predicates` selects
tiles by them. The class of an annotation is in `featurestore.tables.annotation`.
"""

from featurestore.annotations.annotating import (
    Annotated,
    PatientsSet,
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
    "PatientsSet",
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
