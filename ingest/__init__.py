"""Slides to tiles, and tiles to features: the two Ray Data jobs and what they are made of."""

from ingest.errors import InputError, SlideError, TeacherError
from ingest.teachers.cards.card import Card
from ingest.teachers.cards.card_table import CARDS
from ingest.teachers.find_teacher import (
    FEATURE_CARD,
    Teacher,
    find_card,
    find_teachers,
    licence_of,
    list_teachers,
    load_encoder,
    sees_features,
)
from ingest.teachers.student_files import student_folder

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
