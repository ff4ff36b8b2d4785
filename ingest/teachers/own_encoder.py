"""An encoder of a user's own: one Python file with a `CARD` and a function `build`.

Such a file is run as it is, so only one that the user names in the command is ever read; none comes
out of a lake. See `examples/own_encoder.py`.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from ingest.errors import TeacherError
from ingest.teachers.cards.card import Card
from ingest.teachers.own_file import SUFFIX, run_file

if TYPE_CHECKING:
    from torch import nn

__all__ = ["SUFFIX", "own_card", "own_network"]


def own_card(source: str, where: str) -> tuple[Card, Path | None]:
    """The card that a file defines, and the weights that it names, if it does.

    Args:
        source: its text.
        where: its path, for messages.

    Raises:
        TeacherError: it can't be run, or defines no card or no `build`.
    """
    module = run_file(source, where, TeacherError)
    card, weights = getattr(module, "CARD", None), getattr(module, "WEIGHTS", None)
    if not isinstance(card, Card) or not callable(getattr(module, "build", None)):
        msg = f"{where} must define CARD, a slidelake.Card, and build(), which gives the network"
        raise TeacherError(msg)
    path = None if weights is None else Path(weights)
    if path is not None and not path.is_file():
        msg = f"{where}: its WEIGHTS, {path}, are not a file on this machine"
        raise TeacherError(msg)
    return card, path


def own_network(source: str, where: str) -> "nn.Module":
    """The network that a file builds, with timm's protocol around it if it has none.

    Raises:
        TeacherError: the file can't be run, or builds no network.
    """
    from ingest.teachers.networks import Plain

    module = run_file(source, where, TeacherError)
    try:
        network = module.build()
    except Exception as error:
        msg = f"{where}: build() failed: {type(error).__name__}: {error}"
        raise TeacherError(msg) from error
    if hasattr(network, "forward_features"):
        encoder: nn.Module = network
        return encoder
    return Plain(network, module.CARD.prefix_tokens)
