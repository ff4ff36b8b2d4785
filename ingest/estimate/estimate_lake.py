"""An estimate for a lake, a folder or a manifest of slides: what is needed is read and added."""

from collections.abc import Sequence

from featurestore import LakeConfig, Store, open_lake
from ingest.errors import InputError
from ingest.estimate.estimate_tables import read_prices, read_rates
from ingest.estimate.estimating import Estimate, estimated
from ingest.estimate.extract_record import read_rates_of
from ingest.estimate.slide_facts import facts_of_lake, facts_of_slides
from ingest.teachers.cards.card_table import CARDS
from ingest.teachers.find_teacher import find_card
from ingest.teachers.outputs import Output, card_name, outputs_of
from ingest.teachers.own_file import split_own

LAKE_FILE = "lake.json"


def estimate(
    source: str,
    teachers: Sequence[str] = (),
    *,
    slides: int | None = None,
    mpps: Sequence[float] = (),
    gpu: str = "a100",
    rates: str | None = None,
    prices: str | None = None,
) -> Estimate:
    """Estimate what many slides would take; nothing is written.

    Args:
        source: folder or URL of a lake with some slides; or slides, as `ingest` has them.
        teachers: names of teachers.
        slides: number of slides; those of the source if None.
        mpps: microns per pixel; the lake's, or 0.5 for slides, if empty.
        gpu: name of a GPU in the table of rates.
        rates: TOML file with a user's rates.
        prices: TOML file with a user's prices.

    Raises:
        InputError: there is nothing to go by: no slide that can be cut, no rate of a teacher.
        TeacherError: a teacher is not known.
    """
    store = _lake_at(source)
    if store is not None:
        facts = facts_of_lake(open_lake(source), mpps)
        records = read_rates_of(store)
    else:
        config = LakeConfig(mpps=tuple(mpps)) if mpps else LakeConfig()
        facts, records = facts_of_slides([source], config), {}
    return estimated(
        facts,
        slides=slides or facts.slides,
        teachers={name: _outputs(store, name) for name in dict.fromkeys(teachers)},
        rates=read_rates(rates),
        prices=read_prices(prices),
        records=records,
        gpu=gpu,
    )


def _lake_at(source: str) -> Store | None:
    """Return the files of the lake at a place; None if it holds none, as a folder of slides."""
    try:
        store = Store(source)
    except ValueError:  # an address of slides that no lake can be at, as https://
        return None
    return store if store.exists(LAKE_FILE) else None


def _outputs(store: Store | None, name: str) -> Sequence[Output]:
    """Return the columns of a teacher: a card's, or a student's of the lake."""
    if split_own(name):
        msg = (
            f"{name} is a file: extract it once on a lake of some slides, and estimate from that "
            "lake by the name of its column"
        )
        raise InputError(msg)
    card = CARDS.get(card_name(name))
    if card is None:
        card = find_card(store or Store("."), name)
    return outputs_of(name, card)
