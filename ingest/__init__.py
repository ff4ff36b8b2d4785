"""Slides to tiles, and tiles to features: the two Ray Data jobs and what they are made of.

A name is imported when it is first used, so that this package costs nothing to import.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ingest.errors import FieldError, InputError, SlideError, TeacherError
    from ingest.estimate.extract_record import read_rates_of
    from ingest.lake_building import BuildOptions, BuildResult, build_lake
    from ingest.ray_ingest import ingest
    from ingest.stain import LEAST_LIGHT, STAIN_UNMIXING, STAIN_VECTORS, jitter_stains
    from ingest.teachers.cards.card import Card
    from ingest.teachers.cards.card_table import CARDS
    from ingest.teachers.find_teacher import (
        FEATURE_CARD,
        Teacher,
        column_licences,
        find_card,
        find_teachers,
        licence_of,
        list_teachers,
        load_encoder,
        sees_features,
    )
    from ingest.teachers.student_files import student_folder
    from ingest.tile_jpeg import decode_tile

MODULES = {
    "CARDS": "ingest.teachers.cards.card_table",
    "FEATURE_CARD": "ingest.teachers.find_teacher",
    "LEAST_LIGHT": "ingest.stain",
    "STAIN_UNMIXING": "ingest.stain",
    "STAIN_VECTORS": "ingest.stain",
    "BuildOptions": "ingest.lake_building",
    "BuildResult": "ingest.lake_building",
    "Card": "ingest.teachers.cards.card",
    "FieldError": "ingest.errors",
    "InputError": "ingest.errors",
    "SlideError": "ingest.errors",
    "Teacher": "ingest.teachers.find_teacher",
    "TeacherError": "ingest.errors",
    "build_lake": "ingest.lake_building",
    "column_licences": "ingest.teachers.find_teacher",
    "decode_tile": "ingest.tile_jpeg",
    "find_card": "ingest.teachers.find_teacher",
    "find_teachers": "ingest.teachers.find_teacher",
    "ingest": "ingest.ray_ingest",
    "jitter_stains": "ingest.stain",
    "licence_of": "ingest.teachers.find_teacher",
    "list_teachers": "ingest.teachers.find_teacher",
    "load_encoder": "ingest.teachers.find_teacher",
    "read_rates_of": "ingest.estimate.extract_record",
    "sees_features": "ingest.teachers.find_teacher",
    "student_folder": "ingest.teachers.student_files",
}
"""The module of every name on the door."""

__all__ = [
    "CARDS",
    "FEATURE_CARD",
    "LEAST_LIGHT",
    "STAIN_UNMIXING",
    "STAIN_VECTORS",
    "BuildOptions",
    "BuildResult",
    "Card",
    "FieldError",
    "InputError",
    "SlideError",
    "Teacher",
    "TeacherError",
    "build_lake",
    "column_licences",
    "decode_tile",
    "find_card",
    "find_teachers",
    "ingest",
    "jitter_stains",
    "licence_of",
    "list_teachers",
    "load_encoder",
    "read_rates_of",
    "sees_features",
    "student_folder",
]


def __getattr__(name: str) -> object:
    """Import a name of the door when it is first used."""
    if name not in MODULES:
        msg = f"module 'ingest' has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(MODULES[name]), name)
