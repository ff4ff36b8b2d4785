"""Cards of teachers: all facts that decide an encoder's numbers."""

from ingest.teachers.cards.card import Card, Interpolation, card_json

__all__ = [
    "Card",
    "Interpolation",
    "card_json",
]
