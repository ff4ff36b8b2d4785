"""Cards of slide encoders: their table in the docs, and what each of them must say."""

import importlib
from pathlib import Path

import pytest

from ingest.slide_encoders import SLIDE_ENCODERS, SlideCard
from ingest.slide_encoders.slide_network import NetworkInputs
from ingest.teachers.cards.card_table import CARDS
from tests.conftest import ROOT

PAGE = ROOT / "docs" / "slide_encoders.md"
HEAD = "| encoder | columns | tiles | places | encodes | numbers | licence |"
NAMES = list(SLIDE_ENCODERS)
#: Columns that no card of a teacher makes yet: they are imported.
IMPORTED = {"chief_ctranspath"}


def table() -> str:
    """Return all cards as a table in Markdown."""
    rows = [HEAD, "|---|---|---|---|---|---|---|"]
    return "\n".join([*rows, *(_row(SLIDE_ENCODERS[name]) for name in NAMES)]) + "\n"


def _row(card: SlideCard) -> str:
    cells = (
        f"`{card.name}`",
        ", ".join(f"`{name}`" for name in card.inputs) or "any",
        card.field_text,
        card.places,
        ", ".join(card.units),
        str(card.dim or "as the column"),
        card.licence,
    )
    return f"| {' | '.join(cells)} |"


def write_table(page: Path = PAGE) -> None:
    """Write the table into the page, in the place of what is there."""
    lines = page.read_text().splitlines(keepends=True)
    first = lines.index(f"{HEAD}\n")
    last = next(at for at in range(first, len(lines)) if not lines[at].startswith("|"))
    page.write_text("".join([*lines[:first], table(), *lines[last:]]))


def test_the_page_has_the_table_of_the_cards() -> None:
    assert table() in PAGE.read_text()


@pytest.mark.parametrize("name", NAMES)
def test_a_card_is_whole(name: str) -> None:
    card = SLIDE_ENCODERS[name]
    assert card.name == name
    assert card.source
    assert card.units
    module, _, function = card.loader.partition(":")
    assert callable(getattr(importlib.import_module(module), function))
    assert (card.tile_px is None) == (card.mpp is None)
    for column in card.inputs:
        assert column.partition(":")[0] in {*CARDS, *IMPORTED}
    if len(card.inputs) == 1 and card.inputs[0] in CARDS:
        teacher = CARDS[card.inputs[0]]
        assert card.input_dim == teacher.pooled_dim(teacher.poolings[0])
    if card.inputs:  # published
        assert card.references
        assert card.unverified


@pytest.mark.parametrize("name", [name for name in NAMES if SLIDE_ENCODERS[name].has_weights])
def test_a_network_is_built_by_its_card(name: str) -> None:
    import torch

    card = SLIDE_ENCODERS[name]
    dims = (768, 2560) if name == "eagle" else (card.input_dim or 0,)
    module, _, function = card.loader.partition(":")
    with torch.device("meta"):  # no memory, no time
        build = getattr(importlib.import_module(module), function)
        network = build(card, NetworkInputs(dims=dims))
    assert sum(tensor.numel() for tensor in network.parameters()) > 100_000


if __name__ == "__main__":
    write_table()
