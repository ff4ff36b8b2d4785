"""Slides to tiles, and tiles to features: the two Ray Data jobs and what they are made of."""

from ingest.card_table import CARDS
from ingest.cards import Card
from ingest.errors import InputError, SlideError, TeacherError
from ingest.students import student_folder
from ingest.teachers import (
    FEATURE_CARD,
    Teacher,
    find_card,
    find_teachers,
    licence_of,
    list_teachers,
    load_encoder,
    sees_features,
)

__all__ = [
    "CARDS",
    "FEATURE_CARD",
    "Card",
    "InputError",
    "SlideError",
    "Teacher",
    "TeacherError",
    "find_card",
    "find_teachers",
    "licence_of",
    "list_teachers",
    "load_encoder",
    "sees_features",
    "student_folder",
]
