"""Slides to tiles, and tiles to features: the two Ray Data jobs and what they are made of."""

from ingest.cards import CARDS, Card
from ingest.errors import InputError, SlideError, TeacherError
from ingest.teachers import find_card, list_teachers, load_teacher, student_folder

__all__ = [
    "CARDS",
    "Card",
    "InputError",
    "SlideError",
    "TeacherError",
    "find_card",
    "list_teachers",
    "load_teacher",
    "student_folder",
]
