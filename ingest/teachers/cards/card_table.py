"""All teacher cards by name. A fact that could not be verified is in its card's `unverified`."""

from ingest.teachers.cards.card import Card
from ingest.teachers.cards.cards_cells import cells
from ingest.teachers.cards.cards_clip import clips
from ingest.teachers.cards.cards_gated import GATED
from ingest.teachers.cards.cards_language import LANGUAGE
from ingest.teachers.cards.cards_natural import natural
from ingest.teachers.cards.cards_open import open_cards
from ingest.teachers.cards.cards_recent import recent

CARDS: dict[str, Card] = {
    card.name: card
    for card in (
        *natural(),
        *GATED,
        *open_cards(),
        *LANGUAGE,
        *recent(),
        *clips(),
        *cells(),
    )
}
