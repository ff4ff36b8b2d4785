"""Slide and patient encoders on cached features of tiles: cards, networks, and `encode`.

A name is imported when it is first used, so that a card can be read without torch.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ingest.slide_encoders.encoding_run import EncodeResult, encode
    from ingest.slide_encoders.slide_card import SlideCard
    from ingest.slide_encoders.slide_card_table import SLIDE_ENCODERS

MODULES = {
    "SLIDE_ENCODERS": "ingest.slide_encoders.slide_card_table",
    "EncodeResult": "ingest.slide_encoders.encoding_run",
    "SlideCard": "ingest.slide_encoders.slide_card",
    "encode": "ingest.slide_encoders.encoding_run",
}
"""The module of every name on the door."""

__all__ = [
    "SLIDE_ENCODERS",
    "EncodeResult",
    "SlideCard",
    "encode",
]


def __getattr__(name: str) -> object:
    """Import a name of the door when it is first used."""
    if name not in MODULES:
        msg = f"module 'ingest.slide_encoders' has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(MODULES[name]), name)
