"""All teacher cards by name. A fact that could not be verified is in its card's `unverified`."""

from ingest.cards import Card
from ingest.cards_gated import GATED
from ingest.cards_language import LANGUAGE
from ingest.cards_natural import natural
from ingest.cards_open import open_cards

CARDS: dict[str, Card] = {
    card.name: card for card in (*natural(), *GATED, *open_cards(), *LANGUAGE)
}
