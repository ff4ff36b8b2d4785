"""The contact sheet of an ingest, and pictures of slides."""

from ingest.pages.page_templates import environment
from ingest.pages.slide_cards import CARD_COLUMNS, choose_slides, make_cards
from ingest.pages.slide_pictures import PEN_SHOWN, data_uri, decode_rgb, encode_jpeg, scaled

__all__ = [
    "CARD_COLUMNS",
    "PEN_SHOWN",
    "choose_slides",
    "data_uri",
    "decode_rgb",
    "encode_jpeg",
    "environment",
    "make_cards",
    "scaled",
]
